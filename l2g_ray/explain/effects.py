"""Effects of variants as a person asks for them: a VCF with its genome, or pairs of sequences, to tables and files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from l2g_ray.data.genome import Genome
from l2g_ray.data.table_writer import SUFFIXES
from l2g_ray.errors import UserError
from l2g_ray.explain.variants import VCF_SUFFIXES, Policy, score_pairs, score_vcf
from l2g_ray.predict import Predictor

STRANDS = ("auto", "+", "-", "both")


@dataclass(frozen=True)
class Effects:
    """What was scored, in words, sentences that a reader must know, and the strand that the model read."""

    scored: str
    strand: str
    warnings: list[str]
    notes: list[str]


def score_variants(
    predictor: Predictor,
    *,
    vcf: Path | None = None,
    genome: Path | None = None,
    pairs: Path | pa.Table | None = None,
    targets: Sequence[Path] = (),
    collect: Callable[[pa.Table], object] = lambda table: None,
    on_mismatch: str = "error",
    at_edge: str = "pad",
    strand: str = "auto",
    window_bp: int | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Effects:
    """Score both alleles of a VCF's variants, or of pairs of sequences.

    Parameters
    ----------
    pairs : a file, or a table in memory, with the columns `ref` and `alt`.
    targets : files to write: tables and, of a VCF, VCFs.
    collect : gets every table of scores, in order.
    on_mismatch, at_edge : see `Policy`.
    strand : 'auto' reads both where the model predicts means over both, else '+'.
    window_bp : by default the longest sequence that the model reads.

    Raises
    ------
    UserError : options that do not go together; and as `score_vcf` and `score_pairs`.
    """
    if (vcf is None) == (pairs is None):
        raise UserError("give either a VCF with its genome, or pairs of sequences")
    if vcf is not None and genome is None:
        raise UserError("a VCF needs the genome (FASTA) that its variants were called on")
    if pairs is not None and (genome is not None or window_bp is not None or strand == "-"):
        raise UserError("pairs are scored as they are; leave out the genome, the window and strand '-'")
    for target in targets:
        if not target.name.endswith((*SUFFIXES, *VCF_SUFFIXES)):
            raise UserError(f"{target}: the output must end in {', '.join((*SUFFIXES, *VCF_SUFFIXES))}")
        if not target.absolute().parent.is_dir():
            raise UserError(f"{target}: no such folder; make it first")
    if window_bp is not None and window_bp > predictor.length_bp:
        raise UserError(f"a window of {window_bp:,} bp: this model reads up to {predictor.length_bp:,} bp; lower it")
    for option, value, known in (
        ("strand", strand, STRANDS),
        ("on_mismatch", on_mismatch, ("error", "skip", "swap")),
        ("at_edge", at_edge, ("pad", "skip")),
    ):
        if value not in known:
            raise UserError(f"{option} '{value}': choose one of {', '.join(known)}")
    if strand == "auto":
        strand = "both" if predictor.strand_averaged else "+"
    mixed = "the label of this task belongs to one strand; the mean over both mixes two questions"
    warnings = [mixed] if predictor.task.strand_specific and strand == "both" else []
    if pairs is not None:
        n = score_pairs(predictor, pairs, targets, strand == "both", progress, collect)
        return Effects(f"{n:,} pairs scored", strand, warnings, [])
    assert vcf is not None
    assert genome is not None
    policy = Policy(window_bp or predictor.length_bp, on_mismatch, at_edge, strand)
    with Genome(genome) as opened:
        tally = score_vcf(predictor, vcf, opened, policy, targets, progress, collect)
    scored = f"{tally.scored:,} alleles of {tally.rows:,} rows scored"
    return Effects(scored, strand, warnings, tally.describe())
