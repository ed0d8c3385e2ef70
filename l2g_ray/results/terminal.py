"""Tables for a terminal of any width: whole as a table where they fit, else a block of lines for each row.

A number is never cut and no column is left out. Elsewhere than on a terminal a table is as wide as its lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table
    from rich.text import Text

# A column of words is not made narrower than this, if it has as much to say.
NARROWEST_TEXT = 16
WIDEST_TEXT = 60


def print_fitted(console: Console, renderable: RenderableType) -> None:
    """Print what is made of `Listing` and `Sentence`; elsewhere than on a terminal, nothing is wrapped or cut."""
    console.print(renderable, crop=console.is_terminal)


@dataclass(frozen=True)
class Sentence:
    """A paragraph: wrapped on a terminal, one line elsewhere."""

    text: str
    style: str = ""
    indent: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.padding import Padding
        from rich.text import Text

        if console.is_terminal:
            yield Padding(Text(self.text, style=self.style, overflow="fold"), (0, 0, 0, self.indent))
        else:
            yield Text(" " * self.indent + self.text, no_wrap=True, overflow="ignore")


@dataclass(frozen=True)
class Column:
    """A heading, and what is below it: words (left, wrapped where room is short) or numbers (right, never wrapped).

    Of a column of words, the first `whole` lines of a cell are not wrapped.
    """

    heading: str
    words: bool = False
    whole: int = 0


class Listing:
    """Rows of cells as a renderable of rich; a cell is text, or several lines of it, the first the most important.

    `keys` is how many leading columns name a row: they are the heading of its block where the table does not fit, and of
    equal neighbours the first is shown once in the table. On a terminal the table has lines and styles, elsewhere none.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        title: str = "",
        caption: Sequence[str] = (),
        keys: int = 1,
        sections: Sequence[int] = (),
    ) -> None:
        self.columns, self.title, self.caption, self.keys = list(columns), title, list(caption), keys
        # Numbers of rows before which a line is drawn.
        self.sections = set(sections)
        self.rows: list[list[list[str]]] = []
        self.strong: set[tuple[int, int]] = set()

    def add(self, *cells: str | Sequence[str], strong: Sequence[int] = ()) -> None:
        """Add a row; the first lines of the cells in the columns `strong` are in bold."""
        if len(cells) != len(self.columns):
            raise ValueError(f"got {len(cells)} cells for {len(self.columns)} columns")
        self.strong |= {(len(self.rows), column) for column in strong}
        self.rows.append([[cell] if isinstance(cell, str) else [line for line in cell if line] for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        plain = not console.is_terminal
        if self.title:
            yield Sentence(self.title, "bold")
        widths = self._measure(NARROWEST_TEXT if not plain else None)
        needed = sum(widths) + len(widths) - 1
        if plain:
            yield from console.render(self._make_table(plain, widths), options.update(width=needed))
        elif needed <= options.max_width:
            yield self._make_table(plain, widths)
        else:
            yield from self._stack(options.max_width)
        if self.caption and self.rows:
            yield Text("")
        yield from map(Sentence, self.caption)

    def _measure(self, words: int | None) -> list[int]:
        """Return what each column needs at least, one of `words` no more than that; a blank stands between two."""
        from rich.cells import cell_len

        widths = []
        for number, column in enumerate(self.columns):
            lines = [column.heading, *(line for row in self.rows for line in row[number])]
            widest = max(map(cell_len, lines))
            whole = max((cell_len(line) for row in self.rows for line in row[number][: column.whole]), default=0)
            widths.append(max(whole, min(widest, words)) if column.words and words else widest)
        return widths

    def _make_table(self, plain: bool, widths: Sequence[int]) -> Table:
        from rich import box
        from rich.table import Table

        table = Table(
            box=None if plain else box.SIMPLE_HEAD,
            header_style="" if plain else "bold",
            padding=(0, 1, 0, 0) if plain else 0,  # the lines' own divider is a blank
            pad_edge=False,
            show_edge=False,
        )
        for column, width in zip(self.columns, widths, strict=True):
            if column.words:
                most = max(width, WIDEST_TEXT)
                table.add_column(column.heading, min_width=width, max_width=most, overflow="fold")
            else:
                table.add_column(column.heading, min_width=width, justify="right", no_wrap=True)
        before: list[list[str]] | None = None
        for number, row in enumerate(self.rows):
            if number in self.sections:
                table.add_section()
            repeats = self.keys > 1 and before is not None and before[0] == row[0]
            cells = [self._join(number, i, cell, plain) for i, cell in enumerate(row)]
            table.add_row("" if repeats else cells[0], *cells[1:])
            before = row
        return table

    def _join(self, row: int, column: int, lines: Sequence[str], plain: bool) -> Text:
        from rich.text import Text

        strong, soft = ("", "") if plain else ("bold" if (row, column) in self.strong else "", "dim")
        return Text("\n").join(Text(line, style=soft if i else strong) for i, line in enumerate(lines))

    def _stack(self, width: int) -> Iterator[RenderableType]:
        from rich.text import Text

        if self.title:
            yield Text("")
        flows = all(len(cell) < 2 for row in self.rows for cell in row)
        for number, row in enumerate(self.rows):
            if number and not flows:
                yield Text("")
            keys = [cell for cell in row[: self.keys] if cell]
            yield Text(", ".join(cell[0] for cell in keys), style="bold", overflow="fold")
            for line in (line for cell in keys for line in cell[1:]):
                yield Text(f"  {line}", style="dim")
            pairs = zip(self.columns[self.keys :], row[self.keys :], strict=True)
            told = [(column.heading, cell) for column, cell in pairs if any(cell)]
            yield self._flow(told, width) if flows else self._make_block(told, width)

    def _flow(self, told: list[tuple[str, list[str]]], width: int) -> RenderableType:
        """Return headings and values one after the other, as many as fit on a line."""
        from rich.cells import cell_len
        from rich.text import Text

        lines: list[str] = []
        for heading, (value,) in told:
            pair = f"{heading} {value}"
            if lines and cell_len(lines[-1]) + cell_len(pair) + 2 <= width:
                lines[-1] += f", {pair}"
            else:
                lines.append(f"  {pair}")
        return Text("\n".join(lines), overflow="fold")

    def _make_block(self, told: list[tuple[str, list[str]]], width: int) -> RenderableType:
        """Return a line a heading, or several if a value does not fit on one."""
        from rich.cells import cell_len
        from rich.table import Table

        room = width - max((cell_len(heading) for heading, _ in told), default=0) - 3
        block = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
        block.add_column(no_wrap=True)
        block.add_column(overflow="fold")
        for heading, cell in told:
            together = " ".join(cell)
            block.add_row(f"  {heading}", together if cell_len(together) <= room else "\n".join(cell))
        return block
