"""Effects of variants: what a model says of both alleles; from a VCF with its genome, or a table of pairs, to files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from l2g_ray.data.genome import Genome
from l2g_ray.data.readers import COLUMNS, VcfHeader, VcfRow, iter_tables, name_input, open_vcf
from l2g_ray.data.table_writer import SUFFIXES, TableWriter, WholeFile, refuse_overwrite
from l2g_ray.errors import UserError, nearest
from l2g_ray.explain.scores import Scores, score_sequences, scored_outputs
from l2g_ray.names import safe_names
from l2g_ray.predict import Predictor
from l2g_ray.sequence import CODE_TABLE
from l2g_ray.tasks.schema import Task

# Why an allele has no score: values of the column `status`.
REASONS = {
    "ref_mismatch": "REF is not what the genome has",
    "unknown_contig": "the genome has no such contig",
    "outside_contig": "beyond the end of the contig",
    "contig_edge": "the window reaches over the contig's edge",
    "not_a_sequence": "a symbolic allele, a breakend or none",
    "too_long": "an allele longer than the window",
}
SCORED, SWAPPED = "scored", "swapped"
# What does not fit the genome is the user's to decide about; the others can only be left out.
MISMATCHES = ("ref_mismatch", "unknown_contig", "outside_contig")
_COMPLEMENT = str.maketrans("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN")


@dataclass(frozen=True)
class Policy:
    """How variants are read. `length_bp` is the window's length.

    on_mismatch : 'error' stops at a row that does not fit the genome; 'skip' leaves it without scores; 'swap' takes a
        row whose ALT is what the genome has (the scores stay those of the file's own REF and ALT), and skips the rest.
    at_edge : 'pad' fills with N beyond the contig, 'skip' leaves such rows without scores.
    strand : '+' or '-': which strand the model reads; 'both': the mean over the two.
    """

    length_bp: int
    on_mismatch: str = "error"
    at_edge: str = "pad"
    strand: str = "both"


@dataclass(frozen=True)
class Allele:
    """One alternative of one row: the two sequences, or why there are none."""

    row: VcfRow
    index: int
    status: str
    reference: str = ""
    alternative: str = ""
    padded_bp: int = 0

    @property
    def is_scored(self) -> bool:
        """Whether there are sequences."""
        return self.status in (SCORED, SWAPPED)


@dataclass
class Tally:
    """Counts over a file. `first` is the line at which each reason came first."""

    rows: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    padded: int = 0

    def add(self, alleles: Iterable[Allele]) -> None:
        """Count the alleles of one row."""
        self.rows += 1
        for allele in alleles:
            self.counts[allele.status] = self.counts.get(allele.status, 0) + 1
            self.first.setdefault(allele.status, allele.row.line)
            self.padded += bool(allele.padded_bp)

    @property
    def scored(self) -> int:
        """Alleles with scores."""
        return self.counts.get(SCORED, 0) + self.counts.get(SWAPPED, 0)

    def describe(self) -> list[str]:
        """Return a sentence for each thing that a reader must know, none where all went well."""
        entries = []
        if n := self.counts.get(SWAPPED, 0):
            entries.append(f"{n:,} with REF and ALT exchanged in the file (first: line {self.first[SWAPPED]})")
        entries += [
            f"{self.counts[reason]:,} without scores: {text} (first: line {self.first[reason]})"
            for reason, text in REASONS.items()
            if reason in self.counts
        ]
        if self.padded:
            entries.append(f"{self.padded:,} at a contig's edge: the missing bases are N")
        return entries


class Windows:
    """Cuts the two windows of each allele out of a genome."""

    def __init__(self, genome: Genome, policy: Policy, where: str) -> None:
        self.genome, self.policy, self.where = genome, policy, where
        self._lengths_bp = genome.chromosomes()
        self._names: dict[str, str | None] = {}

    def cut(self, row: VcfRow) -> list[Allele]:
        """Return an `Allele` for each alternative of a row.

        Raises UserError, naming the line, for a row that does not fit the genome under the policy 'error'.
        """
        alleles = [self._cut_one(row, i) for i in range(len(row.alts))]
        for allele in alleles:
            if allele.status in MISMATCHES and self.policy.on_mismatch == "error":
                raise UserError(self._describe(allele))
        return alleles

    def _cut_one(self, row: VcfRow, index: int) -> Allele:
        alt = row.alts[index]
        if alt is None:
            return Allele(row, index, "not_a_sequence")
        name = self._find(row.chrom)
        if name is None:
            return Allele(row, index, "unknown_contig")
        start = row.pos - 1
        if start < 0 or start + len(row.ref) > self._lengths_bp[name]:
            return Allele(row, index, "outside_contig")
        status, there = SCORED, row.ref
        if not self._stands(name, start, row.ref):
            if self.policy.on_mismatch != "swap" or not self._stands(name, start, alt):
                return Allele(row, index, "ref_mismatch")
            status, there = SWAPPED, alt
        if max(len(row.ref), len(alt)) > self.policy.length_bp:
            return Allele(row, index, "too_long")
        windows = [
            self._window(name, start, len(there), bases, max(len(row.ref), len(alt))) for bases in (row.ref, alt)
        ]
        padded_bp = max(padded for _, padded in windows)
        if padded_bp and self.policy.at_edge == "skip":
            return Allele(row, index, "contig_edge", padded_bp=0)
        return Allele(row, index, status, windows[0][0], windows[1][0], padded_bp)

    def _find(self, chrom: str) -> str | None:
        if chrom not in self._names:
            try:
                self._names[chrom] = self.genome.find_chromosome(chrom)
            except UserError:
                self._names[chrom] = None
        return self._names[chrom]

    def _stands(self, name: str, start: int, bases: str) -> bool:
        end = start + len(bases)
        if end > self._lengths_bp[name]:
            return False
        # As codes: a letter of IUPAC in one and N in the other are the same to the model.
        there = self.genome.fetch(name, start, end)
        return bool((_codes(there) == _codes(bases)).all())

    def _window(self, name: str, start: int, replaced_bp: int, bases: str, longest_bp: int) -> tuple[str, int]:
        """Return the window with `bases` in place of `replaced_bp` bases from `start`, and its bases of padding."""
        left_bp = (self.policy.length_bp - longest_bp) // 2
        right_bp = self.policy.length_bp - left_bp - len(bases)
        left, left_pad = self._fetch(name, start - left_bp, start)
        right, right_pad = self._fetch(name, start + replaced_bp, start + replaced_bp + right_bp)
        text = left + bases + right
        return (text.translate(_COMPLEMENT)[::-1] if self.policy.strand == "-" else text), left_pad + right_pad

    def _fetch(self, name: str, start: int, end: int) -> tuple[str, int]:
        inside_start, inside_end = max(start, 0), min(end, self._lengths_bp[name])
        if inside_start >= inside_end:
            return "N" * (end - start), end - start
        text = self.genome.fetch(name, inside_start, inside_end)
        before, after = inside_start - start, end - inside_end
        return "N" * before + text + "N" * after, before + after

    def _describe(self, allele: Allele) -> str:
        row = allele.row
        place = f"{self.where}, line {row.line}: {row.chrom}:{row.pos}"
        remedy = "give the genome that the variants were called on, or leave such rows out (on mismatch: skip)"
        if allele.status == "unknown_contig":
            return f"{place}: no contig '{row.chrom}' in {self.genome.path} ({nearest(row.chrom, self._lengths_bp)}); {remedy}"
        length_bp = self._lengths_bp[self._find(row.chrom) or ""]
        if allele.status == "outside_contig":
            return f"{place}: {row.chrom} is {length_bp:,} bp long in {self.genome.path}; {remedy}"
        there = self.genome.fetch(row.chrom, row.pos - 1, row.pos - 1 + len(row.ref))
        return f"{place}: REF is '{_shorten(row.ref)}', but the genome has '{_shorten(there)}'; {remedy}"


def _codes(bases: str) -> np.ndarray:
    return CODE_TABLE[np.frombuffer(bases.upper().encode(), np.uint8)]


def _shorten(bases: str) -> str:
    return bases if len(bases) <= 20 else f"{bases[:20]}..."


VCF_SUFFIXES = (".vcf", ".vcf.gz", ".vcf.bgz")
INFO_PREFIX = "L2G_"
FACT_PREFIX = "##l2g_ray_"
CHUNK_ROWS = 512  # read, scored and written at once
# Column of the table to INFO field and what it is.
_FIELDS = {
    "ref": ("REF", "score of the reference allele"),
    "alt": ("ALT", "score of the alternative allele"),
    "diff": ("DIFF", "score of the alternative minus score of the reference"),
    "log_odds_diff": ("LOGODDS", "log-odds of the alternative minus those of the reference, natural logarithm"),
}


def score_vcf(
    predictor: Predictor,
    vcf: Path,
    genome: Genome,
    policy: Policy,
    targets: Sequence[Path],
    progress: Callable[[int], None] = lambda rows: None,
    collect: Callable[[pa.Table], object] = lambda table: None,
) -> Tally:
    """Score every alternative allele of a VCF into tables (.csv, .tsv, .parquet) and VCFs (.vcf, .vcf.gz).

    The VCF is streamed. A VCF that is written has the lines of the input, with INFO fields `L2G_*` added (those of an
    earlier run replaced); a .gz is compressed by bgzip. Returns the counts.

    Raises
    ------
    UserError : an output that is one of the inputs, a faulty file, a row that does not fit the genome under the policy 'error', an output that cannot be
        written, or a file of which no allele could be scored. Nothing is left then.
    """
    refuse_overwrite([vcf, genome.path], targets)
    header, rows = open_vcf(vcf)
    tally = Tally()
    windows = Windows(genome, policy, str(vcf))
    with contextlib.ExitStack() as stack:
        facts = predictor.facts()
        tables = [stack.enter_context(TableWriter(t, facts)) for t in targets if not _is_vcf(t)]
        copies = [
            stack.enter_context(AnnotatedVcf(t, header, predictor.task, policy, facts)) for t in targets if _is_vcf(t)
        ]
        for chunk in _iter_chunks(rows, CHUNK_ROWS):
            alleles: list[Allele] = []
            for row in chunk:
                found = windows.cut(row)
                tally.add(found)
                alleles += found
            table = tabulate_alleles(predictor, alleles, policy.strand == "both")
            collect(table)
            for writer in tables:
                writer.write(table)
            for copy in copies:
                copy.write(chunk, table)
            progress(tally.rows)
        if not tally.rows:
            raise UserError(f"{vcf}: the file has no variants; give at least one row")
        if not tally.scored:
            raise UserError(
                f"{vcf}: no allele could be scored ({'; '.join(tally.describe())}); give another file or genome"
            )
    return tally


def score_pairs(
    predictor: Predictor,
    source: Path | pa.Table,
    targets: Sequence[Path],
    both_strands: bool,
    progress: Callable[[int], None] = lambda rows: None,
    collect: Callable[[pa.Table], object] = lambda table: None,
) -> int:
    """Score the columns `ref` and `alt` (sequences) of a table into tables: `id` and the effect columns; returns rows.

    Raises UserError for a missing column, a sequence that is empty, too long or no DNA, or an output that is no table.
    """
    for target in targets:
        if _is_vcf(target):
            raise UserError(f"{target}: pairs of sequences have no positions, so no VCF; write {', '.join(SUFFIXES)}")
    where = name_input(source)
    refuse_overwrite([] if isinstance(source, pa.Table) else [source], targets)
    done = 0
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(TableWriter(t, predictor.facts())) for t in targets]
        for table in iter_tables(source, CHUNK_ROWS, sequence_column="ref", sequence_flag="'ref'"):
            if "alt" not in table.column_names:
                raise UserError(f"{where}: no column 'alt' ({nearest('alt', table.column_names)}); rename the column")
            pairs = [
                predictor.clean(table[column], f"{where}, column '{name}'", done + 1).to_pylist()
                for name, column in (("ref", "sequence"), ("alt", "alt"))
            ]
            effects = _effects(predictor, pairs[0], pairs[1], both_strands)
            scored = pa.table({"id": table["id"], **effects})
            collect(scored)
            for writer in writers:
                writer.write(scored)
            done += len(table)
            progress(done)
    return done


def tabulate_alleles(predictor: Predictor, alleles: list[Allele], both_strands: bool) -> pa.Table:
    """Return one row an allele: line, chrom, pos, id, ref, alt, status, padded_bp, and effects (null if not scored).

    The effects of each score (`scored_outputs`) are `ref_`, `alt_`, `diff_` (alternative minus reference) and, of
    probabilities, `log_odds_diff_`.
    """
    known = np.array([a.is_scored for a in alleles], dtype=bool)
    scored = [a for a in alleles if a.is_scored]
    effects = _effects(predictor, [a.reference for a in scored], [a.alternative for a in scored], both_strands)
    columns: dict[str, pa.Array] = {
        "line": pa.array([a.row.line for a in alleles], pa.int64()),
        "chrom": pa.array([a.row.chrom for a in alleles], pa.string()),
        "pos": pa.array([a.row.pos for a in alleles], pa.int64()),
        "id": pa.array([a.row.name for a in alleles], pa.string()),
        "ref": pa.array([a.row.ref for a in alleles], pa.string()),
        "alt": pa.array([a.row.alts[a.index] or a.row.fields[4].split(",")[a.index] for a in alleles], pa.string()),
        "status": pa.array([a.status for a in alleles], pa.string()),
        "padded_bp": pa.array([a.padded_bp for a in alleles], pa.int64()),
    }
    for name, values in effects.items():
        whole = np.zeros(len(alleles))
        whole[known] = values
        columns[name] = pa.array(whole, pa.float64(), mask=~known)
    return pa.table(columns)


def _effects(
    predictor: Predictor, references: list[str], alternatives: list[str], both_strands: bool
) -> dict[str, np.ndarray]:
    task, reader = predictor.task, predictor.read(both_strands)
    empty = np.empty((0, task.n_outputs))
    scores = Scores(empty, None if task.kind == "regression" else empty)
    if references:
        scores = score_sequences(
            reader.forward,
            task,
            references + alternatives,
            both_strands=reader.strands_apart,
            batch_size=predictor.batch_size,
        )
    rows = np.arange(len(references))
    ref, alt = scores.take(rows), scores.take(rows + len(references))
    columns: dict[str, np.ndarray] = {}
    for i in scored_outputs(task):
        name = task.labels[i]
        a, b = ref.values[:, i], alt.values[:, i]
        columns |= {f"ref_{name}": a, f"alt_{name}": b, f"diff_{name}": b - a}
        if ref.log_odds is not None and alt.log_odds is not None:
            columns[f"log_odds_diff_{name}"] = alt.log_odds[:, i] - ref.log_odds[:, i]
    return columns


class AnnotatedVcf(WholeFile):
    """The input's lines with the scores in INFO, and `facts` about the model as header lines `##l2g_ray_<name>=`."""

    def __init__(
        self, target: Path, header: VcfHeader, task: Task, policy: Policy, facts: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(target)
        self.header = header
        self._facts = [f"{FACT_PREFIX}{name}={' '.join(text.split())}" for name, text in (facts or {}).items()]
        self._fields = _info_fields(task)
        self._describe = f"task {task.name}, {policy.length_bp} bp window, strand {policy.strand}"

    def write(self, rows: list[VcfRow], table: pa.Table) -> None:
        """Append rows; `table` has their alleles in order (`tabulate_alleles`)."""
        columns = {field: table[column].to_pylist() for column, (field, _) in self._fields.items()}
        statuses = table["status"].to_pylist()
        first = 0
        with self._refusing():
            if self._writer is None:
                self._writer = self._open()
                self._writer.write(self._head(len(rows[0].fields)))
            for row in rows:
                one = slice(first, first + len(row.alts))
                first = one.stop
                entries = [f"{INFO_PREFIX}STATUS={','.join(statuses[one])}"]
                if any(v is not None for field in columns for v in columns[field][one]):
                    entries += [f"{field}={','.join(map(_number, values[one]))}" for field, values in columns.items()]
                self._writer.write("\t".join(_with_info(row.fields, entries)) + "\n")

    def _open(self) -> Any:
        if self.target.suffix == ".vcf":
            return self._temporary.open("w", encoding="utf-8")
        from Bio import bgzf

        return bgzf.BgzfWriter(str(self._temporary))

    def _head(self, n_columns: int) -> str:
        earlier = (f"##INFO=<ID={INFO_PREFIX}", FACT_PREFIX)
        meta = [line for line in self.header.meta if not line.startswith(earlier)]
        if not meta or not meta[0].startswith("##fileformat="):
            meta.insert(0, "##fileformat=VCFv4.2")
        lines = [
            f'##INFO=<ID={field},Number=A,Type=Float,Description="{text} ({self._describe})">'
            for field, text in self._fields.values()
        ]
        lines.append(f'##INFO=<ID={INFO_PREFIX}STATUS,Number=A,Type=String,Description="scored, swapped, or why not">')
        columns = self.header.columns
        if not columns:
            samples = [f"SAMPLE{i + 1}" for i in range(max(0, n_columns - 9))]
            columns = (*COLUMNS, *(["FORMAT", *samples] if n_columns > len(COLUMNS) else []))
        return "\n".join([*meta, *self._facts, *lines, "\t".join([*columns, *COLUMNS[len(columns) :]])]) + "\n"


def _info_fields(task: Task) -> dict[str, tuple[str, str]]:
    """Effect column to INFO field and description; with one score the fields carry no label."""
    names = [task.labels[i] for i in scored_outputs(task)]
    fields: dict[str, tuple[str, str]] = {}
    for name, label in zip(names, safe_names(names, "A-Za-z0-9_.", "output"), strict=True):
        for column, (key, text) in _FIELDS.items():
            if column == "log_odds_diff" and task.kind == "regression":
                continue
            ending = "" if len(names) == 1 else f"_{label}"
            clean = name.replace('"', "'").replace("\\", "/")
            fields[f"{column}_{name}"] = (f"{INFO_PREFIX}{key}{ending}", f"{clean}: {text}")
    return fields


def _with_info(fields: tuple[str, ...], entries: list[str]) -> list[str]:
    whole = [*fields, *["."] * (len(COLUMNS) - len(fields))]
    kept = [item for item in whole[7].split(";") if item not in ("", ".") and not item.startswith(INFO_PREFIX)]
    whole[7] = ";".join(kept + entries)
    return whole


def _number(value: float | None) -> str:
    return "." if value is None else f"{value:.6g}"


def _is_vcf(target: Path) -> bool:
    return target.name.endswith(VCF_SUFFIXES)


def _iter_chunks(rows: Iterator[VcfRow], size: int) -> Iterator[list[VcfRow]]:
    chunk: list[VcfRow] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
