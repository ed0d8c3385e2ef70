"""Run tasks and suites from Python, and what they leave: a `Run`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2g_ray.api.requests import (
    DEFAULT_OUT,
    DEFAULT_PRESET,
    FILE_OPTIONS,
    refuse_unknown,
    request_suite,
    request_task,
    take_file_options,
)
from l2g_ray.errors import UserError
from l2g_ray.redaction import redact

if TYPE_CHECKING:
    import pandas as pd

    from l2g_ray.api.predictor import Predictor
    from l2g_ray.request import SuiteRequest

LEADERBOARD = "leaderboard.csv"


class Run:
    """A finished run or suite.

    Parameters
    ----------
    folder : the run's folder, which `run` and `suite` print.

    Attributes
    ----------
    folder : Path.
    failures : task to why it has no result; empty for a run that was opened from its folder.

    Raises
    ------
    UserError : a folder that holds no finished run.

    Examples
    --------
    >>> import l2g_ray as l2g
    >>> run = l2g.Run("runs/toy")
    >>> run.tasks
    ['planted']
    """

    def __init__(self, folder: str | Path) -> None:
        if "://" in str(folder) or str(folder).startswith("models:/"):
            raise UserError(
                f"{redact(str(folder))}: Run reads folders only; copy the run here first, or open its model by `load`, "
                "which reads object stores and MLflow models"
            )
        self.folder = Path(folder)
        self.failures: dict[str, str] = {}
        if not (self.folder / LEADERBOARD).is_file():
            raise UserError(
                f"{self.folder}: no {LEADERBOARD} of a finished run here; give the folder that holds report.html"
            )

    @property
    def leaderboard(self) -> pd.DataFrame:
        """A row for each task: the scores on the test split with their intervals, by arm. See docs/results.md."""
        import pandas as pd

        return pd.read_csv(self.folder / LEADERBOARD)

    @property
    def tasks(self) -> list[str]:
        """Names of the finished tasks."""
        return self.leaderboard["task"].astype(str).tolist()

    @property
    def report(self) -> Path:
        """The report's HTML file."""
        return self.folder / "report.html"

    def best(self, task: str | None = None) -> Predictor:
        """Return what the run predicts with; `task` says which, where the run has several.

        Raises UserError as `load`.

        Examples
        --------
        >>> import l2g_ray as l2g
        >>> l2g.Run("runs/toy").best().task
        'planted'
        """
        from l2g_ray.api.predictor import load

        return load(self, task)

    def __repr__(self) -> str:
        failed = f", failed={list(self.failures)}" if self.failures else ""
        return f"Run('{self.folder}', tasks={self.tasks}{failed})"


def run(
    source: str | Path | Sequence[str | Path],
    *,
    preset: str | Path = DEFAULT_PRESET,
    settings: Mapping[str, Any] | None = None,
    arms: str | Iterable[str] | None = None,
    seeds: int | None = None,
    language_model: str | Path | None = None,
    data_dir: str | Path | None = None,
    out: str | Path = DEFAULT_OUT,
    name: str | None = None,
    replace: bool = False,
    keep_duplicates: bool = False,
    experiment: str | None = None,
    register: bool = False,
    cpus: int | None = None,
    gpus_per_trial: float | None = None,
    workers_per_trial: int = 1,
    slots: int | None = None,
    quiet: bool = False,
    verbose: bool = False,
    **files: Any,
) -> Run:
    """Search, train and evaluate one task on Ray. The same as `l2g-ray run`.

    Ray starts on this machine, or the cluster that RAY_ADDRESS names is used. A second call with the same arguments
    trains nothing.

    Parameters
    ----------
    source : BENCH/TASK of the catalogue; a table, FASTA or BED file; a folder with train and test files; or several
        FASTA or BED files, one for each class.
    preset : 'smoke', 'fast', 'paper', or a YAML file of settings.
    settings : dotted keys to values, such as ``{"finetune.trials": 8}``. `l2g-ray config show` lists them.
    arms : what to train: names, or 'all'.
    seeds : how often every arm is trained.
    language_model : hub id, local folder, or 'minilm'.
    data_dir : folder that holds the benchmarks' files.
    out : where runs are kept, a folder or `s3://...`.
    name : name of the run's folder; made of task and preset by default.
    replace : replace a finished run of this name that had other data or settings.
    keep_duplicates : keep train rows that are also in test.
    experiment : MLflow experiment; MLFLOW_EXPERIMENT_NAME by default, else l2g_ray.
    register : register the model in MLflow.
    cpus : cores of a local cluster; all by default.
    gpus_per_trial, workers_per_trial, slots : see `l2g-ray run --help`.
    quiet : show no progress.
    verbose : show Ray's own messages too.
    files : how files are read and split, under the names of `l2g-ray run --help`, such as ``window_bp=200``,
        ``label_column="y"``, ``test_chromosomes=["chr8"]``.

    Returns
    -------
    Run

    Raises
    ------
    UserError : anything that can be known before training starts.
    RuntimeError : the task failed; what is finished is kept.

    Examples
    --------
    >>> import l2g_ray as l2g
    >>> options = {"preset": "smoke", "arms": "embedder_only", "language_model": "tiny-lm", "name": "toy"}
    >>> done = l2g.run("planted.csv", settings={"search.enabled": False}, quiet=True, **options)
    >>> done
    Run('runs/toy', tasks=['planted'])
    >>> done.leaderboard["metric"].tolist()
    ['mcc']
    """
    refuse_unknown("run", files, {*_name_options(), *FILE_OPTIONS})
    names = [source] if isinstance(source, str | Path) else list(source)
    request = request_task(
        names,
        take_file_options(files),
        preset=str(preset),
        settings=settings,
        arms=arms,
        seeds=seeds,
        language_model=language_model,
        data_dir=None if data_dir is None else Path(data_dir),
        out=out,
        name=name,
        replace=replace,
        keep_duplicates=keep_duplicates,
        experiment=experiment,
        register=register,
        cpus=cpus,
        gpus_per_trial=gpus_per_trial,
        workers_per_trial=workers_per_trial,
        slots=slots,
        verbose=verbose,
    )
    return _execute(request, quiet)


def suite(
    bench: str,
    tasks: Sequence[str] | None = None,
    *,
    preset: str | Path = DEFAULT_PRESET,
    data_dir: str | Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Run all tasks of a benchmark side by side on Ray. The same as `l2g-ray suite`.

    Parameters
    ----------
    bench : benchmark; `l2g-ray tasks` lists them.
    tasks : only these tasks.
    preset, data_dir, quiet : as in `run`.
    options : the other options of `run`, but for those of files.

    Returns
    -------
    Run : `failures` names the tasks that failed.

    Raises
    ------
    UserError : anything that can be known before training starts.
    RuntimeError : all tasks failed; what is finished is kept.

    Examples
    --------
    >>> import l2g_ray as l2g
    >>> done = l2g.suite("demo", ["splice_junction"], preset="smoke")  # doctest: +SKIP
    >>> done.tasks  # doctest: +SKIP
    ['splice_junction']
    """
    refuse_unknown("suite", options, _name_options())
    folder = None if data_dir is None else Path(data_dir)
    chosen = (tasks,) if isinstance(tasks, str) else tasks
    return _execute(request_suite(bench, chosen, preset=str(preset), data_dir=folder, **options), quiet)


def _name_options() -> set[str]:
    """Names of the options that `run` and `suite` share."""
    parameters = signature(run).parameters.values()
    return {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}


def _execute(request: SuiteRequest, quiet: bool) -> Run:
    from rich.console import Console

    from l2g_ray.orchestrate.suite import run_suite

    result = run_suite(request, Console(highlight=False, quiet=quiet))
    if result.failures and not result.board["tasks"]:
        reasons = "; ".join(f"{task} failed: {reason}" for task, reason in result.failures.items())
        raise RuntimeError(f"{reasons}. Finished stages are kept: call it again after the cause is removed")
    found = Run(result.folder)
    found.failures = dict(result.failures)
    return found
