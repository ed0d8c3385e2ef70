"""The models of a finished run: which arms a task's folder has, and which of them a name means. Kept free of torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from l2g_ray.arms import ARMS, ENSEMBLE
from l2g_ray.errors import UserError
from l2g_ray.models.locate import load_config
from l2g_ray.tasks.schema import TASK_FILE

BEST = "best"
# What the chosen model could be in runs of an earlier version, beside the arms of `arms.ARMS`.
AVERAGE = "average"
ARM_CHOICES = (BEST, ENSEMBLE, *ARMS, AVERAGE)
# Folders of a finished task that hold a model: the ensemble, and in an earlier version one a kind of arm.
MODEL_FOLDERS = ("model", "embedder_only", BEST)
# Folders with a model for each arm: those that the ensemble uses, and those that it has no use for.
ARM_FOLDERS = (BEST, "arms")
_NO_MODEL = "no finished model here; run `l2g-ray suite` or `l2g-ray run` first"


@dataclass(frozen=True)
class Arm:
    """A stored model of a task: the arm's name, the model's folder, and whether it is what the run predicts with.

    `weights` are those of an ensemble's arms. `role` is what the arm is to the ensemble of its run, in words. `place` is what
    to show for the folder, for one that was fetched from elsewhere.
    """

    name: str
    folder: Path
    is_best: bool = False
    place: str = ""
    weights: tuple[tuple[str, float], ...] = ()
    role: str = ""

    @property
    def task_folder(self) -> Path:
        """The task's folder: the one around the model's, or around `best/` or `arms/` that has it."""
        parent = self.folder.absolute().parent
        inside = parent.name in ARM_FOLDERS and (parent.parent / BEST / "config.json").exists()
        return parent.parent if inside else parent

    def local_folder(self, otherwise: str) -> Path:
        """Return the task's folder, for what lies there beside the models. Raises UserError for a copy, ending with
        `otherwise`.
        """
        if self.place:
            raise UserError(f"{self.place}: only models are read from there; {otherwise}")
        return self.task_folder

    def describe(self) -> str:
        """Return the arm, as a line of output names it."""
        if self.name == ENSEMBLE:
            return f"{self.name} of {self._shares()}"
        role = "best on validation" if self.is_best else self.role
        return f"{self.name} ({role})" if role else self.name

    def facts(self) -> dict[str, str]:
        """Return what a file of results says about the model that made them."""
        if self.weights:
            about = {"ensemble_of": self._shares()}
        else:
            about = {"chosen_by": "validation"} if self.is_best else {"role": self.role} if self.role else {}
        return {"arm": self.name, **about, "model": self.place or str(self.folder)}

    def share(self, arm: str) -> float:
        """Return the weight of one of an ensemble's arms, against the sum of all; 0 for an arm that is none of them."""
        return dict(self.weights).get(arm, 0.0) / sum(weight for _, weight in self.weights)

    def _shares(self) -> str:
        ranked = sorted(self.weights, key=lambda pair: -pair[1])
        return ", ".join(f"{name} {self.share(name):.0%}" for name, _ in ranked)


def list_arms(task_folder: Path) -> dict[str, Arm]:
    """Return the arms of a finished task by name, and what it predicts with as 'best' too; empty where there is no
    model.

    Raises UserError for a model whose `config.json` cannot be read.
    """
    inner = [arm for name in ARM_FOLDERS for arm in _read_inside(task_folder / name)]
    found = [*inner, *(read_arm(path) for name in MODEL_FOLDERS if _has_model(path := task_folder / name))]
    chosen = next((arm for arm in found if arm.folder == task_folder / BEST), None)
    arms = {arm.name: arm for arm in reversed(found)}
    return arms if chosen is None else _relate(arms, chosen)


def _read_inside(folder: Path) -> list[Arm]:
    return [read_arm(path) for path in sorted(folder.glob("[!.]*")) if _has_model(path)]


def _relate(arms: dict[str, Arm], chosen: Arm) -> dict[str, Arm]:
    """Return the arms with what they are to the `chosen` one, which is what the run predicts with."""
    related = {BEST: replace(chosen, is_best=True)}
    for name, arm in arms.items():
        share = chosen.share(name) if chosen.weights and name != chosen.name else None
        role = "" if share is None else f"{share:.0%} of the ensemble" if share else "not in the ensemble"
        related[name] = replace(arm, is_best=name == chosen.name, role=role)
    return related


def read_arm(model_folder: Path) -> Arm:
    """Return the arm of a stored model; of an earlier version, the model's form is the name. Raises UserError as
    `load_config`.
    """
    config = load_config(model_folder)
    combination = config.get("combination") or {}
    weights = tuple(zip(combination.get("arms", ()), combination.get("weights", ()), strict=True))
    return Arm(str(config.get("arm") or config["form"]), model_folder, weights=weights)


def find_arm(run: Path, task: str | None = None, arm: str = BEST) -> Arm:
    """Return an arm of a run: a suite's folder (with `task` where it has several), a task's, or a model's own.

    'best' is what the run predicts with: its ensemble, in a run of an earlier version the arm that was best on validation, or
    L2G where none was chosen.

    Raises UserError naming the tasks or arms to choose from, or what is missing.
    """
    return choose_arm(find_task(run, task), arm)


def find_task(run: Path, task: str | None = None) -> Path:
    """Return the task's folder of a run, or the model's own folder. Raises UserError as `find_arm`."""
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
        raise UserError(f"{run}: several tasks here; choose one of: {', '.join(found)}")
    return found[task] if task else next(iter(found.values()))


def choose_arm(folder: Path, arm: str = BEST) -> Arm:
    """Return an arm of a task's folder, or the arm of a model's own. Raises UserError where it has no such arm."""
    if _has_model(folder):
        own = read_arm(folder)
        if folder.name in MODEL_FOLDERS or folder.absolute().parent.name in ARM_FOLDERS:
            around = list_arms(own.task_folder)
            own = next((one for one in around.values() if one.folder.absolute() == folder.absolute()), own)
            chosen = around.get(BEST)
            own = replace(own, folder=folder, is_best=chosen is not None and chosen.name == own.name)
        inside = {one.name: one for one in _read_inside(folder)}
        arms = {**(_relate(inside, own) if own.weights else inside), own.name: own, BEST: own}
    else:
        arms = list_arms(folder)
        if arms and BEST not in arms:
            arms[BEST] = arms.get("l2g") or next(iter(arms.values()))
    if not arms:
        raise UserError(f"{folder}: {_NO_MODEL}")
    if arm not in arms:
        found = ", ".join(f"{name} ({one.name})" if name == BEST else name for name, one in arms.items())
        raise UserError(f"{folder}: has no arm '{arm}'; choose one of: {found}")
    return arms[arm]


def choose_member(ensemble: Arm, groups: Sequence[Sequence[str]], what: str) -> Arm:
    """Return the arm that stands for an ensemble where the ensemble itself will not do.

    It is the one with the largest weight of the first of the `groups` (names of arms) of which any has weight; where none has,
    the first that the run has at all. `what` says what such arms have. Raises UserError where there is none.
    """
    arms = list_arms(ensemble.task_folder) | {one.name: one for one in _read_inside(ensemble.folder)}
    arms = _relate({name: _placed_beside(arm, ensemble) for name, arm in arms.items()}, ensemble)
    for group in groups:
        name = max(group, key=ensemble.share)
        if ensemble.share(name) > 0 and name in arms:
            return replace(arms[name], role=f"{arms[name].role}, its largest arm with {what}")
    name = next((name for group in groups for name in group if name in arms), "")
    if not name:
        wanted = ", ".join(name for group in groups for name in group)
        raise UserError(f"{ensemble.folder}: no arm of this run has {what}; run it again with one of the arms {wanted}")
    return replace(arms[name], role=f"{arms[name].role}, of whose arms none has {what}")


def _placed_beside(arm: Arm, fetched: Arm) -> Arm:
    """Return an arm of a copy, with the place that it has where the copy is from."""
    if not fetched.place:
        return arm
    steps = Path(os.path.relpath(arm.folder, fetched.folder)).parts
    up = steps.count(os.pardir)
    return replace(arm, place="/".join((*fetched.place.split("/")[: -up or None], *steps[up:])))


def _has_model(folder: Path) -> bool:
    return (folder / TASK_FILE).exists() and (folder / "config.json").exists()
