"""What kind of task a table's columns make, when nobody says so."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from l2g_ray.data.checks import MISSING, as_numbers, count_missing, label_texts, name_missing, show
from l2g_ray.errors import UserError, nearest
from l2g_ray.names import clean
from l2g_ray.tasks.schema import Kind

MAX_CLASSES = 50  # more are classes only where each has MIN_CLASS_ROWS rows
MIN_CLASS_ROWS = 3
LABEL = "label"
# Columns that say which row it is, or where in a genome, by their lower-case names without '_', '.' and blanks.
_INDEX = re.compile(r"|index|unnamed:\d+|level\d+|indexlevel\d+")
_PLACES = frozenset(
    [
        "chrom",
        "chr",
        "chromosome",
        "contig",
        "seqname",
        "seqnames",
        "start",
        "end",
        "stop",
        "pos",
        "position",
        "chromstart",
        "chromend",
        "genomicstart",
        "genomicend",
        "summit",
        "strand",
        "width",
    ]
)


def make_name(text: str) -> str:
    """Return a task's name from the name of a file or folder."""
    return clean(text, otherwise="task")


def infer_fields(
    tables: Iterable[pa.Table],
    where: str,
    label_columns: tuple[str, ...] = (),
    ignored: set[str | None] = frozenset(),  # type: ignore[assignment]
    kind: Kind | None = None,
    missing: frozenset[str] = MISSING,
) -> dict[str, Any]:
    """`kind`, `labels`, `label_columns` and `notes` of a task, from the tables of its train rows.

    One label column (`label` when none is named): two values are binary; more are multiclass (class names sorted) where
    they are texts or whole numbers, up to 50 of them, or texts or the numbers from 0 without gaps, each in at least 3
    rows; other numbers are a regression. `kind` overrules this. Several named columns are outputs of a regression, or,
    where all of them hold only 0 and 1, labels of a multilabel task.

    Without a named column and a column `label`, the columns of numbers come into question, but for the `ignored`, row
    numbers and places in a genome: one of them is the label, several that hold only 0 and 1 are multilabel.
    `notes` say what was chosen and how to change it, where another choice was possible.

    Raises UserError for labels that fit no kind, and for several columns of numbers of which none is named.
    """
    try:
        table = pa.concat_tables(list(tables), promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{where}: files of one split do not go together ({reason}); write them all in one format"
        ) from None
    if not label_columns and LABEL in table.column_names:
        label_columns = (LABEL,)
    for column in label_columns:
        if column not in table.column_names:
            raise UserError(
                f"{where}: no column '{column}' ({nearest(column, table.column_names)}); correct --label-column"
            )
    notes: list[str] = []
    if not label_columns:
        label_columns = _find_outputs(table, where, ignored, missing, notes)
    if len(label_columns) == 1:
        fields = _infer_one(table, label_columns[0], where, kind, missing, notes)
    else:
        flags = all(_is_flags(as_numbers(table[name], missing)) for name in label_columns)
        if flags and kind is None:
            notes.append("Kind multilabel: the label columns hold only 0 and 1; --kind regression reads amounts.")
        fields = {"kind": kind or ("multilabel" if flags else "regression"), "labels": label_columns}
    return fields | {"label_columns": label_columns, "notes": tuple(notes)}


def _find_outputs(
    table: pa.Table, where: str, ignored: set[str | None], missing: frozenset[str], notes: list[str]
) -> tuple[str, ...]:
    """Return the columns that are labels although none is named so: the only one of numbers, or several of 0 and 1."""
    others = [name for name in table.column_names if name not in ignored]
    columns = {name: values for name in others if (values := as_numbers(table[name], missing)) is not None}
    left_out = {name: reason for name, values in columns.items() if (reason := _no_label(name, values))}
    outputs = tuple(name for name in columns if name not in left_out)
    shown = ", ".join(f"'{show(name)}' ({reason})" for name, reason in left_out.items())
    if not outputs:
        known = nearest(LABEL, others) if others else "it has only sequences"
        raise UserError(
            f"{where}: no column 'label' and no column of numbers ({shown or known}); "
            "name the labels' column 'label', or give it with --label-column"
        )
    if len(outputs) > 1 and not all(_is_flags(columns[name]) for name in outputs):
        flags = " ".join(f"--label-column {shlex.quote(name)}" for name in outputs[:4])
        more = " ..." if len(outputs) > 4 else ""
        raise UserError(
            f"{where}: no column 'label', and {len(outputs)} columns of numbers that could be it; say which are labels, "
            f"all or some of: {flags}{more}"
        )
    if shown or len(outputs) == 1:
        names = "columns of 0 and 1" if len(outputs) > 1 else f"column '{show(outputs[0])}'"
        notes.append(
            f"Labels: {names}, {f'not {shown}' if shown else 'the only one of numbers'}; --label-column names others."
        )
    return outputs


def _no_label(name: str, values: np.ndarray) -> str:
    """Return why a column of numbers is no label; '' where it may be one."""
    plain = re.sub(r"[\s_.]", "", name.lower())
    if _INDEX.fullmatch(plain):
        return "row number" if name else "no name"
    if plain in _PLACES:
        return "place in a genome"
    if np.isnan(values).all():
        return "empty"
    n = len(values)
    low = values.min() if n > 2 else np.nan
    counts = low in (0, 1) and np.array_equal(np.sort(values), np.arange(low, low + n))
    return "counts the rows" if counts else ""


def _is_flags(values: np.ndarray | None) -> bool:
    return values is not None and bool(np.isin(values[~np.isnan(values)], (0, 1)).all())


def _infer_one(
    table: pa.Table, name: str, where: str, kind: Kind | None, missing: frozenset[str], notes: list[str]
) -> dict[str, Any]:
    column = table[name]
    if pa.types.is_struct(column.type) or pa.types.is_map(column.type):
        raise UserError(f"{where}: column '{name}' holds {column.type}; give one column a label with --label-column")
    if pa.types.is_nested(column.type):
        raise UserError(f"{where}: column '{name}' holds lists; give --kind and --labels, one name a value")
    if kind in ("regression", "multilabel"):
        return {"kind": kind, "labels": (name,)}
    texts, codes = label_texts(column, missing)
    rows: Counter[str] = Counter()
    for text, n in zip(texts, np.bincount(codes, minlength=len(texts)).tolist(), strict=True):
        if text is not None:
            rows[text] += n
    kind = kind or _guess_kind(rows, f"{where}: column '{name}'", name, notes)
    if kind == "regression":
        return {"kind": kind, "labels": (name,)}
    _check_rows(rows, count_missing(column, missing), table.num_rows, where, name)
    labels = sorted(rows, key=float) if all(map(_is_number, rows)) else sorted(rows)
    return {"kind": kind, "labels": tuple(labels)}


def _guess_kind(rows: Counter[str], where: str, name: str, notes: list[str]) -> Kind:
    """Return the kind that a column's labels make, from the number of rows of each."""
    n = len(rows)
    numbers = [float(text) for text in rows if _is_number(text)]
    if n and len(numbers) == n:
        if not all(number.is_integer() for number in numbers):
            return "regression"
        coded = sorted(numbers) == list(range(n)) and min(rows.values()) >= MIN_CLASS_ROWS
        shown = f"column '{show(name)}' holds {n} different whole numbers"
        if n > MAX_CLASSES and not coded:
            notes.append(
                f"Kind regression: {shown}, more than {MAX_CLASSES}, and not 0 to {n - 1} in {MIN_CLASS_ROWS} rows each; "
                "--kind multiclass makes each a class."
            )
            return "regression"
        if n > 2:
            notes.append(f"Kind multiclass: {shown}; --kind regression reads them as amounts.")
    elif n > MAX_CLASSES:
        # Mostly numbers: a regression whose odd value `prepare` will name by its row.
        if len(numbers) > n / 2:
            return "regression"
        if min(rows.values()) < MIN_CLASS_ROWS:
            raise UserError(
                f"{where} holds {n:,} different texts, more than {MAX_CLASSES}, and some in fewer than {MIN_CLASS_ROWS} "
                "rows; name another column with --label-column, or make each a class with --kind multiclass"
            )
    return "binary" if n == 2 else "multiclass"


def _check_rows(rows: Counter[str], unread: dict[str, int], n_rows: int, where: str, name: str) -> None:
    """Raise UserError where classes do not cover the rows, or are fewer than two."""
    if unread:
        n = sum(unread.values())
        raise UserError(
            f"{where}: {n:,} of {n_rows:,} rows of column '{show(name)}' {'says' if n == 1 else 'say'} "
            f"{name_missing(unread)}, which is read as missing, and a class must be known in each row; remove these rows, "
            f"or read it as a class with --na-values ''"
        )
    if not rows:
        raise UserError(f"{where}: column '{name}' is empty; fill in the labels")
    if len(rows) == 1:
        ((label, n),) = rows.items()
        empty = f", and {n_rows - n:,} have none" if n < n_rows else ""
        raise UserError(f"{where}: {_all_rows(n)} the label '{show(label)}'{empty}; add rows of another class")
    if len(rows) == n_rows > MAX_CLASSES:
        raise UserError(
            f"{where}: each of the {n_rows:,} rows of column '{show(name)}' has a different label, so no class can be "
            "learned; give --kind regression, or another column with --label-column"
        )


def _all_rows(n_rows: int) -> str:
    return "the only row has" if n_rows == 1 else f"all {n_rows:,} rows have"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
