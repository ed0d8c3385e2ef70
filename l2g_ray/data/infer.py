"""What kind of task a table's columns make, when nobody says so."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from l2g_ray.data.checks import as_numbers, label_texts, show
from l2g_ray.errors import UserError, nearest
from l2g_ray.names import clean
from l2g_ray.tasks.schema import Kind

MAX_CLASSES = 50
LABEL = "label"


def make_name(text: str) -> str:
    """A task's name from the name of a file or folder."""
    return clean(text, otherwise="task")


def infer_fields(
    tables: Iterable[pa.Table],
    where: str,
    label_columns: tuple[str, ...] = (),
    ignored: set[str | None] = frozenset(),  # type: ignore[assignment]
    kind: Kind | None = None,
) -> dict[str, object]:
    """`kind`, `labels` and `label_columns` of a task, from the tables of its train rows.

    One label column (`label` when none is named): two values are binary, up to 50 whole numbers or texts multiclass
    (class names sorted), other numbers a regression. Several columns, or none named and no column `label`: all columns
    of numbers but the `ignored` are outputs of a regression, or, where all of them hold only 0 and 1, labels of a
    multilabel task.

    Raises UserError for labels that fit no kind.
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
    if len(label_columns) == 1:
        fields = _infer_one(table, label_columns[0], where, kind)
        return fields | {"label_columns": label_columns}
    return _infer_outputs(table, label_columns, where, ignored, kind)


def _infer_one(table: pa.Table, name: str, where: str, kind: Kind | None) -> dict[str, object]:
    column = table[name]
    if pa.types.is_struct(column.type) or pa.types.is_map(column.type):
        raise UserError(f"{where}: column '{name}' holds {column.type}; give one column a label with --label-column")
    if pa.types.is_nested(column.type):
        raise UserError(f"{where}: column '{name}' holds lists; give --kind and --labels, one name a value")
    if kind in ("regression", "multilabel"):
        return {"kind": kind, "labels": (name,)}
    texts = {text for text in label_texts(column)[0] if text is not None}
    if not texts:
        raise UserError(f"{where}: column '{name}' is empty; fill in the labels")
    numbers = {text: float(text) for text in texts if _is_number(text)}
    whole = all(number.is_integer() for number in numbers.values())
    if kind is None:
        if len(numbers) == len(texts) and (not whole or len(texts) > MAX_CLASSES):
            return {"kind": "regression", "labels": (name,)}
        # Mostly numbers: a regression whose odd value `prepare` will name by its row.
        if len(texts) > MAX_CLASSES and len(numbers) > len(texts) / 2:
            return {"kind": "regression", "labels": (name,)}
    if len(texts) > MAX_CLASSES:
        raise UserError(
            f"{where}: column '{name}' holds {len(texts):,} different texts; at most {MAX_CLASSES} classes, or numbers"
        )
    if len(texts) == 1:
        raise UserError(
            f"{where}: {_all_rows(table.num_rows)} the label '{show(texts.pop())}'; add rows of another class"
        )
    labels = sorted(texts, key=lambda text: numbers[text]) if len(numbers) == len(texts) else sorted(texts)
    return {"kind": kind or ("binary" if len(texts) == 2 else "multiclass"), "labels": tuple(labels)}


def _infer_outputs(
    table: pa.Table, columns: tuple[str, ...], where: str, ignored: set[str | None], kind: Kind | None
) -> dict[str, object]:
    others = [name for name in table.column_names if name not in ignored]
    values = {name: as_numbers(table[name]) for name in columns or others}
    # A named column with an odd value is an output all the same: `prepare` names its row.
    outputs = columns or tuple(name for name, found in values.items() if found is not None)
    if not outputs:
        known = nearest(LABEL, others) if others else "it has only sequences"
        raise UserError(
            f"{where}: no column 'label' and no column of numbers ({known}); "
            "name the labels' column 'label', or give it with --label-column"
        )
    found = [values[name] for name in outputs]
    flags = all(v is not None and bool(np.isin(v[~np.isnan(v)], (0, 1)).all()) for v in found)
    if flags and len(outputs) == 1 and not columns and kind != "multilabel":
        return _infer_one(table, outputs[0], where, kind) | {"label_columns": outputs}
    guessed = "multilabel" if flags and len(outputs) > 1 else "regression"
    return {"kind": kind or guessed, "labels": outputs, "label_columns": outputs}


def _all_rows(n_rows: int) -> str:
    return "the only row has" if n_rows == 1 else f"all {n_rows:,} rows have"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
