"""A stored model, found by its run's folder or URI."""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from l2g_ray.api.predictor import Predictor
from l2g_ray.api.requests import DEFAULT_OUT
from l2g_ray.errors import UserError
from l2g_ray.places import MODELS
from l2g_ray.predict import fetch_arm, load_predictor
from l2g_ray.run_folder import BEST, Arm, choose_arm, find_arm
from l2g_ray.storage import Location

if TYPE_CHECKING:
    from l2g_ray.api.runs import Run


def load(
    run: str | Path | Run,
    task: str | None = None,
    arm: str = BEST,
    *,
    device: str = "auto",
    batch_size: int | None = None,
) -> Predictor:
    """Load a model of a finished run. Ray is not needed.

    Parameters
    ----------
    run : str or Path or Run
        The folder of a run, of one of its tasks or of a model; the same in an object store (`s3://...`); a model in
        MLflow (`models:/NAME/VERSION`, in the store that MLFLOW_TRACKING_URI names); or what `run` returned.
    task : str, optional
        Which task's model. Required where the run has several.
    arm : str, default "best"
        Which of the run's models. `best` is the one that the run predicts with.
    device : str, default "auto"
        `cpu`, `cuda`, or `auto`: a GPU if there is one.
    batch_size : int, optional
        Sequences per batch: 256 by default, halved until a batch fits into memory.

    Returns
    -------
    Predictor
        The loaded model.

    Raises
    ------
    UserError
        If there is no finished model, the task or arm is unknown (the message lists the known ones), or there is no
        such device.

    Examples
    --------
    >>> import l2g_ray as l2g
    >>> predictor = l2g.load("runs/toy")
    >>> predictor.labels
    ('0', '1')
    """
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(open_arm(run, task, arm, with_all=True))
        predictor = Predictor(load_predictor(found, device, batch_size), batch_size)
        # A copy of a remote model stays as long as the predictor, which opens further files of it later.
        weakref.finalize(predictor, stack.pop_all().close)
    return predictor


@contextlib.contextmanager
def open_arm(
    run: str | Path | Run, task: str | None = None, arm: str = BEST, *, with_all: bool = False
) -> Iterator[Arm]:
    """Find a stored model. The copy of a remote one is removed afterwards.

    `run`, `task` and `arm` as in `load`, `with_all` as in `fetch_arm`.
    """
    place = Location(str(getattr(run, "folder", run)))
    if place.text.startswith(MODELS):
        from l2g_ray.tracking.store import download_model

        if task is not None or arm != BEST:
            raise UserError(f"{place}: is one model; leave out task and arm, or give the folder of its run")
        with tempfile.TemporaryDirectory(prefix="l2g-ray-") as scratch:
            model = choose_arm(download_model(place.text, Path(scratch), Path(DEFAULT_OUT)))
            yield replace(model, place=place.text)
    elif place.is_remote:
        with fetch_arm(place, task, arm, with_all=with_all) as found:
            yield found
    else:
        yield find_arm(place.local, task, arm)
