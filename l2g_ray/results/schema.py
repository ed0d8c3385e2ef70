"""The schema of `leaderboard.json` (schema 1, as the design gives it); a row and the board may carry more keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from l2g_ray.errors import UserError
from l2g_ray.tasks.schema import Kind


def _none_if_undefined(value: Any) -> Any:
    # JSON has no NaN: an undefined score is null.
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_none_if_undefined)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Score(_Part):
    """A score over seeds of training; null where it is undefined. Extra keys: counts of dropped resamples, ..."""

    mean: Number
    ci95: tuple[Number, Number] | None = None
    per_seed: tuple[Number, ...] = ()

    @model_validator(mode="after")
    def _ordered(self) -> Score:
        if self.ci95 is not None and None not in self.ci95:
            lo, hi = self.ci95
            if lo > hi:  # type: ignore[operator]
                raise ValueError(f"ci95 must be [lo, hi], got [{lo}, {hi}]")
        return self


class TestScore(Score):
    """A score on the test split: its interval is not optional."""

    __test__ = False  # not a test class of pytest

    ci95: tuple[Number, Number]
    per_seed: tuple[Number, ...] = Field(min_length=1)


class Apart(_Part):
    """Scores on the `n` test rows that are no near-duplicates of train rows, `dropped` are left out."""

    n: int = Field(ge=0)
    dropped: int = Field(ge=0)
    used: TestScore
    l2g: TestScore | None = None
    embedder_only: TestScore | None = None


class Used(_Part):
    """What a run predicts with. `oof` is its score on held-out rows, by weights that were fitted to other rows.

    Extra keys: `ensemble` (how the arms become one), `folds`, `models` (how many), `bytes`, `rows_per_s`.
    """

    arm: str
    test: TestScore
    oof: Score


class Arm(_Part):
    """One arm of a run: its scores on test and on held-out rows, its weight in the ensemble (mean over seeds), what the
    ensemble gains by it on held-out rows (`adds`: `mean`, `ci95`, `p`), and the ensemble minus the arm on test (`difference`)."""

    test: TestScore
    oof: Score | None
    weight: float
    adds: dict[str, Any] | None = None
    difference: dict[str, Any] | None = None


class Published(_Part):
    """A published score of another model; `comparable` only with the same data, split and metric."""

    model: str
    value: Number
    comparable: bool
    source: str


class Layer(_Part):
    """What the search chose for one layer."""

    kernel_size: int = Field(gt=0)
    dilation: int = Field(gt=0)


class LeaderboardRow(_Part):
    """One task. Times in seconds; `model_uri` is MLflow's, or a folder; `baselines` maps a name to a score or number.

    `test` is L2G's score. `used` and `arms` are not in a row of an earlier version.

    Extra keys that the table and the report know: `synthetic` (bool), `difference` (`mean`, `ci95`, `p`: L2G minus
    embedder only over the same rows), `test_plain` (without strand averaging), `metrics` (all metrics).
    """

    task: str
    kind: Kind
    metric: str
    test: TestScore | None
    validation: Score
    embedder_only: TestScore | None
    used: Used | None = None
    arms: dict[str, Arm] = Field(default_factory=dict)
    baselines: dict[str, Score | Number] = Field(default_factory=dict)
    n_train: int = Field(ge=0)
    n_test: int = Field(ge=0)
    test_without_near_duplicates: Apart | None = None
    published: tuple[Published, ...] = ()
    backbone: str
    architecture: tuple[Layer, ...] = ()
    trials: int = Field(ge=0)
    wall_s: float = Field(ge=0)
    cpu_s: float = Field(ge=0)
    gpu_s: float = Field(ge=0)
    model_uri: str | None
    warnings: tuple[str, ...] = ()


class Leaderboard(_Part):
    """The whole file. Extra keys tell how to reproduce it (see `results.report`)."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    schema_: Literal[1] = Field(default=1, alias="schema")
    bench: str
    preset: str
    language_model: str
    tasks: tuple[LeaderboardRow, ...]

    @model_validator(mode="after")
    def _named_once(self) -> Leaderboard:
        names = [row.task for row in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError("a task is in the leaderboard twice")
        return self


class Board(TypedDict):
    """The plain form of `leaderboard.json`; `Leaderboard` checks the rows. `slots`: how busy they were (`monitor.events`)."""

    schema: int
    bench: str
    preset: str
    language_model: str
    tasks: list[dict[str, Any]]
    slots: NotRequired[dict[str, float] | None]


def build_leaderboard(bench: str, preset: str, language_model: str, rows: list[LeaderboardRow], **extra: Any) -> Board:
    """Return the board as the plain mapping that `leaderboard.json` holds; `extra` are further keys of the board."""
    board = Leaderboard(bench=bench, preset=preset, language_model=language_model, tasks=tuple(rows), **extra)
    return _dump(board)


def validate_leaderboard(board: Mapping[str, Any]) -> Board:
    """Return the board in its plain form. Raises UserError naming the first key that does not fit the schema."""
    try:
        return _dump(Leaderboard.model_validate(board))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"the leaderboard does not fit its schema at '{where}': {first['msg']}") from None


def _dump(board: Leaderboard) -> Board:
    dumped: Any = board.model_dump(mode="json", by_alias=True)
    return dumped
