"""An output's explanation as a folder: arrays, tables, motifs and logos."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from l2g_ray.errors import UserError
from l2g_ray.explain.explanation import ARRAYS, Explanation
from l2g_ray.explain.motifs import format_meme, save_hdf5
from l2g_ray.sequence import N_CODE


def write_files(explanation: Explanation, out: Path) -> None:
    """Write an output's folder in `out` anew, whole or not at all: arrays, tables, motifs and logos.

    `one_hot.npz` and `hypothetical.npz` (n, 4, length) are what `modisco motifs` reads, `motifs.h5` is what it writes. Where
    only the bases that stand in the sequences have contributions, these are in `contributions.npz` instead.
    """
    from l2g_ray.explain.logos import plot_logo, to_information
    from l2g_ray.results.figures import save

    folder = out / explanation.folder
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        a = explanation.attributions
        np.savez_compressed(scratch / ARRAYS, a.one_hot.transpose(0, 2, 1).astype(np.int8))
        name = "contributions" if a.observed_only else "hypothetical"
        np.savez_compressed(scratch / f"{name}.npz", a.hypothetical.transpose(0, 2, 1))
        _write_csv(explanation.sequence_table(), scratch / "sequences.csv")
        if explanation.discovery is not None:
            _write_csv(explanation.motif_table(), scratch / "motifs.csv")
            motifs = explanation.discovery.motifs
            save_hdf5(explanation.discovery, scratch / "motifs.h5")
            (scratch / "motifs.meme").write_text(format_meme(motifs, _letter_shares(a.codes)))
            for motif in motifs:
                save(plot_logo(to_information(motif.ppm), "bits"), scratch / "logos" / f"{motif.name}_bits")
                save(plot_logo(motif.cwm, "contribution"), scratch / "logos" / f"{motif.name}_contribution")
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); name another folder with --out"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _letter_shares(codes: np.ndarray) -> np.ndarray:
    counts = np.bincount(codes[codes != N_CODE], minlength=4)[:4].astype(float)
    return counts / max(counts.sum(), 1)


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    text = io.StringIO()
    frame.to_csv(text, index=False, float_format="%.6g")
    path.write_text(text.getvalue())
