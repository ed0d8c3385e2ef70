"""Tables written piece by piece into one file that appears only when it is complete, and never over what is read."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from l2g_ray.atomic import temporary_beside
from l2g_ray.errors import UserError
from l2g_ray.storage import Location, as_location


def refuse_overwrite(sources: Iterable[str | Path | Location | None], targets: Iterable[str | Path | Location]) -> None:
    """Check, before anything is written, that no target is something that is read, nor another target.

    Links, hard links and other spellings are seen through. A target that is a folder is replaced as a whole, so it may not
    hold a source; a source that is a folder may hold no target that exists. Sources that are None are passed over.

    Raises
    ------
    UserError : naming both paths.
    """
    read = [as_location(source) for source in sources if source is not None]
    written: list[Location] = []
    for target in map(as_location, targets):
        for source in read:
            if _is_same(source, target) or _holds(target, source) or (_exists(target) and _holds(source, target)):
                raise UserError(f"{target}: would overwrite {source}, which is read; choose another output")
        if any(_is_same(other, target) for other in written):
            raise UserError(f"{target}: is given as an output twice; choose different outputs")
        written.append(target)


def _is_same(one: Location, other: Location) -> bool:
    if one.is_remote or other.is_remote:
        return one.text.rstrip("/") == other.text.rstrip("/")
    if os.path.exists(one.local) and os.path.exists(other.local):
        return os.path.samefile(one.local, other.local)
    return os.path.realpath(one.local) == os.path.realpath(other.local)


def _holds(folder: Location, inner: Location) -> bool:
    if folder.is_remote or inner.is_remote:
        return inner.text.startswith(f"{folder.text.rstrip('/')}/")
    return Path(os.path.realpath(folder.local)) in Path(os.path.realpath(inner.local)).parents


def _exists(location: Location) -> bool:
    return location.is_remote or os.path.exists(location.local)


SUFFIXES = (".csv", ".tsv", ".parquet")


class WholeFile:
    """A file that is written piece by piece and appears only when it is complete. Use in a `with` statement.

    The file takes its place at the end of the block; after an exception, or when nothing was written, nothing is left. A
    derived class sets `_writer`, something with `close()`, when it opens `_temporary`.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self._temporary = temporary_beside(target)
        self._writer: Any = None

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.target}: cannot be written ({error.strerror or error}); choose a folder you may write to"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with self._refusing():
                if self._writer is not None:
                    self._writer.close()
                    if kind is None:
                        self._put_in_place()
        finally:
            self._temporary.unlink(missing_ok=True)

    def _put_in_place(self) -> None:
        os.replace(self._temporary, self.target)


class TableWriter(WholeFile):
    """Takes tables of one schema into a CSV, TSV or Parquet file, by its suffix.

    `facts` say how the table was made: in Parquet they are metadata of the schema, `l2g_ray.<name>`; a CSV or TSV, which has
    no place for them, gets a file beside it, `<file>.meta.json`.

    Raises UserError for another suffix, or a place that cannot be written to.
    """

    def __init__(self, target: Path, facts: Mapping[str, str] | None = None) -> None:
        if target.suffix not in SUFFIXES:
            raise UserError(f"{target}: the output must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
        super().__init__(target)
        self.rows = 0
        self._facts = dict(facts or {})
        self._beside = target.with_name(f"{target.name}.meta.json") if facts and target.suffix != ".parquet" else None

    def write(self, table: pa.Table) -> None:
        """Append a table."""
        with self._refusing():
            try:
                if self._writer is None:
                    self._schema = table.schema
                    self._writer = self._open(table.schema)
                self._writer.write_table(self._fit(table))
            except pa.ArrowException as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(
                    f"{self.target}: these columns cannot be written as {self.target.suffix[1:]} ({reason}); write .parquet"
                ) from None
        self.rows += len(table)

    def _fit(self, table: pa.Table) -> pa.Table:
        """Return the table with the types of the first: those of JSON lines are guessed block by block."""
        if table.schema == self._schema:
            return table
        names = self._schema.names
        if set(table.column_names) != set(names):
            (name, *_) = sorted(set(table.column_names) ^ set(names))
            raise UserError(
                f"{self.target}: only some rows have a column '{name}'; give all rows the same columns, or leave it out"
            )
        for name in names:
            try:
                table[name].cast(self._schema.field(name).type)
            except pa.ArrowException:
                raise UserError(
                    f"{self.target}: column '{name}' holds {self._schema.field(name).type} first and "
                    f"{table.schema.field(name).type} from row {self.rows + 1} on; give it one type, or leave it out"
                ) from None
        return table.select(names).cast(self._schema)

    def _open(self, schema: pa.Schema) -> Any:
        if self.target.suffix == ".parquet":
            schema = schema.with_metadata({f"l2g_ray.{name}": text for name, text in self._facts.items()} or None)
            return pq.ParquetWriter(str(self._temporary), schema, compression="zstd")
        options = pyarrow.csv.WriteOptions(delimiter="\t" if self.target.suffix == ".tsv" else ",")
        return pyarrow.csv.CSVWriter(str(self._temporary), schema, write_options=options)

    def _put_in_place(self) -> None:
        if self._beside is not None:
            self._beside.unlink(missing_ok=True)  # so that it is never beside another table
        super()._put_in_place()
        if self._beside is not None:
            self._beside.write_text(json.dumps({"file": self.target.name, **self._facts}, indent=1) + "\n")
