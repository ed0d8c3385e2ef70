"""Progress of one computation: a bar on a terminal or in a notebook, else nothing or lines of a log."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

NOTEBOOK_EVERY_S = 0.2


class Bar:
    """A bar that disappears when the computation is over. Use in a `with` statement.

    On a terminal it is drawn by rich, in a notebook as HTML below the cell. Elsewhere nothing is shown; with `as_lines` a
    line is printed at the start and at each quarter. `quiet` shows nothing anywhere.
    """

    def __init__(self, title: str, total: int | None = None, *, as_lines: bool = False, quiet: bool = False) -> None:
        self.title, self.total = title, total
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._draw: Callable[[str, int, int | None], None] = lambda what, done, total: None
        self._close: Callable[[], None] = lambda: None
        self._quiet, self._as_lines = quiet, as_lines
        self._printed: set[tuple[str, int]] = set()

    def __enter__(self) -> Self:
        if self._quiet:
            return self
        if self._console.is_jupyter:
            self._open_in_notebook()
        elif self._console.is_terminal:
            self._open_on_terminal()
        elif self._as_lines:
            self._draw = self._print
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def update(self, done: int) -> None:
        """Show that `done` are done."""
        self._draw(self.title, done, self.total)

    def show(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` of something are done; `what` replaces the title."""
        self._draw(what, done, total)

    def _open_on_terminal(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        progress = Progress(*columns, console=self._console, transient=True)
        row = progress.add_task(self.title, total=self.total)
        progress.start()
        self._draw = lambda what, done, total: progress.update(row, description=what, completed=done, total=total)
        self._close = progress.stop

    def _open_in_notebook(self) -> None:
        from html import escape

        cell, shown_at = NotebookOutput(), 0.0

        def draw(what: str, done: int, total: int | None) -> None:
            nonlocal shown_at
            if time.monotonic() - shown_at >= NOTEBOOK_EVERY_S:
                shown_at = time.monotonic()
                amount = "" if total is None else f" value='{done}' max='{max(total, 1)}'"
                count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
                cell.show(f"{escape(what)} <progress{amount}></progress> {count}")

        self._draw, self._close = draw, lambda: cell.show("")

    def _print(self, what: str, done: int, total: int | None) -> None:
        quarter = 4 * done // max(total or 1, 1)
        if (what, quarter) not in self._printed:
            self._printed.add((what, quarter))
            self._console.print(f"{what}, {done:,} of {total:,}" if done and total else what)


class NotebookOutput:
    """A piece of HTML below a notebook's cell that is replaced each time it is shown."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html: Any = HTML
        self._handle: Any = display(HTML(""), display_id=True)

    def show(self, html: str) -> None:
        """Replace what is shown."""
        self._handle.update(self._html(html))


class NotebookLive:
    """What `rich.live.Live` is on a terminal: `render` is shown again each second, and a last time at the end."""

    EVERY_S = 1.0

    def __init__(self, render: Callable[[], RenderableType], transient: bool) -> None:
        self._render, self._transient = render, transient
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._output = NotebookOutput()
        self._thread = threading.Thread(target=self._refresh, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._output.show("" if self._transient else self._draw())

    def _refresh(self) -> None:
        while not self._over.is_set():
            self._output.show(self._draw())
            self._over.wait(self.EVERY_S)

    def _draw(self) -> str:
        console = Console(record=True, file=io.StringIO(), width=110, force_jupyter=False, highlight=False)
        console.print(self._render())
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def make_live(
    console: Console, render: Callable[[], RenderableType], transient: bool = False
) -> Live | NotebookLive | None:
    """Return a context that keeps showing what `render` returns on a terminal or in a notebook; None elsewhere."""
    from rich.live import Live

    if console.is_jupyter and not console.quiet:
        return NotebookLive(render, transient)
    if not console.is_terminal:
        return None
    return Live(console=console, refresh_per_second=4, get_renderable=render, transient=transient)
