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
from l2g_ray.places import is_uri
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
    folder : str or Path
        The run's folder, which `run` and `suite` print.

    Attributes
    ----------
    folder : Path
        The run's folder.
    failures : dict of str to str
        For each failed task, why it has no result. Empty for a run that was opened from its folder.

    Raises
    ------
    UserError
        If the folder holds no finished run.

    Examples
    --------
    >>> import l2g_ray as l2g
    >>> run = l2g.Run("runs/toy")
    >>> run.tasks
    ['planted']
    """

    def __init__(self, folder: str | Path) -> None:
        if is_uri(folder):
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
        """A row for each task: the scores on the test split with their intervals, by arm."""
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
        """Return the model that the run predicts with.

        Parameters
        ----------
        task : str, optional
            Which task's model. Required where the run has several.

        Returns
        -------
        Predictor
            The model, loaded by `load`.

        Raises
        ------
        UserError
            As `load`.

        Examples
        --------
        >>> import l2g_ray as l2g
        >>> l2g.Run("runs/toy").best().task
        'planted'
        """
        from l2g_ray.api.loading import load

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
    source : str, Path or sequence of them
        BENCH/TASK of the catalogue; a table, FASTA or BED file; a folder with train and test files; or several FASTA
        or BED files, one for each class.
    preset : str or Path, default "fast"
        `smoke`, `fast`, `paper`, or a YAML file of settings.
    settings : mapping of str to values, optional
        Settings to change, by dotted key, such as `{"finetune.trials": 8}`. `l2g-ray config show` lists them.
    arms : str or iterable of str, optional
        Arms to train: names, or `all`. By default the preset's.
    seeds : int, optional
        Number of seeds with which every arm is trained. By default the preset's.
    language_model : str or Path, optional
        A Hugging Face id, a local folder, or `minilm`.
    data_dir : str or Path, optional
        Folder that holds the benchmarks' files.
    out : str or Path, default "runs"
        Where runs are stored: a folder or `s3://...`.
    name : str, optional
        Name of the run's folder. By default made of benchmark, task and preset.
    replace : bool, default False
        Replace a finished run of this name that had other data or settings.
    keep_duplicates : bool, default False
        Keep training rows that are also in the test split.
    experiment : str, optional
        MLflow experiment. By default MLFLOW_EXPERIMENT_NAME, otherwise `l2g_ray`.
    register : bool, default False
        Register the model in MLflow.
    cpus : int, optional
        Cores that a local cluster may use. By default all.
    gpus_per_trial : float, optional
        GPUs that a trial takes. By default 1 on a cluster with GPUs, less once a trial of the kind has been measured.
    workers_per_trial : int, default 1
        Processes that train one model together, each with its share of every batch and its own GPU.
    slots : int, optional
        Trials to run at once on a cluster that grows. By default counted.
    quiet : bool, default False
        Show no progress.
    verbose : bool, default False
        Also show Ray's own messages.
    **files : Any
        How files are read and split, under the names of `l2g-ray run --help`, such as `window_bp=200`,
        `label_column="y"`, `test_chromosomes=["chr8"]`.

    Returns
    -------
    Run
        The finished run.

    Raises
    ------
    UserError
        If a mistake can be found before training starts.
    RuntimeError
        If the task failed. Finished stages are kept.

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
    bench : str
        Name of the benchmark. `l2g-ray tasks` lists them.
    tasks : sequence of str, optional
        Tasks of the benchmark. By default all.
    preset : str or Path, default "fast"
        As in `run`.
    data_dir : str or Path, optional
        As in `run`.
    quiet : bool, default False
        Show no progress.
    **options : Any
        The other options of `run`, but for those of files.

    Returns
    -------
    Run
        The finished run. Its `failures` names the tasks that failed.

    Raises
    ------
    UserError
        If a mistake can be found before training starts.
    RuntimeError
        If all tasks failed. Finished stages are kept.

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
    """Return names of the options that `run` and `suite` share."""
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
