"""Folders of split files; a user's own folder as a task, described by a `task.yaml` or by the train file's columns."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from l2g_ray.data.checks import label_texts
from l2g_ray.data.readers import READABLE_SUFFIXES, read_table
from l2g_ray.errors import UserError, nearest
from l2g_ray.tasks.catalogue import parse_task
from l2g_ray.tasks.schema import Kind, Task

BENCH = "user"
MAX_CLASSES = 50
_SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}


def find_split_files(source_folder: str | Path) -> dict[str, Path]:
    """The files train, valid (where there is one) and test of a folder. Raises UserError for none or several."""
    folder = Path(source_folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one with a train and a test file")
    found: dict[str, Path] = {}
    for split, names in _SPLIT_NAMES.items():
        wanted = {f"{name}{suffix}" for name in names for suffix in READABLE_SUFFIXES}
        matches = sorted(path for path in folder.iterdir() if path.name.lower() in wanted)
        if len(matches) > 1:
            raise UserError(f"{folder}: several {split} files ({', '.join(path.name for path in matches)}); keep one")
        if matches:
            found[split] = matches[0]
        elif split != "valid":
            raise UserError(f"{folder}: no {split} file; add {split}.csv, .tsv, .parquet or .fasta")
    return found


def prepare_user_source(path: str | Path) -> tuple[Task, Path]:
    """The task that a folder holds, and the folder, ready for `prepare`.

    With a `task.yaml` its fields are taken (`bench` and `name` may be left out). Otherwise the kind follows from the
    column `label` of the train file: two values are binary, up to 50 whole numbers or texts multiclass (class names
    sorted), other numbers a regression. Without a column `label` all numeric columns are the outputs of a regression.

    Raises
    ------
    UserError : no folder or train / test file, a `task.yaml` that does not fit, or labels that fit no kind.
    """
    folder = Path(path)
    files = find_split_files(folder)
    described = _read_description(folder / "task.yaml")
    fields: dict[str, Any] = {"bench": BENCH, "name": _make_name(folder), **described}
    if "kind" not in described or "labels" not in described:
        table = read_table(files["train"], fields.get("sequence_column", "sequence"))
        fields = {**_infer(table, files["train"]), **fields}
    return parse_task(fields, str(folder / "task.yaml") if described else str(files["train"])), folder


def _read_description(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(
            f"{path}: not valid YAML ({' '.join(str(error).split())}); correct it or remove the file"
        ) from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: holds no mapping; write one task field a line, for example 'kind: binary'")
    return raw


def _make_name(folder: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", folder.resolve().name).lstrip("._-")
    return name or "task"


def _infer(table: pa.Table, path: Path) -> dict[str, object]:
    if "label" not in table.column_names:
        return _infer_outputs(table, path)
    texts = {text for text in label_texts(table["label"]) if text is not None}
    if not texts:
        raise UserError(f"{path}: column 'label' is empty; fill in the labels")
    numbers = {text: float(text) for text in texts if _is_number(text)}
    whole = all(number.is_integer() for number in numbers.values())
    if len(numbers) == len(texts) and (not whole or len(texts) > MAX_CLASSES):
        return {"kind": "regression", "labels": ("label",)}
    if len(texts) > MAX_CLASSES:
        # Mostly numbers: a regression whose odd value `prepare` will name by its row.
        if len(numbers) > len(texts) / 2:
            return {"kind": "regression", "labels": ("label",)}
        raise UserError(
            f"{path}: column 'label' holds {len(texts):,} different texts; at most {MAX_CLASSES} classes, or numbers"
        )
    if len(texts) == 1:
        raise UserError(
            f"{path}: all {table.num_rows:,} rows have the label '{texts.pop()}'; add rows of another class"
        )
    kind: Kind = "binary" if len(texts) == 2 else "multiclass"
    labels = sorted(texts, key=lambda text: numbers[text]) if len(numbers) == len(texts) else sorted(texts)
    return {"kind": kind, "labels": tuple(labels)}


def _infer_outputs(table: pa.Table, path: Path) -> dict[str, object]:
    others = [name for name in table.column_names if name not in ("id", "sequence")]
    outputs = tuple(
        name for name in others if pa.types.is_floating(table[name].type) or pa.types.is_integer(table[name].type)
    )
    if not outputs:
        known = nearest("label", others) if others else "it has only sequences"
        raise UserError(
            f"{path}: no column 'label' and no column of numbers ({known}); name the labels' column 'label'"
        )
    return {"kind": "regression", "labels": outputs, "label_columns": outputs}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
