"""Genomic Benchmarks (intervals, or a text file a sequence) and DeepSTARR (a table, or FASTA) as published.

Genomic Benchmarks have a folder for each split and in it something for each class: `train/negative.csv.gz`, with columns id, region,
start, end and strand, or the folder `train/negative/`. Classes are numbered in the alphabetical order of their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from l2g_ray.data.genome import Genome
from l2g_ray.data.raw import Piece, RawTask, SourceOptions
from l2g_ray.data.readers import iter_tables
from l2g_ray.data.text import COMPRESSIONS, iter_delimited, readable
from l2g_ray.errors import UserError, nearest
from l2g_ray.storage import as_location
from l2g_ray.tasks.schema import Task

SPLITS = ("train", "test")
BLOCK_ROWS = 2_000
# How far above the task's folder references are looked for: DIR/genomic_benchmarks/datasets/<name>.
_LEVELS_UP = 4
_COLUMNS = ("id", "region", "start", "end", "strand")
_TABLE_SUFFIXES = (*(f".csv{suffix}" for suffix in COMPRESSIONS), ".csv")
_VERSION = re.compile(r"\.\d+$")
# Reference names are those of the file but for transcripts, whose version the intervals leave out.
_UNVERSIONED = frozenset({"ENSEMBL_HUMAN_TRANSCRIPTOME"})


@dataclass(frozen=True)
class _Reference:
    path: Path
    unversioned: bool


def is_intervals(folder: Path) -> bool:
    """Return whether a folder holds the form with coordinates: tables of intervals in `train`, named by class."""
    return bool(_find_tables(folder / "train"))


def is_text_files(folder: Path) -> bool:
    """Return whether a folder holds the converted form: folders in `train`, named by class, with a .txt file a
    sequence.
    """
    return any(next(path.glob("*.txt"), None) for path in _find_folders(folder / "train").values())


def open_intervals(task: Task, folder: Path, options: SourceOptions) -> RawTask:
    """Return the form with coordinates. Sequences are `reference[start:end]`, reverse-complemented on strand '-'.

    References are the files that the class's url in `metadata.yaml` ends with, with or without .gz, in this folder, in
    one of those above, or in a folder `references` of these; or `options.genome`, where all classes have one reference.

    Raises
    ------
    UserError : classes that are not the task's, no metadata, a reference that is not there (its name and url are
        given); from the pieces: a row that is no interval, or lies outside of its reference, by file and row.
    """
    tables = {split: _find_tables(folder / split) for split in SPLITS}
    labels = _label_classes(task, folder, {split: list(found) for split, found in tables.items()})
    references = _find_references(folder, list(labels), options.genome)
    files = {f"{split}/{name}": path for split, found in tables.items() for name, path in found.items()}
    metadata = folder / "metadata.yaml"
    files |= {"metadata": metadata} if metadata.exists() else {}
    files |= {f"reference/{reference.path.name}": reference.path for reference in references.values()}
    splits = {
        split: [
            Piece(str(path), partial(_read_intervals, path, references[name], labels[name], task.label_columns[0]))
            for name, path in found.items()
        ]
        for split, found in tables.items()
    }
    return RawTask(task, splits, files)


def open_text_files(task: Task, folder: Path) -> RawTask:
    """Return the converted form, rows in the order of the files' numbers; a row's id is its file's name.

    Raises
    ------
    UserError : classes that are not the task's; from the pieces: a file that cannot be read.
    """
    found = {split: _find_folders(folder / split) for split in SPLITS}
    labels = _label_classes(task, folder, {split: list(classes) for split, classes in found.items()})
    files: dict[str, Path] = {}
    splits: dict[str, list[Piece]] = {}
    for split, classes in found.items():
        splits[split] = []
        for name, path in classes.items():
            paths = sorted(path.glob("*.txt"), key=lambda path: (len(path.name), path.name))
            if not paths:
                raise UserError(f"{path}: no .txt files; unpack the data set again")
            files |= {f"{split}/{name}/{path.name}": path for path in paths}
            read = partial(_read_text_files, paths, labels[name], task.label_columns[0])
            splits[split].append(Piece(str(path), read))
    return RawTask(task, splits, files)


def _find_tables(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    found = {
        path.name.removesuffix(suffix): path
        for suffix in reversed(_TABLE_SUFFIXES)
        for path in folder.glob(f"*{suffix}")
    }
    return dict(sorted(found.items()))


def _find_folders(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()} if folder.is_dir() else {}


def _label_classes(task: Task, folder: Path, classes: dict[str, list[str]]) -> dict[str, str]:
    """Return the task's label of each class, in the alphabetical order of the classes."""
    names = classes["train"]
    if not task.is_classification or len(names) != task.n_outputs:
        raise UserError(
            f"{folder / 'train'}: {len(names)} classes ({', '.join(names)}) where the task '{task.name}' has "
            f"{task.n_outputs} labels of kind {task.kind}; give the folder of that task"
        )
    if classes["test"] != names:
        raise UserError(
            f"{folder / 'test'}: holds the classes {', '.join(classes['test']) or 'none'} where train has "
            f"{', '.join(names)}; download the data set again"
        )
    return dict(zip(names, task.labels, strict=True))


def _find_references(folder: Path, names: list[str], genome: Path | None) -> dict[str, _Reference]:
    described = _read_metadata(folder / "metadata.yaml")
    if not described and genome is not None:
        return dict.fromkeys(names, _Reference(genome, False))
    for name in names:
        if name not in described:
            raise UserError(
                f"{folder / 'metadata.yaml'}: no url of a reference for class '{name}'; "
                "download the data set again, or give one genome with --genome"
            )
    urls = {str(described[name]["url"]) for name in names}
    given = genome if len(urls) == 1 else None
    found = {url: given or _find_reference(folder, url) for url in sorted(urls)}
    return {
        name: _Reference(found[str(fields["url"])], fields.get("extra_processing") in _UNVERSIONED)
        for name, fields in described.items()
        if name in names
    }


def _read_metadata(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    try:
        with readable(str(path)):
            raw = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())}); download it again") from None
    classes = raw.get("classes") if isinstance(raw, dict) else None
    classes = classes if isinstance(classes, dict) else {}
    return {str(name): fields for name, fields in classes.items() if isinstance(fields, dict) and fields.get("url")}


def _find_reference(folder: Path, url: str) -> Path:
    name = url.rsplit("/", 1)[-1]
    plain = name.removesuffix(".gz")
    folder = folder.absolute()
    roots = [folder, *folder.parents[: _LEVELS_UP - 1]]
    # The plain file first: Ensembl's .gz is no bgzip, so the plain one was made of it to be read by place.
    for wanted in (plain, f"{plain}.gz", f"{plain}.bgz"):
        for root in roots:
            for path in (root / "references" / wanted, root / wanted):
                if path.is_file():
                    return path
    raise UserError(
        f"{folder}: its reference {plain} is not there; download {url}, decompress it, and put it "
        f"into {roots[1] / 'references'}"
    )


def _read_intervals(path: Path, reference: _Reference, label: str, label_column: str) -> Iterator[pa.Table]:
    with Genome(reference.path) as genome, readable(str(path)):
        regions = _Regions(genome, reference.unversioned)
        first_row = 1
        for table in iter_delimited(as_location(path), ",", BLOCK_ROWS):
            for column in _COLUMNS:
                if column not in table.column_names:
                    hint = nearest(column, table.column_names)
                    raise UserError(f"{path}: no column '{column}' ({hint}); download the file again")
            if not table.num_rows:
                continue
            yield _cut_sequences(table, regions, path, first_row, label, label_column)
            first_row += table.num_rows
    if first_row == 1:
        raise UserError(f"{path}: the file has no rows; download it again")


class _Regions:
    """Places on a reference, by the names that the intervals use."""

    def __init__(self, genome: Genome, unversioned: bool) -> None:
        self._genome = genome
        names = genome.chromosomes() if unversioned else ()
        self._names = {_VERSION.sub("", name): name for name in names}

    def fetch(self, region: str, start: int, end: int, strand: str) -> str:
        return self._genome.fetch(self._names.get(region, region), start, end, strand)


def _cut_sequences(
    table: pa.Table, regions: _Regions, path: Path, first_row: int, label: str, label_column: str
) -> pa.Table:
    columns = [table[name].to_pylist() for name in _COLUMNS]
    starts, ends, sequences = [], [], []
    for row, (_, region, start, end, strand) in enumerate(zip(*columns, strict=True), start=first_row):
        try:
            starts.append(int(start))
            ends.append(int(end))
        except ValueError:
            raise UserError(
                f"{path}, row {row}: start '{start}' and end '{end}' are no whole numbers; download the file again"
            ) from None
        if strand not in ("+", "-"):
            raise UserError(f"{path}, row {row}: the strand is '{strand}', not + or -; download the file again")
        try:
            sequences.append(regions.fetch(region, starts[-1], ends[-1], strand))
        except UserError as error:
            raise UserError(f"{path}, row {row}: {error}") from None
    return pa.table(
        {
            "id": pa.array(columns[0], pa.string()),
            "sequence": pa.array(sequences, pa.large_string()),
            label_column: pa.array([label] * len(sequences), pa.string()),
            "chrom": pa.array(columns[1], pa.string()),
            "start": pa.array(starts, pa.int64()),
            "end": pa.array(ends, pa.int64()),
            "strand": pa.array(columns[4], pa.string()),
        }
    )


def _read_text_files(paths: list[Path], label: str, label_column: str) -> Iterator[pa.Table]:
    for first in range(0, len(paths), BLOCK_ROWS):
        block = paths[first : first + BLOCK_ROWS]
        sequences = []
        for path in block:
            with readable(str(path)):
                sequences.append(path.read_text(encoding="utf-8").strip())
        yield pa.table(
            {
                "id": pa.array([path.stem for path in block], pa.string()),
                "sequence": pa.array(sequences, pa.large_string()),
                label_column: pa.array([label] * len(block), pa.string()),
            }
        )


SETS = {"train": "Train", "valid": "Val", "test": "Test"}
DEEPSTARR_BLOCK_ROWS = 10_000
_WHOLE = "Sequences_activity_all.txt"
_COMPRESSED = ("", *COMPRESSIONS)


def is_one_table(folder: Path) -> bool:
    """Return whether a folder holds `Sequences_activity_all.txt`."""
    return _find(folder, _WHOLE) is not None


def is_split_files(folder: Path) -> bool:
    """Return whether a folder holds `Sequences_Train.fa`."""
    return _find(folder, "Sequences_Train.fa") is not None


def open_one_table(task: Task, folder: Path) -> RawTask:
    """Return the table of all sequences (tab-separated; columns set, Sequence and the task's label columns).

    Each split's piece reads the file once. Raises UserError (from the pieces) for a missing column, a value of `set`
    other than Train, Val and Test, by row, and a split without rows.
    """
    path = _find(folder, _WHOLE)
    assert path is not None
    splits = {
        split: [Piece(f"{path} (set {name})", partial(_read_set, path, name, task.label_columns))]
        for split, name in SETS.items()
    }
    return RawTask(task, splits, {"all": path})


def open_split_files(task: Task, folder: Path) -> RawTask:
    """`Sequences_Train.fa` with `Sequences_activity_Train.txt`, and so for Val and Test: row i belongs to record i.

    Raises
    ------
    UserError : a file of the six that is not there; from the pieces: a missing column, or a table with more or fewer
        rows than its FASTA file has records.
    """
    splits: dict[str, list[Piece]] = {}
    files: dict[str, Path] = {}
    for split, name in SETS.items():
        found = [_find(folder, wanted) for wanted in (f"Sequences_{name}.fa", f"Sequences_activity_{name}.txt")]
        fasta, table = found
        if fasta is None or table is None:
            missing = f"Sequences_{name}.fa" if fasta is None else f"Sequences_activity_{name}.txt"
            where = f" from {task.url}" if task.url else ""
            raise UserError(f"{folder}: no {missing}; download it, or {_WHOLE}{where}")
        splits[split] = [Piece(str(fasta), partial(_read_pair, fasta, table, task.label_columns))]
        files |= {f"{split}_sequences": fasta, f"{split}_labels": table}
    return RawTask(task, splits, files)


def _find(folder: Path, name: str) -> Path | None:
    return next((folder / f"{name}{suffix}" for suffix in _COMPRESSED if (folder / f"{name}{suffix}").is_file()), None)


def _read_set(path: Path, name: str, label_columns: tuple[str, ...]) -> Iterator[pa.Table]:
    known = pa.array(list(SETS.values()), pa.large_string())
    row, found = 0, False
    for table in iter_tables(path, DEEPSTARR_BLOCK_ROWS, sequence_column="Sequence"):
        _check_columns(table, ("set", *label_columns), path)
        sets = table["set"].cast(pa.large_string())
        unknown = pc.index(pc.is_in(sets, value_set=known), pa.scalar(False)).as_py()
        if unknown >= 0:
            raise UserError(
                f"{path}, row {row + unknown + 1}: set is '{sets[unknown]}'; it must be one of {', '.join(SETS.values())}"
            )
        row += table.num_rows
        rows = table.filter(pc.equal(sets, name)).select(["id", "sequence", *label_columns])
        if rows.num_rows:
            found = True
            yield rows
    if not found:
        raise UserError(f"{path}: no rows of set {name}; download the file again")


def _read_pair(fasta: Path, path: Path, label_columns: tuple[str, ...]) -> Iterator[pa.Table]:
    labels = _Rows(path, label_columns)
    rows = 0
    for table in iter_tables(fasta, DEEPSTARR_BLOCK_ROWS):
        block = labels.take(table.num_rows)
        rows += table.num_rows
        if block.num_rows < table.num_rows:
            rows_there = rows - table.num_rows + block.num_rows
            raise UserError(
                f"{path}: {rows_there:,} rows, but {fasta.name} has more records; download both files again"
            )
        columns = {name: block[name] for name in label_columns}
        yield pa.table({"id": table["id"], "sequence": table["sequence"], **columns})
    if labels.take(1).num_rows:
        raise UserError(f"{path}: more rows than {fasta.name} has records ({rows:,}); download both files again")


class _Rows:
    """The rows of a table, taken as many at a time as are wanted."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self._tables = _read_labels(path, columns)
        self._rest = next(self._tables)  # a table without rows, at least

    def take(self, n: int) -> pa.Table:
        """Return the next n rows, fewer where the table ends."""
        while self._rest.num_rows < n:
            more = next(self._tables, None)
            if more is None:
                break
            self._rest = pa.concat_tables([self._rest, more])
        taken = self._rest.slice(0, n)
        self._rest = self._rest.slice(n)
        return taken


def _read_labels(path: Path, columns: tuple[str, ...]) -> Iterator[pa.Table]:
    with readable(str(path)):
        for table in iter_delimited(as_location(path), "\t", DEEPSTARR_BLOCK_ROWS):
            _check_columns(table, columns, path)
            yield table.select(list(columns))


def _check_columns(table: pa.Table, columns: tuple[str, ...], path: Path) -> None:
    for column in columns:
        if column not in table.column_names:
            hint = nearest(column, table.column_names)
            raise UserError(f"{path}: no column '{column}' ({hint}); rename the column or download the file again")
