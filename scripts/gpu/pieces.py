"""Store weights and packages in pieces of at most 60 MB, and expand them on a machine that has torch and safetensors.

`prepare.sh` calls `half`, `int8` and `compare`; `run.sh` calls `unpack`. A piece holds archives (`*.tar.xz`), which are
unpacked as they are, and parts of a model (`NAME.1of2.safetensors`), which are expanded once all of them are there.
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import json
import re
import shutil
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SCALE = ".scale"
PART = re.compile(r"(?P<name>.+)\.(?P<part>\d+)of(?P<parts>\d+)\.safetensors")
# Smaller tensors, biases and norms are kept in float16.
LEAST_ELEMENTS = 4096
SENTENCES = (
    "the weather in Paris was mild this morning",
    "a transcription factor binds the promoter of this gene",
    "stocks fell sharply after the bank raised its rates",
)


def quantise(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 codes (rows, columns) and one scale a row (rows,): the largest absolute value of the row is code 127.

    Raises ValueError where a weight is further than half a step from its code.
    """
    weights = weights.float()
    scale = (weights.abs().amax(1) / 127).clamp_min(1e-12)
    codes = (weights / scale[:, None]).round().to(torch.int8)
    error = (weights - codes.float() * scale[:, None]).abs().amax(1)
    if bool((error > 0.5001 * scale).any()):
        raise ValueError(f"a row is {float((error / scale).max()):.3f} steps off; at most half a step is right")
    return codes, scale


def write_parts(source: Path, targets: list[Path]) -> None:
    """Store the weights of `source`, int8 where they are matrices, in as many files of about equal size."""
    parts: list[dict[str, Tensor]] = [{} for _ in targets]
    sizes = [0] * len(targets)
    for name, weights in sorted(load_file(source).items(), key=lambda item: -item[1].numel()):
        stored = {name: weights}
        if weights.is_floating_point() and weights.ndim == 2 and weights.numel() >= LEAST_ELEMENTS:
            codes, scale = quantise(weights)
            stored = {name: codes, name + SCALE: scale}
        elif weights.is_floating_point():
            stored = {name: weights.half()}
        smallest = sizes.index(min(sizes))
        parts[smallest] |= stored
        sizes[smallest] += sum(x.numel() * x.element_size() for x in stored.values())
    for target, part in zip(targets, parts):
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(part, target)


def expand(parts: list[Path], target: Path) -> None:
    """Write float16 weights that `from_pretrained` reads from all parts of a model."""
    stored = {name: values for part in parts for name, values in load_file(part).items()}
    weights = {}
    for name, values in stored.items():
        if name.endswith(SCALE):
            continue
        scale = stored.get(name + SCALE)
        weights[name] = values if scale is None else (values.float() * scale[:, None]).half()
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, target, metadata={"format": "pt"})


def write_half(source: Path, target: Path) -> None:
    """Write the weights of `source` in float16."""
    target.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: x.half() if x.is_floating_point() else x for name, x in load_file(source).items()}
    save_file(weights, target, metadata={"format": "pt"})


def compare(original: Path, folder: Path) -> dict[str, float]:
    """Return how far a model folder is from the original: cosines of the last hidden states of a few sentences."""
    from transformers import AutoModel, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(original)(list(SENTENCES), return_tensors="pt", padding=True)
    states = []
    for place in (original, folder):
        model = AutoModel.from_pretrained(place, dtype=torch.float32).eval()
        with torch.no_grad():
            states.append(model(**inputs).last_hidden_state[inputs["attention_mask"].bool()])
    cosines = torch.cosine_similarity(*states, dim=-1)
    return {"mean cosine": round(float(cosines.mean()), 5), "least cosine": round(float(cosines.min()), 5)}


def unpack(kit: Path, home: Path) -> dict[str, Any]:
    """Unpack what is new in the pieces below `kit` into `home`; return what was done, and what is there."""
    begun = time.perf_counter()
    done = home / ".unpacked"
    done.mkdir(parents=True, exist_ok=True)
    new, kept = [], 0
    for path in sorted(kit.glob("[0-9]*/*")):
        stamp = done / f"{path.name}.{_hash(path)}"
        if stamp.exists():
            kept += 1
            continue
        if path.name.endswith(".tar.xz"):
            with tarfile.open(path, "r:xz") as archive:
                archive.extractall(home, filter="data")
            compileall.compile_dir(home / "site", quiet=2, workers=0)  # else each of Ray's processes does it
        elif PART.fullmatch(path.name):
            (home / "parts").mkdir(exist_ok=True)
            shutil.copyfile(path, home / "parts" / path.name)
            for expanded in done.glob(f"{path.name.partition('.')[0]}.expanded"):
                expanded.unlink()
        stamp.touch()
        new.append(path.name)
    new += _expand_all(home, done)
    return {
        "new": new,
        "unpacked_before": kept,
        "seconds": round(time.perf_counter() - begun, 1),
        "site": len(list((home / "site").glob("*.dist-info"))),
        "models": sorted(path.parent.name for path in home.glob("*/model.safetensors")),
        "tasks": sorted(
            f"{path.parent.parent.name}/{path.parent.name}" for path in home.glob("data/*/*/train.parquet")
        ),
    }


def _expand_all(home: Path, done: Path) -> list[str]:
    found: dict[str, list[Path]] = {}
    wanted: dict[str, int] = {}
    for path in sorted(home.glob("parts/*")):
        if match := PART.fullmatch(path.name):
            found.setdefault(match["name"], []).append(path)
            wanted[match["name"]] = int(match["parts"])
    expanded = []
    for name, parts in found.items():
        stamp = done / f"{name}.expanded"
        if len(parts) < wanted[name] or stamp.exists():
            continue
        expand(parts, home / name / "model.safetensors")
        stamp.touch()
        expanded.append(name)
    return expanded


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (
        ("half", ("source", "target")),
        ("compare", ("original", "folder")),
        ("unpack", ("kit", "home")),
    ):
        command = commands.add_parser(name)
        for word in words:
            command.add_argument(word, type=Path)
    int8 = commands.add_parser("int8")
    int8.add_argument("source", type=Path)
    int8.add_argument("targets", type=Path, nargs="+")
    given = parser.parse_args()
    if given.command == "half":
        write_half(given.source, given.target)
    elif given.command == "int8":
        write_parts(given.source, given.targets)
    elif given.command == "compare":
        print(json.dumps(compare(given.original, given.folder)))
    else:
        print(json.dumps(unpack(given.kit, given.home)))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
