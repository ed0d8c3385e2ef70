"""A genome FASTA, plain or bgzip, read by place through an index."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import TracebackType

from l2g_ray.data.genome_index import DAMAGE, is_compressed, open_indexed
from l2g_ray.errors import UserError, nearest

_COMPLEMENT = str.maketrans("ACGTURYSWKMBDHVN", "TGCAAYRSWMKVHDBN")


class Genome:
    """Chromosomes of a FASTA file by name and place; places are 0-based, the end excluded.

    The index is checked against the file, and made and written beside it, or into the cache folder, where it does not fit.
    Usable in a `with` statement. Holds an open file: open one in each process.

    Raises
    ------
    UserError : no such file, an empty file, no FASTA, a gzip file that is not bgzip, lines of unequal length, a name
        that comes twice, a damaged file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        _check_kind(self.path)
        self._text, self._records = open_indexed(self.path)
        self._lengths_bp = {name: record.length_bp for name, record in self._records.items()}
        self._by_plain_name: dict[str, list[str]] = {}
        for name in self._lengths_bp:
            self._by_plain_name.setdefault(_plain_name(name), []).append(name)

    def chromosomes(self) -> dict[str, int]:
        """Length in bp by name, in the order of the file."""
        return dict(self._lengths_bp)

    def find_chromosome(self, name: str) -> str:
        """The file's own name of a chromosome: `name` itself, or the one that it means ('1' and 'chr1', 'MT' and 'chrM').

        Raises
        ------
        UserError : there is none, or `name` could mean two; the nearest name is given.
        """
        if name in self._lengths_bp:
            return name
        candidates = self._by_plain_name.get(_plain_name(name), [])
        if len(candidates) == 1:
            return candidates[0]
        raise UserError(
            f"no chromosome '{name}' in {self.path} ({nearest(name, candidates or self._lengths_bp)}); "
            "give the genome that the places belong to"
        )

    def fetch(self, chrom: str, start: int, end: int, strand: str = "+") -> str:
        """The end - start upper-case letters of a place, reverse-complemented (IUPAC letters too) for strand '-'.

        Raises
        ------
        UserError : an unknown chromosome, a place that is not within it, an index or a file that is damaged.
        """
        name = self.find_chromosome(chrom)
        length_bp = self._lengths_bp[name]
        if not 0 <= start < end <= length_bp:
            raise UserError(
                f"{self.path}: {chrom}:{start}-{end} is not within {name}, which is {length_bp:,} bp long; "
                "give the genome that the places belong to"
            )
        first, last = (self._records[name].place(base) for base in (start, end - 1))
        try:
            found = self._text.read(first, last + 1 - first).translate(None, b"\r\n")
        except DAMAGE as error:
            raise UserError(f"{self.path}: {name} cannot be read ({error}); copy the file again") from None
        if len(found) != end - start:
            raise UserError(f"{self.path}: {name} is not the same as when the file was opened; run the command again")
        text = found.upper().decode("latin-1")
        return text if strand != "-" else text.translate(_COMPLEMENT)[::-1]

    def close(self) -> None:
        """Close the file."""
        self._text.close()

    def __enter__(self) -> Genome:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _plain_name(name: str) -> str:
    plain = name.lower().removeprefix("chr")
    return "m" if plain == "mt" else plain


def _check_kind(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: no such file; give the genome's FASTA file")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the genome's FASTA file")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        compressed = head.startswith(b"\x1f\x8b")
        if compressed and b"BC\x02\x00" not in head[10:64]:
            raise UserError(
                f"{path}: is compressed by gzip, which cannot be read by place; "
                "compress it by bgzip (gunzip, then bgzip), or decompress it"
            )
        if compressed != is_compressed(path):
            raise UserError(f"{path}: a FASTA file is named .gz if it is compressed by bgzip, and only then; rename it")
        if compressed:
            with gzip.open(path) as text:
                head = text.read(4096)
    except PermissionError:
        raise UserError(f"{path}: no permission to read the file; change its permissions") from None
    except DAMAGE as error:
        raise UserError(f"{path}: the file is cut short or damaged ({error}); copy it again") from None
    head = head.lstrip()
    if not head:
        raise UserError(f"{path}: the file is empty; give the genome's FASTA file")
    if head[:1] not in (b">", b";"):
        raise UserError(f"{path}: is no FASTA file, which starts with a '>' header; give the genome's FASTA file")
