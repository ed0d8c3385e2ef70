"""A genome FASTA, plain or bgzip, read by place through an index (pyfaidx)."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import tempfile
import zlib
from pathlib import Path
from types import TracebackType

import pyfaidx

from l2g_ray.errors import UserError, nearest

_COMPLEMENT = str.maketrans("ACGTURYSWKMBDHVN", "TGCAAYRSWMKVHDBN")
_COMPRESSED = (".gz", ".bgz")  # pyfaidx goes by the name too
_DAMAGE = (ValueError, RuntimeError, OSError, EOFError, zlib.error, struct.error)


class Genome:
    """Chromosomes of a FASTA file by name and place; places are 0-based, the end excluded.

    The index is written beside the file, or into a folder for temporary files where the file's own is read-only.
    Usable in a `with` statement. Holds an open file: open one in each process.

    Raises
    ------
    UserError : no such file, an empty file, no FASTA, a gzip file that is not bgzip, lines of unequal length, a name
        that comes twice, a damaged file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        _check_kind(self.path)
        self._faidx = _open_indexed(self.path)
        self._lengths_bp = {name: int(record.rlen) for name, record in self._faidx.index.items()}
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
        try:
            text: str = self._faidx.fetch(name, start + 1, end)
        except _DAMAGE as error:
            raise UserError(f"{self.path}: {name} cannot be read ({error}); copy the file again") from None
        if len(text) != end - start:
            raise UserError(
                f"{self.path}: the file does not fit its index {self._faidx.indexname}; delete the index, "
                "and copy the file again if that does not help"
            )
        return text if strand != "-" else text.translate(_COMPLEMENT)[::-1]

    def close(self) -> None:
        """Close the file."""
        self._faidx.close()

    def __enter__(self) -> Genome:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Block(pyfaidx.BgzfBlock):
    """A block of a bgzip file.

    pyfaidx looks up the block before a place with `bisect_left`, which fails at a block's first byte when the block
    before it is full (65,536 bytes). With this order it finds the block itself.
    """

    def __lt__(self, place: int) -> bool:
        return bool(self.ustart <= place)


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
        if compressed != path.name.lower().endswith(_COMPRESSED):
            raise UserError(f"{path}: a FASTA file is named .gz if it is compressed by bgzip, and only then; rename it")
        if compressed:
            with gzip.open(path) as text:
                head = text.read(4096)
    except PermissionError:
        raise UserError(f"{path}: no permission to read the file; change its permissions") from None
    except _DAMAGE as error:
        raise UserError(f"{path}: the file is cut short or damaged ({error}); copy it again") from None
    head = head.lstrip()
    if not head:
        raise UserError(f"{path}: the file is empty; give the genome's FASTA file")
    if head[:1] not in (b">", b";"):
        raise UserError(f"{path}: is no FASTA file, which starts with a '>' header; give the genome's FASTA file")


def _open_indexed(path: Path) -> pyfaidx.Faidx:
    folders = (path.parent, _temporary_folder(path))
    for folder in folders:
        if all(index.exists() and index.stat().st_mtime >= path.stat().st_mtime for index in _indices(path, folder)):
            return _open(path, folder)
    for folder in folders:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            workplace = tempfile.TemporaryDirectory(dir=folder, prefix=".index-")
        except OSError:
            continue
        # Moved when complete: another process may look for the index at this moment.
        with workplace as work:
            opened = _open(path, Path(work))
            for made, final in zip(_indices(path, Path(work)), _indices(path, folder), strict=True):
                os.replace(made, final)
        opened.indexname = str(_indices(path, folder)[0])
        return opened
    raise UserError(f"{folders[1]}: no place to write the index of {path}; make one of the two folders writable")


def _temporary_folder(path: Path) -> Path:
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"l2g-ray-{os.getuid()}" / key


def _indices(path: Path, folder: Path) -> list[Path]:
    suffixes = (".fai", ".gzi") if path.name.lower().endswith(_COMPRESSED) else (".fai",)
    return [folder / f"{path.name}{suffix}" for suffix in suffixes]


def _open(path: Path, folder: Path) -> pyfaidx.Faidx:
    indices = _indices(path, folder)
    try:
        faidx = pyfaidx.Faidx(
            str(path),
            indexname=str(indices[0]),
            gzi_indexname=str(indices[-1]),
            as_raw=True,
            sequence_always_upper=True,
        )
    except pyfaidx.FastaIndexingError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be indexed ({reason}); give all lines of a record one length") from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        if "Duplicate key" in reason:
            name = reason.partition('"')[2].strip('"')
            raise UserError(f"{path}: two chromosomes are named '{name}'; rename or remove one") from None
        raise UserError(
            f"{path}: cannot be indexed ({reason}); delete {indices[0]} if it is there, or copy the FASTA again"
        ) from None
    if len(indices) == 2:
        faidx.gzi_index = [_Block(*block) for block in faidx.gzi_index]
    return faidx
