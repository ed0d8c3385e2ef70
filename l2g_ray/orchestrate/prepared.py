"""Where a run keeps its prepared data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from l2g_ray.config import DataSettings
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.raw import RawTask
from l2g_ray.orchestrate.environment import hash_content
from l2g_ray.orchestrate.locks import hold_file
from l2g_ray.storage import Location, as_location
from l2g_ray.tasks.schema import Task

if TYPE_CHECKING:
    from l2g_ray.data.prepare import Progress


def prepared_folder(out: Location, task: Task, source: RawTask, settings: DataSettings) -> Location:
    """A folder a source, options and data settings, so that a run with others cannot pull the shards from under this one."""
    files = {name: str(as_location(f).absolute()) for name, f in source.files.items()}
    mark = hash_content([files, source.options.model_dump(mode="json"), settings.model_dump(mode="json")])[:8]
    return out / "prepared" / task.bench / f"{task.name}-{mark}"


def prepare_for_runs(
    out: Path,
    task: Task,
    source: RawTask,
    settings: DataSettings,
    progress: Progress = lambda doing, rows: None,
    remote: Location | None = None,
) -> PreparedTask:
    """Prepare `source` as `task` where all runs of `out` (or of `remote`, whose working folder `out` then is) look for
    it; what is there already is not made again.

    Raises UserError as `prepare` does.
    """
    from l2g_ray.data.prepare import prepare  # with SciPy, which a plan has no use for

    folder = prepared_folder(as_location(remote or out), task, source, settings)
    # Suites of other names may prepare the same task: one does, the others find it.
    with hold_file(out / "prepared" / task.bench / f".{folder.name}.lock"):
        return prepare(replace(source, task=task), folder, settings, progress=progress)
