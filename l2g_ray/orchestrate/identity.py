"""What a suite is: its settings, rows and key; whether it was done before, and what it may replace."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from pydantic import JsonValue
from rich.console import Console

from l2g_ray.config import DataSettings, Settings
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.raw import RawTask
from l2g_ray.errors import UserError
from l2g_ray.models.locate import fingerprint_language_model
from l2g_ray.monitor.environment import Environment, hash_content
from l2g_ray.monitor.progress import ReadingProgress
from l2g_ray.monitor.status import SUITE_FILE
from l2g_ray.places import STORE_FILE
from l2g_ray.presets import resolve
from l2g_ray.redaction import clean, redact
from l2g_ray.request import SuiteRequest
from l2g_ray.results.schema import Board
from l2g_ray.stages.registry import list_versions
from l2g_ray.storage import Location, as_location
from l2g_ray.store.locks import hold_file
from l2g_ray.tasks.schema import Task
from l2g_ray.tracking.store import is_own_store

if TYPE_CHECKING:
    from l2g_ray.data.prepare import Progress

# The settings of a task, or the task, as a file of a suite has them: of another version, with other keys.
Dumped = dict[str, JsonValue]


def prepared_folder(out: Location, task: Task, source: RawTask, settings: DataSettings) -> Location:
    """Return a folder a source, options and data settings, so that a run with others cannot pull the shards from
    under this one.
    """
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
    it; existing prepared data are reused.

    Raises UserError as `prepare` does.
    """
    from l2g_ray.data.prepare import prepare  # with SciPy, which a plan has no use for

    folder = prepared_folder(as_location(remote or out), task, source, settings)
    # Suites of other names may prepare the same task: one does, the others find it.
    with hold_file(out / "prepared" / task.bench / f".{folder.name}.lock"):
        return prepare(replace(source, task=task), folder, settings, progress=progress)


def resolve_task(request: SuiteRequest, task: Task) -> Settings:
    """Return the settings of one task of the suite. Raises UserError as `resolve`."""
    own = request.task_assignments.get(task.name, {})
    return resolve(request.preset, task.overrides, {**request.assignments, **own}).for_task(task.strand_specific)


def prepare_task(request: SuiteRequest, task: Task, settings: Settings, console: Console) -> PreparedTask:
    """Return the rows of one task, prepared now unless they were before. Raises UserError for rows that cannot be
    used.
    """
    source = request.sources[task.name]
    if isinstance(source, PreparedTask):
        return source
    with ReadingProgress(console, task.name) as progress:
        return prepare_for_runs(request.out, task, source, settings.data, progress.advance, request.remote)


@dataclass(frozen=True)
class SuiteIdentity:
    """What a suite's leaderboard depends on, most of it by task; `data` are the fingerprints of train, valid and test."""

    bench: str
    tasks: dict[str, Dumped]
    settings: dict[str, Dumped]
    language_models: list[str]
    data: dict[str, list[str]]
    versions: dict[str, int]

    @property
    def key(self) -> str:
        """The content key of the suite."""
        return hash_content(asdict(self))


def identify_suite(
    request: SuiteRequest, settings: dict[str, Settings], prepared: dict[str, PreparedTask]
) -> SuiteIdentity:
    """Return what the leaderboard of a suite depends on."""
    return SuiteIdentity(
        bench=request.bench,
        tasks={task.name: task.model_dump(mode="json", exclude={"overrides"}) for task in request.tasks},
        settings={name: s.model_dump(mode="json", exclude={"cluster", "caution"}) for name, s in settings.items()},
        language_models=sorted({fingerprint_language_model(s.model.language_model) for s in settings.values()}),
        data={name: [p.fingerprint(s) for s in ("train", "valid", "test")] for name, p in prepared.items()},
        versions=list_versions(),
    )


class NamedStore(TypedDict):
    """The keys of `suite.json` that name the MLflow store."""

    tracking_uri: str
    store: str | None
    experiment: str


class SuiteMeta(Environment, NamedStore):
    """The form of `suite.json`. One that an earlier version wrote may lack keys."""

    schema: int
    state: str
    key: str
    name: str
    bench: str
    preset: str
    command: str
    folder: str | None
    started: str
    wall_s: float
    costs: dict[str, dict[str, JsonValue]]
    slots: dict[str, float] | None
    settings: dict[str, Dumped]
    fingerprints: dict[str, dict[str, str]]
    tasks: dict[str, Dumped]
    language_models: list[str]
    stage_versions: dict[str, int]


def name_store(request: SuiteRequest, uri: str) -> NamedStore:
    """Return how `suite.json` names the MLflow store: a store in the folder of all runs also from there, as it moves."""
    store = os.path.join(os.pardir, STORE_FILE) if is_own_store(uri, request.out) else None
    return {"tracking_uri": uri, "store": store, "experiment": request.experiment}


def read_finished(folder: Path, key: str) -> tuple[SuiteMeta, Board] | None:
    """Return `suite.json` and the leaderboard in `folder` if a suite of this key was finished there."""
    try:
        meta = json.loads((folder / SUITE_FILE).read_text())
        if meta["key"] != key or meta["state"] != "finished":
            return None
        return meta, json.loads((folder / "leaderboard.json").read_text())
    except (OSError, ValueError, KeyError):
        return None


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, and make nothing: the input is not checked yet."""
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another output folder (--out)") from None


STUDY_FILE = "study.json"
# States in which all results of a suite are there.
WHOLE = ("finished", "unsent")
MAX_SHOWN = 3
MAX_CHARS = 40


def refuse_replacement(request: SuiteRequest, identity: SuiteIdentity) -> None:
    """Refuse a suite that would replace finished results of another one, unless the request says `replace`.

    Results of another benchmark, data, model, setting or task are not replaced once the suite is finished. Before that, a
    changed setting is what a person corrects after a failure; only finished tasks of other data are kept then.

    Raises UserError, which says what differs and what to do.
    """
    where = as_location(request.remote or request.out) / request.name
    earlier: SuiteMeta | None = _read(where / SUITE_FILE)
    if earlier is None and not request.replace and (where / STUDY_FILE).exists():
        _refuse(where, "is a finished run of simple baselines")
    if earlier is None or earlier.get("key") in (None, identity.key):
        return
    if request.replace:
        for name in earlier.get("settings", {}).keys() - identity.settings.keys():
            if Path(name).name == name:  # a folder of this suite, whatever the file says
                (where / name).delete()
                (as_location(request.out / request.name) / name).delete()
        return
    if earlier.get("state") in WHOLE:
        differences = list_differences(earlier, identity)
        _refuse(where, f"is a finished run with {differences}")
    other = [name for name in _find_other_data(earlier, identity) if (where / name / "metrics.json").exists()]
    if other:
        _refuse(where, f"holds finished results of other data ({', '.join(other)})")


def refuse_other_study(request: SuiteRequest, key: str) -> None:
    """Refuse simple baselines whose table would replace that of other ones, or of a suite. Raises UserError."""
    where = as_location(request.remote or request.out) / request.name
    study = _read(where / STUDY_FILE)
    is_suite = (where / SUITE_FILE).exists()
    if not request.replace and (is_suite or (study is not None and study.get("key", key) != key)):
        _refuse(where, "is a finished run of other baselines, data or settings")


def _refuse(where: Location, what: str) -> None:
    raise UserError(
        f"{redact(str(where))}: {what}; nothing was changed. Keep both with --name NEW, or replace it with --replace"
    )


def list_differences(earlier: SuiteMeta, identity: SuiteIdentity) -> str:
    """Return in words how the suite of an earlier `suite.json` differs from this one."""
    now = SuiteIdentity(**clean(asdict(identity)))  # as the file was written
    said = []
    if earlier.get("bench") != now.bench:
        said.append(f"benchmark {earlier.get('bench')}, now {now.bench}")
    before, after = list(earlier.get("settings", {})), list(now.settings)
    if set(before) != set(after):
        said.append(f"{_count(before)}, now {_count(after)}")
    if other := _find_other_data(earlier, now):
        said.append(f"other data ({_shorten(', '.join(other))})")
    changed = dict(_find_changed(earlier.get("settings", {}), now.settings))
    said += [f"{name}={_show(old)}, now {_show(new)}" for name, (old, new) in list(changed.items())[:MAX_SHOWN]]
    if len(changed) > MAX_SHOWN:
        said.append(f"{len(changed) - MAX_SHOWN} other settings that differ")
    models = now.language_models
    if "model.language_model" not in changed and earlier.get("language_models", models) != models:
        said.append("other files of the language model")
    same = {name: facts for name, facts in earlier.get("tasks", {}).items() if name in now.tasks}
    if any(facts != now.tasks[name] for name, facts in same.items()):
        said.append("other facts of the task (kind, labels or metric)")
    if not said or earlier.get("stage_versions", now.versions) != now.versions:
        said.append("another version of l2g-ray")
    return "; ".join(said)


def _find_other_data(earlier: SuiteMeta, identity: SuiteIdentity) -> list[str]:
    before = earlier.get("fingerprints", {})
    return [name for name, marks in identity.data.items() if name in before and list(before[name].values()) != marks]


def _find_changed(
    before: dict[str, Dumped], after: dict[str, Dumped]
) -> Iterator[tuple[str, tuple[JsonValue, JsonValue]]]:
    """Yield settings that both versions know and that differ in a task."""
    for task in before.keys() & after.keys():
        old, new = _flatten(before[task]), _flatten(after[task])
        for name in new:
            if name in old and old[name] != new[name] and not name.startswith("cluster."):
                yield name, (old[name], new[name])


def _flatten(nested: Dumped, prefix: str = "") -> Dumped:
    flat: Dumped = {}
    for name, value in nested.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _count(tasks: list[str]) -> str:
    return f"tasks {_shorten(', '.join(tasks))}" if tasks else "no task"


def _show(value: JsonValue) -> str:
    return _shorten(value if isinstance(value, str) else json.dumps(value))


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 3]}..."


def _read(path: Location) -> Any:
    """Return the mapping that a JSON file holds; None where there is none."""
    text = path.read_if_there()
    try:
        found = json.loads(text) if text else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
