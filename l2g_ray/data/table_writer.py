"""Tables written piece by piece into one file that appears only when it is complete."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from l2g_ray.errors import UserError

SUFFIXES = (".csv", ".tsv", ".parquet")


class TableWriter:
    """Takes tables of one schema into a CSV, TSV or Parquet file, by its suffix. Use in a `with` statement.

    The file takes its place at the end of the block; after an exception nothing is left. Raises UserError for another
    suffix, or a place that cannot be written to.
    """

    def __init__(self, target: Path) -> None:
        if target.suffix not in SUFFIXES:
            raise UserError(f"{target}: the output must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
        self.target = target
        self.rows = 0
        self._temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        self._writer: Any = None

    def write(self, table: pa.Table) -> None:
        """Append a table."""
        try:
            if self._writer is None:
                self._writer = self._open(table.schema)
            self._writer.write_table(table)
        except OSError as error:
            raise _refuse(self.target, error) from None
        self.rows += len(table)

    def _open(self, schema: pa.Schema) -> Any:
        if self.target.suffix == ".parquet":
            return pq.ParquetWriter(str(self._temporary), schema, compression="zstd")
        options = pyarrow.csv.WriteOptions(delimiter="\t" if self.target.suffix == ".tsv" else ",")
        return pyarrow.csv.CSVWriter(str(self._temporary), schema, write_options=options)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
                if kind is None:
                    os.replace(self._temporary, self.target)
        except OSError as error:
            raise _refuse(self.target, error) from None
        finally:
            self._temporary.unlink(missing_ok=True)


def _refuse(target: Path, error: OSError) -> UserError:
    return UserError(f"{target}: cannot be written ({error.strerror or error}); choose a folder you may write to")
