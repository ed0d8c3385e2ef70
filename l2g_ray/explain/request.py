"""What a person asks of `l2g-ray explain`, the sequences to choose from, and what it finds for one output."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from l2g_ray.data.dataset import PreparedTask, open_prepared
from l2g_ray.data.readers import name_input, read_table
from l2g_ray.errors import UserError
from l2g_ray.explain import databases
from l2g_ray.explain.attribution import (
    METHODS,
    WARN_ABOVE,
    Attributions,
)
from l2g_ray.explain.databases import KnownMotif, Match, Site
from l2g_ray.explain.motifs import (
    Discovery,
)
from l2g_ray.places import find_place
from l2g_ray.predict import Predictor
from l2g_ray.run_folder import Arm
from l2g_ray.sequence import decode, encode

_MATCHES_SHOWN = 5


@dataclass(frozen=True)
class ExplainRequest:
    """What to explain; see `l2g-ray explain --help`.

    `sequences` is a file, or a table in memory. `databases` are tried in order, None means JASPAR's vertebrates if it is
    installed. Nothing is written without `writes`.
    """

    arm: Arm
    output: str | None = None
    sequences: Path | pa.Table | None = None
    sequence_column: str | None = None
    top: int = 500
    pick: str = "highest"
    method: str = METHODS[0]
    n_references: int = 20
    steps: int = 50
    seed: int = 0
    rc_average: bool = False
    with_motifs: bool = True
    core_bp: int | None = None
    flank_bp: int | None = None
    min_seqlets: int = 100
    max_seqlets: int = 20_000
    databases: tuple[str, ...] | None = None
    known: str | None = None
    truth: Path | None = None
    out: Path | None = None
    device: str = "cpu"
    batch_size: int | None = None
    writes: bool = True


@dataclass(frozen=True)
class Explanation:
    """The explanation of one output, with files in `folder`: contributions of the chosen sequences, and found motifs with their
    significant matches. If planted sites or a list of motifs are known, it also scores the motifs against these. `notes` are
    for the reader, in order; `warnings` are the most important ones. `timings_s` has the seconds of each step."""

    output: str
    folder: str
    unit: str
    ids: list[str]
    source: str
    attributions: Attributions
    discovery: Discovery | None
    matches: list[Match]
    sites: list[Site]
    shares: dict[str, dict[str, float]]
    planted: list[tuple[KnownMotif, Match | None]]
    comparison: databases.Comparison | None
    notes: list[str]
    warnings: list[str]
    timings_s: dict[str, float] = field(default_factory=dict)

    def completeness(self) -> dict[str, float]:
        """Median, 95th percentile and maximum of the relative error, and the mean error over the mean difference."""
        a = self.attributions
        errors = a.completeness_errors
        difference = a.values - a.reference_values
        absolute = np.abs(a.contributions.sum(1, dtype=np.float64) - difference)
        return {
            "median": float(np.median(errors)),
            "p95": float(np.quantile(errors, 0.95)),
            "max": float(errors.max()),
            "pooled": float(absolute.mean() / max(np.abs(difference).mean(), np.finfo(np.float32).tiny)),
            "above_0.01": float((errors > WARN_ABOVE).mean()),
        }

    def motif_table(self) -> pd.DataFrame:
        """Return a row a motif: counts, contribution, consensus and its best matches."""
        columns = [
            "motif", "sign", "seqlets", "sequences", "mean_contribution", "consensus", "length_bp",
            "match", "match_id", "database", "p_value", "q_value", "other_matches",
        ]  # fmt: skip
        rows = []
        contributions = self.attributions.contributions
        for number, motif in enumerate(self.discovery.motifs if self.discovery else []):
            own = [match for match in self.matches if match.query == number]
            best = own[0] if own else None
            rows.append(
                [
                    motif.name,
                    "+" if motif.sign > 0 else "-",
                    motif.n_seqlets,
                    len(set(motif.sequence_index.tolist())),
                    motif.mean_contribution(contributions),
                    motif.consensus,
                    len(motif.ppm),
                    best.target.name if best else "",
                    best.target.id if best else "",
                    best.target.source if best else "",
                    best.p_value if best else None,
                    best.q_value if best else None,
                    "; ".join(f"{m.target.name} (q {m.q_value:.1e})" for m in own[1:_MATCHES_SHOWN]),
                ]
            )
        return pd.DataFrame(rows, columns=columns)

    def sequence_table(self) -> pd.DataFrame:
        """Return a row a sequence: its explained value, that of its references, the sum of contributions, the
        relative error.
        """
        a = self.attributions
        return pd.DataFrame(
            {
                "id": self.ids,
                "sequence": decode(a.codes, a.lengths_bp),
                "value": a.values,
                "reference_value": a.reference_values,
                "sum_of_contributions": a.contributions.sum(1, dtype=np.float64),
                "completeness_error": a.completeness_errors,
            }
        )

    def summary(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        return {
            "output": self.output,
            "folder": self.folder,
            "explained": self.unit,
            "method": self.attributions.method,
            "sequences": len(self.ids),
            "source": self.source,
            "completeness": self.completeness(),
            "motifs": [
                {name: None if value != value else value for name, value in row.items()}
                for row in self.motif_table().to_dict("records")
            ],
            "planted_shares": self.shares,
            "planted_motifs": [
                {
                    "motif": target.name,
                    "found_as": self._name(match),
                    "p_value": match.p_value if match else None,
                    "q_value": match.q_value if match else None,
                }
                for target, match in self.planted
            ],
            "known": None if self.comparison is None else self.comparison.__dict__,
            "notes": self.notes,
            "warnings": self.warnings,
            "timings_s": {name: round(seconds, 2) for name, seconds in self.timings_s.items()},
        }

    def _name(self, match: Match | None) -> str | None:
        return self.discovery.motifs[match.query].name if match and self.discovery else None


@dataclass(frozen=True)
class Candidates:
    """Sequences to choose from: `ids`, `codes` (n, length) right-padded, `lengths_bp` (n,); `source` says where from."""

    ids: list[str]
    codes: np.ndarray
    lengths_bp: np.ndarray
    source: str

    def take(self, rows: np.ndarray) -> Candidates:
        """Return some of them, as far padded as they need."""
        lengths_bp = self.lengths_bp[rows]
        width = int(lengths_bp.max()) if len(rows) else 0
        return Candidates([self.ids[row] for row in rows], self.codes[rows, :width], lengths_bp, self.source)


def read_candidates(predictor: Predictor, source: Path | pa.Table, sequence_column: str | None) -> Candidates:
    """Read the sequences of a file, or of a table in memory. Raises UserError as `Predictor.clean`."""
    table = read_table(source, sequence_column=sequence_column or predictor.task.sequence_column)
    return _encode(predictor, table, name_input(source))


def open_candidates(predictor: Predictor, arm: Arm, wanted: int) -> Candidates:
    """Return the own rows of the arm's run: those of validation, and those of training too where these are fewer than
    four times `wanted`.

    Raises UserError where the run's data is not there any more, or the run is elsewhere.
    """
    otherwise = "give the sequences to explain"
    prepared = find_prepared(arm.local_folder(otherwise), otherwise)
    splits = ["valid"] if prepared.n_rows("valid") >= 4 * wanted else ["valid", "train"]
    tables = [prepared.table(split, ["id", "sequence"]) for split in splits]
    return _encode(predictor, pa.concat_tables(tables), f"{' and '.join(splits)} of the run's data")


def find_prepared(task_folder: Path, otherwise: str) -> PreparedTask:
    """Return the prepared rows of a finished task: where its run had them, or beside the run, by their fingerprints.

    Raises UserError where they are not there any more; it ends with what to do `otherwise`.
    """
    try:
        splits = json.loads((task_folder / "task.json").read_text())["splits"]
        wanted = {split: facts["fingerprint"] for split, facts in splits.items()}
        known = json.loads((task_folder / "stages.json").read_text()).get("deployed", {}).get("prepared")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{task_folder}: no readable task.json and stages.json of a finished task, so its data is not known; {otherwise}"
        ) from None
    beside = sorted(path.parent for path in task_folder.absolute().parent.parent.glob("prepared/*/*/task.json"))
    reason = ""
    named = [find_place(known, task_folder)] if known else []
    for folder in [*named, *map(str, beside)]:
        try:
            prepared = open_prepared(folder)
        except UserError as error:
            reason = f" ({error})" if folder in named else reason
            continue
        if all(prepared.fingerprint(split) == mark for split, mark in wanted.items()):
            return prepared
    raise UserError(
        f"{task_folder}: the rows of this run are not there any more, or were prepared by an older version{reason}; "
        f"run the suite's command again, or {otherwise}"
    )


def choose_top(
    candidates: Candidates, score: Callable[[np.ndarray, np.ndarray], np.ndarray], top: int, batch_rows: int = 512
) -> Candidates:
    """Return the `top` candidates with the highest score, in their order; `score` takes codes and lengths to values
    (n,).
    """
    n = len(candidates.ids)
    if n <= top:
        return candidates.take(np.arange(n))
    order = np.argsort(candidates.lengths_bp, kind="stable")
    values = np.empty(n)
    for start in range(0, n, batch_rows):
        rows = order[start : start + batch_rows]
        some = candidates.take(rows)
        values[rows] = score(some.codes, some.lengths_bp)
    return candidates.take(np.sort(np.argsort(-values, kind="stable")[:top]))


def choose_at_random(candidates: Candidates, n: int, seed: int) -> Candidates:
    """`n` of the candidates, whatever their value, in their order."""
    rows = np.random.default_rng(seed).permutation(len(candidates.ids))[:n]
    return candidates.take(np.sort(rows))


def _encode(predictor: Predictor, table: pa.Table, source: str) -> Candidates:
    clean = predictor.clean(table["sequence"], source)
    if not len(clean):
        raise UserError(f"{source}: no sequence; give a file with at least one")
    codes, lengths_bp = encode(clean)
    return Candidates(table["id"].to_pylist(), codes, lengths_bp, source)
