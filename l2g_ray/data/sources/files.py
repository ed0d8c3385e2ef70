"""A person's own tables and FASTA files: a folder of split files, one file, or one file a class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from l2g_ray.data.checks import label_texts, missing_texts, show
from l2g_ray.data.infer import infer_fields, make_name
from l2g_ray.data.raw import ALL, Piece, RawTask, SourceOptions
from l2g_ray.data.readers import (
    FASTA_SUFFIXES,
    iter_tables,
    make_header,
    read_table,
    recognise,
    split_header,
    strip_suffixes,
    whole_header,
)
from l2g_ray.data.text import readable, split_suffix
from l2g_ray.errors import UserError, nearest
from l2g_ray.storage import Location
from l2g_ray.tasks.catalogue import parse_task
from l2g_ray.tasks.schema import Task

BENCH = "user"
DESCRIPTION = "task.yaml"
SPLIT_NAMES = {"train": ("train", "training"), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}
Tables = Callable[[], Iterator[pa.Table]]


def find_splits(folder: Location) -> dict[str, list[Location]]:
    """Return the files of train, valid and test in a folder: `train.csv`, or all files of a folder `train/` that has no
    subfolders. Empty where there is no train. Raises UserError for a train without test, or several files for a split.
    """
    children = folder.children()
    found: dict[str, list[Location]] = {}
    for split, names in SPLIT_NAMES.items():
        files = [c for c in children if recognise(c.name) and strip_suffixes(c.name).lower() in names]
        folders = [c for c in children if c.name.lower() in names and c.is_dir()]
        if len(files) + len(folders) > 1:
            raise UserError(
                f"{folder}: several {split} files ({', '.join(c.name for c in [*files, *folders])}); keep one"
            )
        if folders:
            files = [c for c in folders[0].children() if recognise(c.name)]
        if files:
            found[split] = files
    if "train" in found and "test" not in found:
        raise UserError(f"{folder}: no test file; add test.csv, .tsv, .jsonl, .parquet or .fasta")
    if "test" in found and "train" not in found:
        raise UserError(f"{folder}: no train file; add train.csv, .tsv, .jsonl, .parquet or .fasta")
    return found


def open_folder(folder: Location, options: SourceOptions, task: Task | None = None) -> RawTask:
    """Return the task that a folder holds: split files, FASTA files that are a class each, or Parquet parts of one
    table.

    With a `task.yaml` its fields are taken (`bench` and `name` may be left out); what is missing follows from the
    train file (see `infer_fields`). `task` is given for a folder of the catalogue.

    Raises
    ------
    UserError : nothing readable there, a `task.yaml` that does not fit, or labels that fit no kind.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one with a train and a test file")
    splits = find_splits(folder)
    if not splits:
        classes = [c for c in folder.children() if split_suffix(c.name)[0].endswith(FASTA_SUFFIXES)]
        if len(classes) > 1:
            return open_classes(classes, options)
        if parts := [c for c in folder.children() if recognise(c.name) == "parquet"]:
            return _open_table(parts, make_name(strip_suffixes(folder.name)), options)
        raise UserError(f"{folder}: no train file; add train.csv, .tsv, .jsonl, .parquet or .fasta, and a test file")
    if _are_classes(splits):
        return _open_class_splits(folder, splits, options)
    if task is None:
        described = _read_description(folder / DESCRIPTION)
        where = str(folder / DESCRIPTION) if described else str(splits["train"][0])
        task = _make_task(make_name(folder.name), described, splits["train"], options, where)
    files = {f"{split}{i}": f for split, found in splits.items() for i, f in enumerate(found)}
    pieces = {split: [_make_piece(f, task, options) for f in found] for split, found in splits.items()}
    return _finish(task, pieces, files, options)


def open_file(location: Location, options: SourceOptions) -> RawTask:
    """Return the task that one table or FASTA file holds, as the one split 'all'."""
    return _open_table([location], make_name(strip_suffixes(location.name)), options)


def _open_table(parts: list[Location], name: str, options: SourceOptions) -> RawTask:
    """Read one table in one file or several."""
    task = _make_task(name, {}, parts, options, str(parts[0]))
    pieces = [_make_piece(part, task, options) for part in parts]
    return _finish(task, {ALL: pieces}, {f"all{i}": part for i, part in enumerate(parts)}, options)


def open_classes(files: list[Location], options: SourceOptions) -> RawTask:
    """Return files that are a class each, named after the file (or by `options.labels`, in the order of the files)."""
    labels = options.labels or tuple(strip_suffixes(f.name) for f in files)
    _check_class_names(files, labels, options)
    task = _class_task(options.name or "_vs_".join(labels)[:60], labels, options)
    pieces = [_label_piece(f, label, options) for f, label in zip(files, labels, strict=True)]
    return _finish(task, {ALL: pieces}, dict(zip(labels, files, strict=True)), options)


def _check_class_names(files: list[Location], labels: tuple[str, ...], options: SourceOptions) -> None:
    if len(labels) != len(files) or len(set(labels)) != len(labels):
        raise UserError(
            f"{len(files)} files, a class each, need as many different names, not {', '.join(labels)}; "
            "rename the files, or give --labels in their order"
        )
    for f, label in zip(files, labels, strict=True):
        if label_texts(pa.chunked_array([[label]]), missing_texts(options.na_values))[0] != [label]:
            raise UserError(
                f"{f}: a class cannot be named '{label}', which reads as a missing value or a number in another form; "
                "rename the file, or give --labels in the order of the files"
            )


def _are_classes(splits: dict[str, list[Location]]) -> bool:
    """train/pos.fa, train/neg.fa: several FASTA files of the same names in each split."""
    names = {split: [strip_suffixes(f.name) for f in files] for split, files in splits.items()}
    fasta = all(split_suffix(f.name)[0].endswith(FASTA_SUFFIXES) for files in splits.values() for f in files)
    alike = all(sorted(found) == sorted(names["train"]) for found in names.values())
    return fasta and len(names["train"]) > 1 and alike


def _open_class_splits(folder: Location, splits: dict[str, list[Location]], options: SourceOptions) -> RawTask:
    names = [strip_suffixes(f.name) for f in splits["train"]]
    labels = options.labels or tuple(names)
    _check_class_names(splits["train"], labels, options)
    task = _class_task(options.name or make_name(folder.name), labels, options)
    named = dict(zip(names, labels, strict=True))
    pieces = {
        split: [_label_piece(f, named[strip_suffixes(f.name)], options) for f in found]
        for split, found in splits.items()
    }
    files = {f"{split}/{f.name}": f for split, found in splits.items() for f in found}
    return _finish(task, pieces, files, options)


def _class_task(name: str, labels: tuple[str, ...], options: SourceOptions) -> Task:
    fields: dict[str, Any] = {
        "bench": BENCH,
        "name": make_name(name),
        "kind": "binary" if len(labels) == 2 else "multiclass",
        "labels": labels,
        "strand_specific": options.strand_specific,
    }
    return parse_task(fields, "the files' names")


def _make_task(name: str, described: dict[str, Any], files: list[Location], options: SourceOptions, where: str) -> Task:
    fields: dict[str, Any] = {"bench": BENCH, "name": name, "sequence_column": options.sequence_column, **described}
    given = options.model_dump(include={"name", "kind", "labels", "label_columns"}, exclude_none=True)
    fields |= {key: value for key, value in given.items() if value}
    if options.strand_specific:
        fields["strand_specific"] = True
    columns = fields.get("label_columns") or ()
    texts = [fields["sequence_column"], *(columns if isinstance(columns, list | tuple) else [None])]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: sequence_column must be a name and label_columns a list of names; correct the file")
    if "kind" not in fields or "labels" not in fields:
        tables = [table for f in files for table in _label_tables(f, fields["sequence_column"], options)]
        ignored = {"id", "sequence", options.id_column, options.split_column, options.group_column}
        missing = missing_texts(options.na_values)
        inferred = infer_fields(tables, str(files[0]), tuple(columns), ignored, fields.get("kind"), missing)
        if isinstance(own_notes := fields.get("notes"), list):
            fields["notes"] = [*inferred["notes"], *own_notes]
        fields = inferred | fields
    return parse_task(fields, where)


def _label_tables(f: Location, sequence_column: str, options: SourceOptions) -> Iterator[pa.Table]:
    """Yield what a file holds beside sequences: labels are looked at before the task is known."""
    for table in _read(f, sequence_column, options)():
        yield table.drop_columns(["sequence"])


def _make_piece(f: Location, task: Task, options: SourceOptions) -> Piece:
    return Piece(str(f), _read(f, task.sequence_column, options))


def _label_piece(f: Location, label: str, options: SourceOptions) -> Piece:
    read = _read(f, options.sequence_column, options.model_copy(update={"label_table": None}), labels_elsewhere=True)

    def tables() -> Iterator[pa.Table]:
        for table in read():
            column = pa.array([label]).take(pa.array(np.zeros(table.num_rows, np.int64)))
            kept = table.drop_columns(["label"]) if "label" in table.column_names else table
            yield kept.append_column("label", column)

    return Piece(str(f), tables)


def _read(f: Location, sequence_column: str, options: SourceOptions, labels_elsewhere: bool = False) -> Tables:
    """Return the rows of a file. A bar in a FASTA header sets off a label only where labels come from the headers."""
    if options.header_pattern:
        header = make_header(options.header_pattern)
    else:
        header = whole_header if labels_elsewhere or options.label_table is not None else split_header

    def plain() -> Iterator[pa.Table]:
        for table in iter_tables(f, sequence_column=sequence_column, header=header):
            if options.id_column in table.column_names:
                if options.id_column != "id":
                    with readable(str(f)):
                        table = table.set_column(0, "id", table[options.id_column].cast(pa.string()))
            elif options.label_table is None:
                raise UserError(
                    f"{f}: no column '{options.id_column}' ({nearest(options.id_column, table.column_names)}); "
                    "correct --id-column"
                )
            yield table

    return plain if options.label_table is None else _join_labels(plain, str(f), options)


def _join_labels(read: Tables, where: str, options: SourceOptions) -> Tables:
    """Add the label table's columns by id."""
    assert options.label_table is not None
    path = str(options.label_table)

    def tables() -> Iterator[pa.Table]:
        labels = _read_label_table(path, options.id_column)
        ids = labels["id"].combine_chunks()
        first_row = 1
        for table in read():
            rows = pc.index_in(table["id"], value_set=ids)
            if rows.null_count:
                row = pc.index(pc.is_null(rows), pa.scalar(True)).as_py()
                name = show(table["id"][row].as_py() or "")
                raise UserError(
                    f"{where}, row {row + first_row}: id '{name}' is not in {path} "
                    f"({nearest(name, ids[:1000].to_pylist())}); add it there, or remove the sequence"
                )
            kept = table.select([n for n in table.column_names if n == "sequence" or n not in labels.column_names])
            found = labels.take(rows)
            for name in found.column_names:
                kept = kept.append_column(name, found[name])
            first_row += table.num_rows
            yield kept

    return tables


def _read_label_table(path: str, id_column: str) -> pa.Table:
    """Ids and labels; any column of text may be the id."""
    table = read_table(path, sequence_column=id_column, sequence_flag="--id-column")
    ids = pc.fill_null(table["sequence"].cast(pa.string()), "")
    columns = {"id": ids} | {n: table[n] for n in table.column_names if n not in ("id", "sequence")}
    counts = pc.value_counts(ids.combine_chunks())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        name = repeated.field("values")[0].as_py()
        raise UserError(f"{path}: id '{name}' occurs more than once; keep one row of each id")
    return pa.table(columns)


def _finish(task: Task, pieces: dict[str, list[Piece]], files: dict[str, Location], options: SourceOptions) -> RawTask:
    if options.label_table is not None:
        files = files | {"labels": Location(str(options.label_table))}
    return RawTask(task, pieces, files, options)


def _read_description(location: Location) -> dict[str, Any]:
    if not location.exists():
        return {}
    try:
        with readable(str(location)):
            raw = yaml.safe_load(location.read_text())
    except yaml.YAMLError as error:
        raise UserError(
            f"{location}: not valid YAML ({' '.join(str(error).split())}); correct it or remove the file"
        ) from None
    if not isinstance(raw, dict):
        raise UserError(f"{location}: holds no mapping; write one task field a line, for example 'kind: binary'")
    return raw
