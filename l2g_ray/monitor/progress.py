"""Progress of a suite: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from l2g_ray.monitor.bars import NotebookLive, make_live
from l2g_ray.monitor.events import End, Epoch, Failure, News, Note, StageBegan, StageDone, Winner
from l2g_ray.monitor.outline import Outline, Step, name_stage
from l2g_ray.monitor.status import TaskStatus
from l2g_ray.results.terminal import Column, Listing
from l2g_ray.stages.registry import find_stage
from l2g_ray.tasks.metrics import find_metric, name_stage_metric

# Share of the planned work that must be done before the time left is shown.
_LEAST_DONE = 0.02


@dataclass
class _TaskView:
    metric: str
    outline: Outline
    stage: str = "waiting"
    beside: bool = False
    state: str = "waiting"
    trials: dict[str, dict[str, float]] = field(default_factory=dict)
    n_trials: int = 0
    stage_runs: bool = False
    failures: int = 0
    best: float = -math.inf
    begun: float = field(default_factory=time.monotonic)
    ended: float | None = None
    result: str = ""

    @property
    def best_value(self) -> float | None:
        """The best score so far as its metric gives it; events have it with the sign that makes higher better."""
        metric = find_metric(name_stage_metric(self.stage, self.metric))
        return metric.sign * self.best if math.isfinite(self.best) else None

    @property
    def epochs(self) -> int:
        """Epochs of the longest trial so far."""
        return max((int(row["epoch"]) + 1 for row in self.trials.values()), default=0)

    @property
    def share(self) -> float:
        """The share of its stage's epochs that all trials have trained, 0 to 1; 0 where they are not known."""
        most = self.n_trials * (self.outline.epochs.get(self.stage) or 0)
        trained = sum(int(row["epoch"]) + 1 for row in self.trials.values())
        return min(1.0, trained / most) if most and self.stage_runs else 0.0


class _Shown:
    """A context that shows its `live` view, where the console is a terminal."""

    live: Live | NotebookLive | None

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self.live is not None:
            self.live.__exit__(*exc)


class Progress(_Shown):
    """Shows events of the board. Use as a context manager; `update` takes events, `finish` a task's result."""

    def __init__(
        self,
        console: Console,
        tasks: Mapping[str, str],
        title: str,
        outlines: Mapping[str, Sequence[Step]] | None = None,
    ) -> None:
        """`tasks` maps each task's name to its metric, `outlines` to its stages where they are known."""
        self.console = console
        self.title = title
        self.views = {
            task: _TaskView(metric, Outline((outlines or {}).get(task, ()))) for task, metric in tasks.items()
        }
        self.begun = time.monotonic()
        self.training_since: float | None = None
        self.epoch = time.time() - self.begun  # of the monotonic clock, in seconds since 1970
        self.live = make_live(console, self.render)

    def update(self, event: News) -> None:
        """Take one event of the board."""
        if isinstance(event, Note):
            self.say(escape(event.text))
            return
        view = self.views[event.task]
        view.state = "running"
        match event:
            case StageBegan():
                self.training_since = self.training_since or time.monotonic()
                # A stage that runs in parallel takes the place of others in the table only where none of them runs.
                if not (event.beside and view.stage_runs and not view.beside):
                    view.stage, view.beside, view.trials, view.best = event.stage, event.beside, {}, -math.inf
                    view.n_trials, view.stage_runs = event.trials, True
                if self.live is None:
                    self.say(f"{event.task}: {name_stage(event.stage)} begins, {_describe_begin(event, view.outline)}")
            case StageDone():
                view.outline.finish(event.stage, event.cached)
                if self.live is None:
                    self._say_done(event, view)
                if event.stage == view.stage:
                    view.stage_runs = False
            case Epoch() if find_stage(event.name.stage).beside == view.beside:
                view.trials[event.name.key] = event.row
                view.best = max(view.best, event.row.get("best_score", -math.inf))
            case Failure():
                view.failures += 1
                self.say(escape(describe_event(event)))

    def finish(self, task: str, result: str, failed: bool = False) -> None:
        """Take the end of a task, with its `result`."""
        view = self.views[task]
        view.outline.close()
        view.stage, view.result, view.ended = "done", result, time.monotonic()
        view.state = "failed" if failed else "done"
        if self.live is None:
            self.say(escape(f"{task}: {result}"))

    def snapshot(self) -> dict[str, TaskStatus]:
        """Return the status of each task."""
        return {task: self._describe(view) for task, view in self.views.items()}

    def _describe(self, view: _TaskView) -> TaskStatus:
        if view.state == "waiting":
            return TaskStatus(view.state)
        begun = TaskStatus(view.state, view.stage, view.begun + self.epoch, view.failures)
        if view.ended is not None:
            return replace(begun, result=view.result, ended=view.ended + self.epoch)
        return replace(
            begun, trials=view.n_trials, trials_begun=len(view.trials), epoch=view.epochs, best=view.best_value
        )

    def describe_left(self) -> str:
        """Return the time that the plan leaves at the speed so far; empty where too little is known."""
        if self.training_since is None:
            return ""
        pairs = [view.outline.measure(view.stage, view.share) for view in self.views.values()]
        done_s, left_s = (sum(pair[i] for pair in pairs) for i in (0, 1))
        if done_s <= _LEAST_DONE * (done_s + left_s) or left_s <= 0:
            return ""
        left_s *= (time.monotonic() - self.training_since) / done_s
        return f"about {_clock(left_s)} left by the plan"

    def say(self, text: str) -> None:
        """Print a line that stays."""
        stamp = f"[dim]{_clock(time.monotonic() - self.begun)}[/dim]"
        self.console.print(f"{stamp} {text}", highlight=False, soft_wrap=self.live is None)

    def _say_done(self, event: StageDone, view: _TaskView) -> None:
        task, stage, name = event.task, event.stage, name_stage(event.stage)
        if event.cached:
            self.say(f"{task}: {name} is there already")
            return
        parts = [f"{task}: {name} done"]
        if view.outline.names and stage == view.stage and view.epochs:
            parts.append(f"{view.epochs} epoch{'s' if view.epochs > 1 else ''}")
        if view.best_value is not None and stage == view.stage and not view.beside:
            parts.append(f"best validation {name_stage_metric(stage, view.metric)} {view.best_value:.3f}")
        if left := self.describe_left():
            parts.append(left)
        self.say(", ".join(parts))

    def render(self) -> Listing:
        """Return the table of now."""
        headings = ("trials", "epoch", "best", "time")
        columns = [Column("task", words=True), Column("stage", words=True), *map(Column, headings)]
        title = [self.title, _clock(time.monotonic() - self.begun), self.describe_left()]
        listing = Listing(columns, title="   ".join(filter(None, title)))
        for task, view in self.views.items():
            place, most = view.outline.place(view.stage), view.outline.epochs.get(view.stage)
            listing.add(
                task,
                view.result or ", ".join(filter(None, (name_stage(view.stage), place))),
                str(len(view.trials) or ""),
                (f"{view.epochs} of {most}" if most else str(view.epochs)) if view.epochs else "",
                "" if view.best_value is None else f"{view.best_value:.3f}",
                _clock((view.ended or time.monotonic()) - view.begun),
            )
        return listing


def _describe_begin(event: StageBegan, outline: Outline) -> str:
    most = outline.epochs.get(event.stage)
    many = f"{event.trials} trial{'s' if event.trials != 1 else ''}"
    epochs = f" of up to {most} epoch{'s' if most > 1 else ''}" if most else ""
    place = outline.place(event.stage)
    return many + epochs + (f", {place}" if place else "")


def describe_event(event: News) -> str:
    """Return an event of the board as one line."""
    match event:
        case Note():
            return event.text
        case StageBegan():
            return f"{event.task}: {name_stage(event.stage)} begins"
        case StageDone():
            return f"{event.task}: {name_stage(event.stage)} done"
        case Epoch():
            return f"{event.name}, epoch {int(event.row['epoch']) + 1}"
        case End():
            return f"{event.name} ended: {event.stopped}"
        case Winner():
            return f"{event.name} won the search"
        case Failure():
            then = "restarts from its last epoch" if event.again else "given up"
            return f"{event.name} failed: {event.reason}; {then}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


class ReadingProgress(_Shown):
    """How far the reading of a source is: a moving line on a terminal, else a plain line every few seconds."""

    EVERY_S = 5.0

    def __init__(self, console: Console, title: str) -> None:
        self.console, self.title = console, title
        self.doing, self.rows = "", 0
        self.begun = self.printed = time.monotonic()
        self.live = make_live(console, self._line, transient=True)

    def advance(self, doing: str, rows: int) -> None:
        """Add `rows` processed rows; a new `doing` restarts the count."""
        if doing != self.doing:
            self.doing, self.rows = doing, 0
        self.rows += rows
        if self.live is None and time.monotonic() - self.printed >= self.EVERY_S:
            self.printed = time.monotonic()
            self.console.print(self._line(), highlight=False, soft_wrap=True)

    def _line(self) -> str:
        rows = f", {self.rows:,} rows" if self.rows else ""
        return f"[dim]{_clock(time.monotonic() - self.begun)}[/dim] {escape(self.title)}: {self.doing}{rows}"
