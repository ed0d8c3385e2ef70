"""What is asked of `l2g-ray explain`, and what it finds for one output of a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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
from l2g_ray.run_folder import BEST
from l2g_ray.sequence import decode

_MATCHES_SHOWN = 5


@dataclass(frozen=True)
class ExplainRequest:
    """What a person asked for; see `l2g-ray explain --help`. `databases` are tried in order, None means JASPAR's
    vertebrates if it is installed."""

    run: Path
    task: str | None = None
    arm: str = BEST
    output: str | None = None
    sequences: Path | None = None
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


@dataclass(frozen=True)
class Explanation:
    """Of one output, whose files go to a `folder` of its own: contributions of the chosen sequences, found motifs with their significant matches, and, where they
    are known, how they fare against planted sites and a list of motifs. `notes` are for the reader, in order; `warnings`
    those that must not be missed. `timings_s` says where the time went."""

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
        """A row a motif: counts, contribution, consensus and its best matches."""
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
        """A row a sequence: its explained value, that of its references, the sum of contributions, the relative error."""
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
        """All figures, ready for JSON."""
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
