"""Motifs of contributions: TF-MoDISco, trimmed by information content, and the files that the field's tools read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from l2g_ray.explain.attribution import Attributions
from l2g_ray.explain.logos import to_information
from l2g_ray.extras import need
from l2g_ray.sequence import ALPHABET

# Share of the most informative position's information; ends below it are trimmed.
_TRIM_SHARE = 0.3
_MIN_TRIMMED_BP = 4
_PSEUDOCOUNT = 1e-3
MIN_CORE_BP, MIN_FLANK_BP = 5, 1  # the shortest seqlet


@dataclass(frozen=True)
class MotifSettings:
    """Of TF-MoDISco: the core of a seqlet and its flanks on either side, the most seqlets of a sign that are clustered,
    and how many there must be for any clustering. Its other settings are the library's; those of its lengths that it
    leaves at 30 and 10 bp whatever the seqlet (`trim_to_window_size`, `initial_flank_to_add`) grow with the seqlet here."""

    core_bp: int = 21
    flank_bp: int = 10
    max_seqlets: int = 20_000
    min_seqlets: int = 100
    min_cluster_seqlets: int = 20

    @property
    def window_bp(self) -> int:
        """What a sequence must be long for one seqlet: the core with both flanks."""
        return self.core_bp + 2 * self.flank_bp

    @property
    def trim_bp(self) -> int:
        """What a pattern is cut to before flanks are added again: 30 of the library's 21."""
        return round(self.core_bp * 10 / 7)


@dataclass(frozen=True)
class Motif:
    """A found motif, trimmed: `name`, `sign` of its contributions, `ppm` and `cwm` (length, 4) its letter shares and mean
    contributions, and its `n_seqlets` with their places `sequence_index`, `start`, `end` (0-based, of the trimmed part)
    and `is_reverse` (n_seqlets,)."""

    name: str
    sign: int
    ppm: np.ndarray
    cwm: np.ndarray
    sequence_index: np.ndarray
    start: np.ndarray
    end: np.ndarray
    is_reverse: np.ndarray

    @property
    def n_seqlets(self) -> int:
        """Places in the sequences that it was built from."""
        return len(self.start)

    @property
    def consensus(self) -> str:
        """The likeliest base of every position, small where it has less than half of the letters."""
        letters = [ALPHABET[row.argmax()] if row.max() >= 0.5 else ALPHABET[row.argmax()].lower() for row in self.ppm]
        return "".join(letters)

    def mean_contribution(self, contributions: np.ndarray) -> float:
        """Return mean over its places of the summed contributions (n, length) there."""
        sums = [contributions[i, max(a, 0) : b].sum() for i, a, b in zip(self.sequence_index, self.start, self.end)]
        return float(np.mean(sums))


@dataclass(frozen=True)
class Discovery:
    """What TF-MoDISco found: its own patterns of either sign (None: too few seqlets), for `save_hdf5`, and ours.

    `reason` is what the library said where it stopped for want of seqlets.
    """

    positive: list[Any] | None
    negative: list[Any] | None
    motifs: list[Motif]
    core_bp: int
    reason: str = ""


def choose_seqlet(lengths_bp: np.ndarray) -> tuple[int, int]:
    """Core and flank of a seqlet in bp for sequences of these lengths: 21 + 2 x 10, the library's, from 200 bp on.

    Shorter sequences have their motifs closer together, and a window of 21 joins neighbours (docs/explain.md).
    """
    return (21, 10) if np.median(lengths_bp) >= 200 else (15, 5)


def fit_seqlet(longest_bp: int) -> tuple[int, int] | None:
    """Core and flank of a seqlet that finds room, at several places, in a sequence of that length; None below 7 bp."""
    core_bp = max(MIN_CORE_BP, longest_bp // 2)
    flank_bp = max(MIN_FLANK_BP, (longest_bp - core_bp) // 4)
    return (core_bp, flank_bp) if core_bp + 2 * flank_bp <= longest_bp else None


def discover_motifs(attributions: Attributions, settings: MotifSettings) -> Discovery:
    """Cluster the strongest seqlets into motifs, strongest support first, positive before negative.

    Too few seqlets, or sequences shorter than one, give an empty list.
    """
    need("explain", "the search for motifs", "modiscolite")
    from modiscolite.tfmodisco import TFMoDISco

    one_hot = attributions.one_hot
    nothing = Discovery(None, None, [], settings.core_bp)
    if len(one_hot) == 0 or one_hot.shape[1] < settings.window_bp or not np.any(attributions.hypothetical):
        return nothing
    try:
        positive, negative = TFMoDISco(
            one_hot=one_hot,
            hypothetical_contribs=attributions.hypothetical,
            sliding_window_size=settings.core_bp,
            flank_size=settings.flank_bp,
            trim_to_window_size=settings.trim_bp,
            initial_flank_to_add=settings.flank_bp,
            min_metacluster_size=settings.min_seqlets,
            max_seqlets_per_metacluster=settings.max_seqlets,
            final_min_cluster_size=settings.min_cluster_seqlets,
        )
    except (ValueError, IndexError, ZeroDivisionError) as error:
        # What the library raises inside where nothing stands out from its null distribution, or too little does.
        return replace(nothing, reason=f"{type(error).__name__}: {error}")
    motifs = []
    for sign, patterns in ((1, positive), (-1, negative)):
        for number, pattern in enumerate(patterns or []):
            motif = _trim(pattern, f"{'pos' if sign > 0 else 'neg'}_{number}", sign)
            if motif is not None:
                motifs.append(motif)
    return Discovery(positive, negative, motifs, settings.core_bp)


def _trim(pattern: Any, name: str, sign: int) -> Motif | None:
    """From the first to the last position with a share of the highest information; None where little is left."""
    ppm = np.asarray(pattern.sequence, np.float64)
    information = to_information((ppm + _PSEUDOCOUNT) / (ppm.sum(1, keepdims=True) + 4 * _PSEUDOCOUNT)).sum(1)
    kept = np.flatnonzero(information >= _TRIM_SHARE * information.max())
    first, last = int(kept[0]), int(kept[-1]) + 1
    if last - first < _MIN_TRIMMED_BP:
        return None
    part = ppm[first:last]
    starts = np.array([seqlet.start for seqlet in pattern.seqlets])
    ends = np.array([seqlet.end for seqlet in pattern.seqlets])
    reverse = np.array([bool(seqlet.is_revcomp) for seqlet in pattern.seqlets])
    return Motif(
        name=name,
        sign=sign,
        ppm=(part + _PSEUDOCOUNT) / (part.sum(1, keepdims=True) + 4 * _PSEUDOCOUNT),
        cwm=np.asarray(pattern.contrib_scores, np.float64)[first:last],
        sequence_index=np.array([seqlet.example_idx for seqlet in pattern.seqlets]),
        # On the other strand a pattern's first position is a seqlet's last.
        start=np.where(reverse, ends - last, starts + first),
        end=np.where(reverse, ends - first, starts + last),
        is_reverse=reverse,
    )


def save_hdf5(discovery: Discovery, path: Path) -> None:
    """Write what `modisco report` and its kin read: groups pos_patterns and neg_patterns, absent where there are none."""
    from modiscolite.io import save_hdf5 as save

    path.unlink(missing_ok=True)
    save(str(path), discovery.positive or None, discovery.negative or None, window_size=discovery.core_bp)


def format_meme(motifs: list[Motif], background: np.ndarray) -> str:
    """Return the motifs in MEME's minimal format, version 4; `background` (4,) are letter shares of the sequences."""
    shares = " ".join(f"{letter} {share:.4f}" for letter, share in zip(ALPHABET, background, strict=True))
    lines = ["MEME version 4", "", f"ALPHABET= {ALPHABET}", "", "strands: + -", ""]
    lines += ["Background letter frequencies", shares, ""]
    for motif in motifs:
        lines += [
            f"MOTIF {motif.name} {motif.consensus}",
            f"letter-probability matrix: alength= 4 w= {len(motif.ppm)} nsites= {motif.n_seqlets} E= 0",
            *("  ".join(f"{share:.6f}" for share in row) for row in motif.ppm),
            "",
        ]
    return "\n".join(lines)
