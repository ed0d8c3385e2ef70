"""The models of a finished run: which arms a task's folder has, and which of them a name means. Kept free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from l2g_ray.errors import UserError
from l2g_ray.models.stored import load_config
from l2g_ray.tasks.stored import TASK_FILE

BEST = "best"
ARM_CHOICES = (BEST, "l2g", "embedder_only", "average")
# Folders of a finished task. An arm that has a folder of its own is found there, else in the chosen one's.
MODEL_FOLDERS = ("model", "embedder_only", BEST)
_NO_MODEL = "no finished model here; run `l2g-ray suite` or `l2g-ray run` first"


@dataclass(frozen=True)
class Arm:
    """A stored model of a task: the arm's name, the model's folder, and whether validation chose this arm.

    `place` is what to show for the folder, for one that was fetched from elsewhere.
    """

    name: str
    folder: Path
    is_best: bool = False
    place: str = ""

    def describe(self) -> str:
        """The arm, as a line of output names it."""
        return f"{self.name} (best on validation)" if self.is_best else self.name

    def facts(self) -> dict[str, str]:
        """What a file of results says about the model that made them."""
        chosen = {"chosen_by": "validation"} if self.is_best else {}
        return {"arm": self.name, **chosen, "model": self.place or str(self.folder)}


def list_arms(task_folder: Path) -> dict[str, Arm]:
    """The arms of a finished task by name, and the chosen one as 'best' too; empty where there is no model.

    Raises UserError for a model whose `config.json` cannot be read.
    """
    names = {folder: read_arm(task_folder / folder) for folder in MODEL_FOLDERS if _has_model(task_folder / folder)}
    chosen = names.get(BEST)
    arms = {name: Arm(name, task_folder / folder, name == chosen) for folder, name in reversed(names.items())}
    return arms if chosen is None else {BEST: Arm(chosen, task_folder / BEST, True), **arms}


def read_arm(model_folder: Path) -> str:
    """The arm of a stored model by its form: l2g, embedder_only, average. Raises UserError as `load_config`."""
    return str(load_config(model_folder)["form"])


def find_arm(run: Path, task: str | None = None, arm: str = BEST) -> Arm:
    """An arm of a run: a suite's folder (with `task` where it has several), a task's, or a model's own.

    'best' is the arm that was best on validation, and L2G in a run of an earlier version, which chose none.

    Raises UserError naming the tasks or arms to choose from, or what is missing.
    """
    return choose_arm(find_task(run, task), arm)


def find_task(run: Path, task: str | None = None) -> Path:
    """The task's folder of a run, or the model's own folder. Raises UserError as `find_arm`."""
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; give the folder of a finished run")
    if _has_model(run) or any(_has_model(run / name) for name in MODEL_FOLDERS):
        return run
    # What begins with a dot is half-written.
    models = [path.parent.parent for name in MODEL_FOLDERS for path in run.glob(f"[!.]*/{name}/{TASK_FILE}")]
    found = {folder.name: folder for folder in sorted(models)}
    if task is not None and task not in found:
        raise UserError(f"{run}: no finished task '{task}' here; there are: {', '.join(found) or 'none'}")
    if not found:
        raise UserError(f"{run}: {_NO_MODEL}")
    if task is None and len(found) > 1:
        raise UserError(f"{run}: several tasks here, choose one with --task: {', '.join(found)}")
    return found[task] if task else next(iter(found.values()))


def choose_arm(folder: Path, arm: str = BEST) -> Arm:
    """An arm of a task's folder, or the arm of a model's own. Raises UserError where it has no such arm."""
    if _has_model(folder):
        name = read_arm(folder)
        chosen = list_arms(folder.parent).get(BEST) if folder.name in MODEL_FOLDERS else None
        arms = {name: Arm(name, folder, chosen is not None and chosen.name == name)}
        arms[BEST] = arms[name]
    else:
        arms = list_arms(folder)
        if arms and BEST not in arms:
            arms[BEST] = arms.get("l2g") or next(iter(arms.values()))
    if not arms:
        raise UserError(f"{folder}: {_NO_MODEL}")
    if arm not in arms:
        found = ", ".join(f"{name} ({one.name})" if name == BEST else name for name, one in arms.items())
        raise UserError(f"{folder}: has no arm '{arm}'; choose with --arm one of those it has: {found}")
    return arms[arm]


def _has_model(folder: Path) -> bool:
    return (folder / TASK_FILE).exists() and (folder / "config.json").exists()
