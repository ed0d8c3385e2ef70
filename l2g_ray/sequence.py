"""The alphabet: Arrow strings to uint8 codes, one-hot on the device, reverse complement, shift.

Codes are A C G T N = 0..4. Sequences are padded on the right with N; `length_bp` says how many
positions are real, and the mask (True = real base) follows from it, so only codes and lengths travel.
IUPAC ambiguity letters (R Y S W K M B D H V) are read as N: an all-zero column, because one-hot
fractions would make an ambiguous base look like weak evidence for each of its readings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from l2g_ray.errors import UserError

if TYPE_CHECKING:  # data is read and checked without a model, and a model is fed with codes, not strings
    import pyarrow as pa
    import torch

ALPHABET = "ACGT"
N_CODE = 4
_INVALID = 255


def _code_table() -> np.ndarray:
    table = np.full(256, _INVALID, dtype=np.uint8)
    for code, letter in enumerate(ALPHABET):
        table[ord(letter)] = table[ord(letter.lower())] = code
    table[ord("U")] = table[ord("u")] = ALPHABET.index("T")  # RNA
    for letter in "NRYSWKMBDHV":
        table[ord(letter)] = table[ord(letter.lower())] = N_CODE
    return table


CODE_TABLE = _code_table()
_TRANSLATION = CODE_TABLE.tobytes()


def bytes_and_offsets(sequences: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the character buffer (uint8) and the n + 1 offsets of a string array, without a Python loop."""
    import pyarrow as pa

    if isinstance(sequences, pa.ChunkedArray):
        sequences = sequences.combine_chunks()
        if isinstance(sequences, pa.ChunkedArray):
            sequences = pa.concat_arrays(sequences.chunks) if sequences.num_chunks else pa.array([], pa.string())
    if pa.types.is_dictionary(sequences.type) or not (
        pa.types.is_string(sequences.type) or pa.types.is_large_string(sequences.type)
    ):
        sequences = sequences.cast(pa.large_string())
    width = np.int64 if pa.types.is_large_string(sequences.type) else np.int32
    _, offset_buffer, data_buffer = sequences.buffers()
    if offset_buffer is None or len(sequences) == 0:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    offsets = np.frombuffer(offset_buffer, width)[sequences.offset : sequences.offset + len(sequences) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.empty(0, np.uint8)
    return data[offsets[0] : offsets[-1]], (offsets - offsets[0]).astype(np.int64)


def encode(
    sequences: pa.Array | pa.ChunkedArray | list[str], length_bp: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Encode strings as right-padded codes.

    Parameters
    ----------
    sequences : n strings over A C G T U N and the IUPAC ambiguity letters, either case.
    length_bp : width of the result; the longest sequence when None. Longer sequences are cut at the right end.

    Returns
    -------
    codes (n, length_bp) uint8, and lengths_bp (n,) int64, the number of real positions of each row.

    Raises
    ------
    UserError : a letter that is no nucleotide; the message gives row and position, both counted from 0.
    """
    if isinstance(sequences, list):
        import pyarrow as pa

        sequences = pa.array(sequences, pa.large_string())
    raw, offsets = bytes_and_offsets(sequences)
    # bytes.translate is several times faster than indexing a table with an array.
    flat = np.frombuffer(raw.tobytes().translate(_TRANSLATION), np.uint8)
    if flat.size and flat.max() == _INVALID:
        position = int(np.argmax(flat == _INVALID))
        row = int(np.searchsorted(offsets, position, side="right") - 1)
        raise UserError(
            f"row {row}, position {position - int(offsets[row])}: '{chr(raw[position])}' is no nucleotide letter; "
            "use A C G T (or U), N, or the IUPAC letters RYSWKMBDHV"
        )
    lengths = np.diff(offsets)
    width = int(length_bp if length_bp is not None else (lengths.max() if len(lengths) else 0))
    kept = np.minimum(lengths, width)
    if not len(lengths) or not width:
        codes = np.full((len(lengths), width), N_CODE, dtype=np.uint8)
    elif (lengths == width).all():
        codes = flat.reshape(len(lengths), width).copy()
    else:
        codes = _pad(flat, offsets, width)
    return codes, kept


def _pad(flat: np.ndarray, offsets: np.ndarray, width: int) -> np.ndarray:
    """Return rows of codes (n, width) from joined ones, by Arrow's own padding: half the time of numpy's masks."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # Codes are ASCII letters to Arrow, if odd ones.
    rows = pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(flat))
    if np.diff(offsets).max() > width:
        rows = pc.utf8_slice_codeunits(rows, 0, width)
    padded = pc.ascii_rpad(rows, width, padding=chr(N_CODE))
    _, codes = padded.buffers()[1:]
    return np.frombuffer(codes, np.uint8, (len(offsets) - 1) * width).reshape(-1, width).copy()


def decode(codes: np.ndarray, lengths_bp: np.ndarray) -> list[str]:
    """Return the strings of right-padded codes (n, length) uint8; the inverse of `encode` up to case, U and IUPAC."""
    letters = np.frombuffer(b"ACGTN", np.uint8)
    return [letters[row[:n]].tobytes().decode() for row, n in zip(codes, lengths_bp, strict=True)]


def make_mask(lengths_bp: torch.Tensor, width: int) -> torch.Tensor:
    """Mask (batch, width), True where a real base stands, from lengths (batch,)."""
    import torch

    return torch.arange(width, device=lengths_bp.device)[None, :] < lengths_bp[:, None]


def one_hot(codes: torch.Tensor, mask: torch.Tensor, channels: int = 4) -> torch.Tensor:
    """Map one-hot (batch, channels, length) float32 of codes (batch, length); padding is all zeros.

    With 4 channels N is all zeros; with 5 channels N has a channel of its own (the official NT loader).
    """
    import torch

    identity = torch.eye(5, channels, device=codes.device)
    return (identity[codes.long()] * mask[..., None]).transpose(1, 2).contiguous()


def send(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return a tensor on another device; a copy to a GPU does not block the host."""
    import torch

    if torch.device(device).type != "cuda" or x.is_cuda:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def encode_batch(
    codes: torch.Tensor, lengths_bp: torch.Tensor, channels: int = 4
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Map codes (batch, length) and lengths (batch,) to one-hot (batch, channels, length) and mask (batch, 1,
    length), which is None when no position is padding. Both are on the codes' device; with lengths on the CPU nothing
    waits for it.
    """
    padded = bool((lengths_bp < codes.shape[1]).any())
    mask = make_mask(lengths_bp.to(codes.device, non_blocking=True), codes.shape[1])
    x = one_hot(codes, mask, channels)
    return x, mask[:, None].to(x.dtype) if padded else None


def reverse_complement(codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
    """Reverse complement of right-padded codes (batch, length); padding stays on the right. RC(RC(x)) = x."""
    import torch

    columns = torch.arange(codes.shape[1], device=codes.device)[None, :]
    source = lengths_bp.to(codes.device, non_blocking=True)[:, None] - 1 - columns
    flipped = torch.gather(codes, 1, source.clamp(min=0))
    complement = torch.where(flipped < N_CODE, 3 - flipped, flipped)  # uint8: 3 - 4 wraps, but is not taken
    return torch.where(source >= 0, complement, torch.full_like(codes, N_CODE))


def shift(codes: torch.Tensor, lengths_bp: torch.Tensor, offsets_bp: torch.Tensor) -> torch.Tensor:
    """Shift each row of codes (batch, length) right by offsets (batch,), left where negative; N fills the gap.

    The length stays: bases that leave the real range are lost, as in the official `shift_aug`.
    """
    import torch

    columns = torch.arange(codes.shape[1], device=codes.device)[None, :]
    source = columns - offsets_bp[:, None]
    inside = (source >= 0) & (source < lengths_bp[:, None]) & (columns < lengths_bp[:, None])
    moved = torch.gather(codes, 1, source.clamp(0, codes.shape[1] - 1))
    return torch.where(inside, moved, torch.full_like(codes, N_CODE))
