"""Validate a source, split it, remove leakage, and write shards and a manifest (dataset.py describes these files).

Everything is checked before anything is kept; the output appears whole, by one rename, or not at all. Memory holds
about 30 bytes a row and one table of rows, however long the sequences are (spool.py).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from l2g_ray.config import DataSettings
from l2g_ray.data.check.balance import Part
from l2g_ray.data.check.similar import find_families
from l2g_ray.data.check.splits import check_splits
from l2g_ray.data.checks import missing_texts
from l2g_ray.data.dataset import MANIFEST, MANIFEST_SCHEMA, PreparedTask, open_prepared, scratch_folder, write_prepared
from l2g_ray.data.raw import ALL, RawTask, SourceOptions
from l2g_ray.data.splits import cut_validation, find_groups, find_key_column, find_rule, hash_indices, part_rows
from l2g_ray.data.spool import Selection, Spool, find_overlap, join_facts, spool_pieces
from l2g_ray.data.table_writer import refuse_overwrite
from l2g_ray.errors import UserError
from l2g_ray.redaction import redact
from l2g_ray.storage import Location, as_location
from l2g_ray.tasks.schema import Task

# Settings that change what is prepared; the others act on batches.
_USED_SETTINGS = {"valid_fraction", "split_seed", "keep_duplicates", "max_length_bp"}
ROWS_PER_SHARD = 10_000
# A family of near-duplicates that holds more than this share of the rows would not fit into a fold.
LARGEST_FAMILY = 0.2
# What is going on, and how many more rows are through.
Progress = Callable[[str, int], None]


def prepare(
    raw: RawTask,
    out: str | Path | Location,
    settings: DataSettings,
    rows_per_shard: int = ROWS_PER_SHARD,
    progress: Progress = lambda doing, rows: None,
) -> PreparedTask:
    """Validate a source's rows, split them, remove leakage, and write shards and manifest.

    Parameters
    ----------
    out : replaced as a whole; left alone when it already holds this very task made from these very files.
    rows_per_shard : upper bound; the shards of a split differ by one row at most.

    Returns
    -------
    PreparedTask. Train and valid rows that are also in test (exactly or as reverse complement) are dropped, as are train
    rows that are also in valid, unless `settings.keep_duplicates`. `leakage`, `check` and `warnings` of the manifest always
    report them.

    Raises
    ------
    UserError : a file, column, row or label that cannot be used, or an output folder that cannot be written.
    """
    out = as_location(out)
    refuse_overwrite(_files(raw).values(), [out])
    key = _content_key(raw, settings, rows_per_shard)
    if _holds(out, key):
        return open_prepared(out)
    task = raw.task
    with scratch_folder(out) as scratch:
        spools, splits, made = _open(raw, settings, scratch, progress)
        warnings = ["The data is synthetic."] if task.synthetic else []
        warnings += raw.notes
        if any(spool.rna for spool in spools.values()):
            warnings.append("The sequences hold RNA letters: U was read as T.")
        progress("checking splits", 0)
        check, near_rows = _check(splits, task)
        splits, leakage = _part_from("test", splits, settings, warnings)
        valid: dict[str, Any] = {"made": "given"}
        if "valid" in splits and ALL not in spools:
            valid["file"] = as_location(splits["valid"].spool.where()).name
        indices = {name: rows.rows for name, rows in splits.items()} if ALL in spools else {}
        whole: Selection | None = None
        if "valid" not in splits:
            whole = splits["train"]
            groups = _find_groups([whole], raw.options, warnings)
            splits, valid = _cut_valid(splits, task, settings, raw.options, groups)
            indices["valid"] = valid.pop("indices")
        splits, train_leakage = _part_from("valid", splits, settings, warnings)
        _check_classes(splits, task, warnings)
        kept = [splits["train"], splits["valid"]]
        if whole is None:
            groups = _find_groups(kept, raw.options, warnings)
        else:
            groups = groups[np.searchsorted(whole.rows, np.concatenate([part.rows for part in kept]))]
        manifest = {
            "schema": MANIFEST_SCHEMA,
            "key": key,
            "task": task.model_dump(mode="json"),
            "source": {name: {"file": redact(str(f)), "sha256": f.fingerprint()} for name, f in _files(raw).items()},
            "options": raw.options.model_dump(mode="json", exclude_defaults=True),
            "settings": settings.model_dump(mode="json", include=_USED_SETTINGS),
            "splits": {split: _describe(splits[split], task) for split in ("train", "valid", "test")},
            "made": made | {f"{name}_sha256": hash_indices(rows) for name, rows in indices.items()},
            "valid": valid,
            "leakage": {**leakage, **train_leakage, "kept": settings.keep_duplicates},
            "check": check,
            "warnings": warnings,
        }
        progress("writing shards", 0)
        write_prepared(out, scratch, splits, indices, near_rows, groups, manifest, rows_per_shard)
    return open_prepared(out)


def check_raw(raw: RawTask, settings: DataSettings, progress: Progress = lambda doing, rows: None) -> dict[str, Any]:
    """Return what `check_splits` finds in a source, with the test (and valid) rows as they are; nothing is kept.

    Raises UserError as `prepare` does.
    """
    with scratch_folder(Location(str(Path(tempfile.gettempdir()) / "l2g-ray-check"))) as scratch:
        splits = _open(raw, settings, scratch, progress)[1]
        progress("checking splits", 0)
        return _check(splits, raw.task)[0]


def _open(
    raw: RawTask, settings: DataSettings, scratch: Path, progress: Progress
) -> tuple[dict[str, Spool], dict[str, Selection], dict[str, Any]]:
    spools = _spool(raw, settings, scratch, progress)
    splits, made = _part(spools, raw.options, raw.task)
    return spools, splits, made


def _check(splits: dict[str, Selection], task: Task) -> tuple[dict[str, Any], np.ndarray]:
    """Return the check, and the numbers of the test rows that have a near-duplicate in train."""
    check = check_splits(task, {name: _as_part(selection) for name, selection in splits.items()})
    rows = {name: found.pop("other_near_rows") for name, found in check["near"].items() if name != "within"}
    return check, np.asarray(rows["train_in_test"], np.int64)


def _files(raw: RawTask) -> dict[str, Location]:
    return {name: as_location(f) for name, f in raw.files.items()}


def _content_key(raw: RawTask, settings: DataSettings, rows_per_shard: int) -> str:
    content = {
        "schema": MANIFEST_SCHEMA,
        "task": raw.task.model_dump(mode="json"),
        "files": {name: [f.name, f.fingerprint()] for name, f in _files(raw).items()},
        "options": raw.options.model_dump(mode="json"),
        "content": raw.content,
        "settings": settings.model_dump(mode="json", include=_USED_SETTINGS),
        "rows_per_shard": rows_per_shard,
        "groups": 2,  # folders of earlier versions have none, or none of near-duplicates
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _holds(folder: Location, key: str) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("key") == key


def _spool(raw: RawTask, settings: DataSettings, scratch: Path, progress: Progress) -> dict[str, Spool]:
    columns = {find_key_column(raw.options) if ALL in raw.splits else None, raw.options.group_column}
    key_columns = tuple(column for column in columns if column is not None)
    return {
        split: spool_pieces(
            pieces,
            raw.task,
            scratch / f"{split}.arrow",
            settings.max_length_bp,
            key_columns,
            lambda rows, split=split: progress(f"reading {split}", rows),  # type: ignore[misc]
            missing_texts(raw.options.na_values),
        )
        for split, pieces in raw.splits.items()
    }


def _part(spools: dict[str, Spool], options: SourceOptions, task: Task) -> tuple[dict[str, Selection], dict[str, Any]]:
    if ALL not in spools:
        if options.split not in ("auto", "given"):
            where = spools["train"].where()
            raise UserError(f"{where}: comes with its own splits; give one file to split it by --split {options.split}")
        return {split: Selection(s, np.arange(len(s))) for split, s in spools.items()}, {"rule": "given"}
    spool = spools[ALL]
    classes = spool.labels if task.is_classification else None
    keys = spool.keys.get(find_key_column(options) or "")
    partition = part_rows(len(spool), options, spool.where(), classes, keys)
    return {split: Selection(spool, rows) for split, rows in partition.rows.items()}, partition.made


def _as_part(*selections: Selection) -> Part:
    """Return the rows of selections, one after the other, as the checks see them."""

    def sequences() -> Any:
        return (batch["sequence"] for selection in selections for batch in selection.batches())

    labels = np.concatenate([selection.labels for selection in selections])
    return Part(join_facts(selection.facts for selection in selections), labels, sequences)


def _part_from(
    other: str, splits: dict[str, Selection], settings: DataSettings, warnings: list[str]
) -> tuple[dict[str, Selection], dict[str, Any]]:
    """Drop (or only count) the rows of the splits before `other` that are also in `other`."""
    kept, counts = dict(splits), {}
    for split in ("valid", "train") if other == "test" else ("train",):
        if split not in splits:
            continue
        overlap = find_overlap(splits[split].facts, splits[other].facts)
        counts[f"{split}_in_{other}"] = overlap.count()
        n_found = int(overlap.any.sum())
        if not n_found:
            continue
        was, noun, verb = ("was", "row", "is") if n_found == 1 else ("were", "rows", "are")
        done = f"{was} kept (data.keep_duplicates)" if settings.keep_duplicates else f"{was} dropped"
        n_flipped = int(overlap.reverse_complement.sum())
        aside = f" ({n_flipped} of them as reverse complement)" if n_flipped else ""
        warnings.append(f"{n_found:,} {split} {noun} that {verb} also in the {other} split{aside} {done}.")
        if not settings.keep_duplicates:
            kept[split] = splits[split].keep(~overlap.any)
            if len(kept[split]) == 0:
                raise UserError(
                    f"{splits[split].spool.where()}: every row is also in the {other} split; "
                    "give other rows, or set data.keep_duplicates"
                )
    return kept, counts


def _cut_valid(
    splits: dict[str, Selection], task: Task, settings: DataSettings, options: SourceOptions, groups: np.ndarray
) -> tuple[dict[str, Selection], dict[str, Any]]:
    """Cut a validation split from train, groups (n,) whole."""
    train = splits["train"]
    by_group = train.spool.keys.get(options.group_column or "")
    classes = train.labels if task.is_classification and by_group is None else None
    first = np.unique(groups, return_index=True)[1]
    # In the order of their first rows, so that rows without relatives are drawn as they stand.
    groups = np.argsort(np.argsort(first))[groups]
    drawn = None if classes is None else classes[np.sort(first)]
    chosen = np.isin(groups, cut_validation(len(first), settings.valid_fraction, settings.split_seed, drawn))
    if not chosen.any():
        were = "row is" if len(train) == 1 else "rows are"
        raise UserError(
            f"{train.spool.where()}: {len(train)} {were} too few to cut a validation split from; "
            "add rows, or give a valid file"
        )
    how = "cut from train, whole groups" if by_group is not None else "cut from train"
    made = {
        "made": f"{how}, stratified by class" if classes is not None else how,
        "fraction": settings.valid_fraction,
        "seed": settings.split_seed,
        "file": "splits/valid_indices.parquet",
        "sha256": hash_indices(train.rows[chosen]),
        "indices": train.rows[chosen],
    }
    return {**splits, "train": train.keep(~chosen), "valid": train.keep(chosen)}, made


def _find_groups(parts: list[Selection], options: SourceOptions, warnings: list[str]) -> np.ndarray:
    """Group of every row of the parts: by sequence and near-duplicates, and by what the split goes by, a column of groups or
    chromosomes."""
    column = options.group_column or ("chrom" if find_rule(options) == "chromosome" else "")
    keys = [np.asarray(part.spool.keys[column])[part.rows] for part in parts if column in part.spool.keys]
    given = [np.concatenate(keys)] if len(keys) == len(parts) else []
    family = find_families(_as_part(*parts))
    sizes = np.bincount(family)
    large = sizes[family] > LARGEST_FAMILY * len(family)
    if large.any():
        warnings.append(
            f"{int(large.sum()):,} rows of train and valid are in groups of near-duplicates that are too large for one "
            "fold: only equal sequences are kept on one side of a fold, and out-of-fold scores are too good."
        )
        family[large] = len(sizes) + np.arange(int(large.sum()))
    return find_groups(np.concatenate([part.facts.canonical for part in parts]), family, *given)


def _check_classes(splits: dict[str, Selection], task: Task, warnings: list[str]) -> None:
    if not task.is_classification:
        return
    for split, selection in splits.items():
        counts = np.bincount(selection.labels, minlength=task.n_outputs)
        if np.count_nonzero(counts) == 1:
            label = task.labels[int(np.argmax(counts))]
            if split == "train":
                raise UserError(
                    f"{selection.spool.where()}: all {len(selection):,} rows have the label '{label}'; "
                    "add rows of another class"
                )
            warnings.append(f"All {split} rows have the label '{label}': scores on that split mean little.")
        elif split == "train":
            for code in np.flatnonzero(counts == 0):
                warnings.append(f"No train row has the label '{task.labels[code]}': it cannot be learned.")


def _describe(selection: Selection, task: Task) -> dict[str, Any]:
    lengths = selection.facts.length_bp
    described: dict[str, Any] = {
        "rows": len(selection),
        "length_bp": {"min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max())},
        "letters": selection.count_letters(),
    }
    if task.is_classification:
        counts = np.bincount(selection.labels, minlength=task.n_outputs)
        return {**described, "classes": {label: int(n) for label, n in zip(task.labels, counts, strict=True)}}
    sums = _sum_outputs(selection, task.n_outputs)
    outputs = {
        label: {
            "missing": len(selection) - int(n),
            "mean": round(float(total / n), 6) if n else None,
            "sd": round(float(np.sqrt(max(square / n - (total / n) ** 2, 0.0))), 6) if n else None,
        }
        for label, n, total, square in zip(task.labels, *sums, strict=True)
    }
    return {**described, "outputs": outputs}


def _sum_outputs(selection: Selection, n_outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, sum and sum of squares (n_outputs,) of labels that are there, block by block."""
    counts, totals, squares = np.zeros(n_outputs), np.zeros(n_outputs), np.zeros(n_outputs)
    for start in range(0, len(selection), 10_000):
        block = np.asarray(selection.spool.labels[selection.rows[start : start + 10_000]], np.float64)
        counts += (~np.isnan(block)).sum(0)
        totals += np.nansum(block, 0)
        squares += np.nansum(block**2, 0)
    return counts, totals, squares
