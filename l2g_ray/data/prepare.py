"""A source folder of train / valid / test files to shards and a manifest (see dataset.py for what is written).

Everything is checked in memory before anything is written; the output appears whole, by one rename, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from l2g_ray.config import DataSettings
from l2g_ray.data.checks import clean_sequences, count_letters, parse_labels
from l2g_ray.data.dataset import MANIFEST_SCHEMA, PreparedTask, open_prepared
from l2g_ray.data.leakage import find_overlap
from l2g_ray.data.readers import read_table
from l2g_ray.data.sources import find_split_files, prepare_user_source
from l2g_ray.data.splits import cut_validation, hash_indices
from l2g_ray.errors import UserError
from l2g_ray.tasks.schema import Task

__all__ = ["prepare", "prepare_user_source"]

# Settings that change what is prepared; the others act on batches.
_USED_SETTINGS = {"valid_fraction", "split_seed", "keep_duplicates", "max_length_bp"}


def prepare(
    task: Task, source_folder: str | Path, out_folder: str | Path, settings: DataSettings, rows_per_shard: int = 10_000
) -> PreparedTask:
    """Check a task's files, part them from leakage, and write shards and manifest.

    Parameters
    ----------
    source_folder : holds train, test and, optionally, valid (or dev) as Parquet, CSV, TSV or FASTA.
    out_folder : replaced as a whole; left alone when it already holds this very task made from these very files.
    rows_per_shard : upper bound; the shards of a split differ by one row at most.

    Returns
    -------
    PreparedTask. Train and valid rows that stand in test (exactly or as reverse complement), and train rows that stand
    in valid, are gone unless `settings.keep_duplicates`; `leakage` and `warnings` of the manifest report them anyway.

    Raises
    ------
    UserError : a file, column, row or label that cannot be used, or an output folder that cannot be written.
    """
    out_folder = Path(out_folder)
    files = find_split_files(source_folder)
    key = _content_key(task, files, settings, rows_per_shard)
    if _holds(out_folder, key):
        return open_prepared(out_folder)

    warnings = ["The data is synthetic."] if task.synthetic else []
    splits = {split: _read_split(path, task, settings, warnings) for split, path in files.items()}
    splits, leakage = _part_from("test", splits, settings, files, warnings)
    valid: dict[str, Any] = {"made": "given", "file": files["valid"].name if "valid" in files else None}
    if "valid" not in splits:
        splits, valid = _cut_valid(splits, task, settings, files["train"])
    splits, train_leakage = _part_from("valid", splits, settings, files, warnings)
    _check_classes(splits, task, files, warnings)

    manifest = {
        "schema": MANIFEST_SCHEMA,
        "key": key,
        "task": task.model_dump(mode="json"),
        "source": {split: {"file": path.name, "sha256": _hash_file(path)} for split, path in files.items()},
        "settings": settings.model_dump(mode="json", include=_USED_SETTINGS),
        "splits": {split: _describe(splits[split], task) for split in ("train", "valid", "test")},
        "valid": {name: value for name, value in valid.items() if name != "indices"},
        "leakage": {**leakage, **train_leakage, "kept": settings.keep_duplicates},
        "warnings": warnings,
    }
    _write(out_folder, splits, manifest, valid.get("indices"), rows_per_shard)
    return open_prepared(out_folder)


def _content_key(task: Task, files: dict[str, Path], settings: DataSettings, rows_per_shard: int) -> str:
    content = {
        "schema": MANIFEST_SCHEMA,
        "task": task.model_dump(mode="json"),
        "files": {split: [path.name, _hash_file(path)] for split, path in files.items()},
        "settings": settings.model_dump(mode="json", include=_USED_SETTINGS),
        "rows_per_shard": rows_per_shard,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _holds(folder: Path, key: str) -> bool:
    try:
        return json.loads((folder / "task.json").read_text()).get("key") == key
    except (OSError, ValueError):
        return False


def _read_split(path: Path, task: Task, settings: DataSettings, warnings: list[str]) -> pa.Table:
    """Columns id, sequence, label and row (the row's index in the file)."""
    table = read_table(path, task.sequence_column)
    sequences = clean_sequences(table["sequence"], path, settings.max_length_bp)
    if pc.any(pc.match_substring_regex(table["sequence"], "[Uu]")).as_py():
        warnings.append(f"{path.name} holds RNA letters: U was read as T.")
    labels = parse_labels(table, task, path)
    return pa.table({"id": table["id"], "sequence": sequences, "label": labels, "row": np.arange(len(sequences))})


def _part_from(
    other: str, splits: dict[str, pa.Table], settings: DataSettings, files: dict[str, Path], warnings: list[str]
) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """Drop (or only count) the rows of the splits before `other` that stand in `other`."""
    parted, counts = dict(splits), {}
    for split in ("valid", "train") if other == "test" else ("train",):
        if split not in splits:
            continue
        overlap = find_overlap(splits[split]["sequence"], splits[other]["sequence"])
        counts[f"{split}_in_{other}"] = overlap.count()
        n_found = int(overlap.any.sum())
        if not n_found:
            continue
        was, noun, verb = ("was", "row", "stands") if n_found == 1 else ("were", "rows", "stand")
        done = f"{was} kept (data.keep_duplicates)" if settings.keep_duplicates else f"{was} dropped"
        n_flipped = int(overlap.reverse_complement.sum())
        aside = f" ({n_flipped} of them as reverse complement)" if n_flipped else ""
        warnings.append(f"{n_found:,} {split} {noun} that also {verb} in the {other} split{aside} {done}.")
        if not settings.keep_duplicates:
            parted[split] = splits[split].filter(pa.array(~overlap.any))
            if parted[split].num_rows == 0:
                source = files.get(split, files["train"])
                raise UserError(
                    f"{source}: every row also stands in the {other} split; "
                    "give other rows, or set data.keep_duplicates"
                )
    return parted, counts


def _cut_valid(
    splits: dict[str, pa.Table], task: Task, settings: DataSettings, path: Path
) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    train = splits["train"]
    classes = train["label"].to_numpy() if task.is_classification else None
    chosen = cut_validation(train.num_rows, settings.valid_fraction, settings.split_seed, classes)
    if len(chosen) == 0:
        were = "row is" if train.num_rows == 1 else "rows are"
        raise UserError(
            f"{path}: {train.num_rows} {were} too few to cut a validation split from; add rows, or give a valid file"
        )
    kept = np.ones(train.num_rows, bool)
    kept[chosen] = False
    valid = train.take(chosen)
    indices = valid["row"].to_numpy()
    made = {
        "made": "cut from train, stratified by class" if task.is_classification else "cut from train",
        "fraction": settings.valid_fraction,
        "seed": settings.split_seed,
        "file": "splits/valid_indices.parquet",
        "sha256": hash_indices(indices),
        "indices": indices,
    }
    return {**splits, "train": train.filter(pa.array(kept)), "valid": valid}, made


def _check_classes(splits: dict[str, pa.Table], task: Task, files: dict[str, Path], warnings: list[str]) -> None:
    if not task.is_classification:
        return
    for split, table in splits.items():
        counts = np.bincount(table["label"].to_numpy(), minlength=task.n_outputs)
        if np.count_nonzero(counts) == 1:
            label = task.labels[int(np.argmax(counts))]
            if split == "train":
                raise UserError(
                    f"{files['train']}: all {table.num_rows:,} rows have the label '{label}'; add rows of another class"
                )
            warnings.append(f"All {split} rows have the label '{label}': scores on that split mean little.")
        elif split == "train":
            for code in np.flatnonzero(counts == 0):
                warnings.append(f"No train row has the label '{task.labels[code]}': it cannot be learned.")


def _describe(table: pa.Table, task: Task) -> dict[str, Any]:
    lengths = pc.binary_length(table["sequence"]).to_numpy()
    facts: dict[str, Any] = {
        "rows": table.num_rows,
        "length_bp": {"min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max())},
        "letters": count_letters(table["sequence"]),
        "fingerprint": _fingerprint(table),
    }
    if task.is_classification:
        counts = np.bincount(table["label"].to_numpy(), minlength=task.n_outputs)
        return {**facts, "classes": {label: int(n) for label, n in zip(task.labels, counts, strict=True)}}
    values = table["label"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, task.n_outputs)
    present = [column[~np.isnan(column)] for column in values.T]
    outputs = {
        label: {
            "missing": table.num_rows - len(column),
            "mean": round(float(column.mean()), 6) if len(column) else None,
            "sd": round(float(column.std()), 6) if len(column) else None,
        }
        for label, column in zip(task.labels, present, strict=True)
    }
    return {**facts, "outputs": outputs}


def _fingerprint(table: pa.Table) -> str:
    digest = hashlib.sha256()
    for start in range(0, table.num_rows, 10_000):
        part = table.slice(start, 10_000)
        digest.update("\n".join([*part["sequence"].to_pylist(), ""]).encode())
    labels = table["label"].combine_chunks()
    values = labels.flatten() if pa.types.is_fixed_size_list(labels.type) else labels
    digest.update(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)).tobytes())
    return digest.hexdigest()


def _write(
    out_folder: Path,
    splits: dict[str, pa.Table],
    manifest: dict[str, Any],
    indices: np.ndarray | None,
    rows_per_shard: int,
) -> None:
    scratch: Path | None = None
    try:
        out_folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out_folder.name}-", dir=out_folder.parent))
        scratch.chmod(0o755)  # mkdtemp hides it from others
        for split, table in splits.items():
            _write_shards(scratch / split, table, rows_per_shard)
        if indices is not None:
            (scratch / "splits").mkdir()
            pq.write_table(pa.table({"row": indices}), scratch / "splits" / "valid_indices.parquet", compression="zstd")
        (scratch / "task.json").write_text(json.dumps(manifest, indent=1) + "\n")
        _swap(scratch, out_folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{out_folder}: cannot be written ({reason}); choose another folder, or make room and permission there"
        ) from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _write_shards(folder: Path, table: pa.Table, rows_per_shard: int) -> None:
    folder.mkdir()
    slim = table.select(["id", "sequence", "label"])
    slim = slim.set_column(1, "sequence", slim["sequence"].cast(pa.large_string()))
    n_shards = -(-table.num_rows // rows_per_shard)
    edges = np.linspace(0, table.num_rows, n_shards + 1).round().astype(int)
    for shard, (start, end) in enumerate(pairwise(edges)):
        pq.write_table(slim.slice(start, end - start), folder / f"part-{shard:05d}.parquet", compression="zstd")


def _swap(scratch: Path, out_folder: Path) -> None:
    """Put the new folder in place; the old one, if any, goes only after."""
    if not out_folder.exists():
        scratch.rename(out_folder)
        return
    if not (out_folder / "task.json").exists() and any(out_folder.iterdir()):
        raise UserError(f"{out_folder}: holds other files; choose an empty or a new folder")
    old = Path(tempfile.mkdtemp(prefix=f".{out_folder.name}-old-", dir=out_folder.parent))
    os.replace(out_folder, old)
    scratch.rename(out_folder)
    shutil.rmtree(old, ignore_errors=True)
