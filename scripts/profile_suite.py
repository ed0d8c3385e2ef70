"""Where the CPU seconds of a whole suite go, all of its processes counted: py-spy around a command, stacks sorted into kinds.

python scripts/profile_suite.py now.json -- l2g-ray suite --bench demo --out /tmp/profiled
python scripts/profile_suite.py --compare before.json now.json

Needs py-spy (`pip install py-spy`) and the right to look into other processes (root, or `kernel.yama.ptrace_scope=0`). Sampled
are threads that run, 20 times a second; a sample is 1/20 s of a core. What is native and not below a Python frame (Ray's own
servers, the threads of a product over several cores) is not seen.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

RATE_HZ = 20
# The first kind of which some frame matches. Training last-but-one, so that its parts stand before it.
KINDS = {
    "imports": r"<frozen importlib",
    "measuring forms of convolution": r"form_choice",
    "backward pass": r"l2g_ray/stages/.*;(?=.*(torch/autograd|_tensor\.py).*)",
    "optimiser": r"l2g_ray/stages/.*torch/optim",
    "simple baselines": r"l2g_ray/(stages|models)/baselines?\.py",
    "scores and bootstrap": r"l2g_ray/(stages/(evaluate|metrics)|results)",
    "batches": r"l2g_ray/data/",
    "saving and loading": r"safetensors|torch/serialization|l2g_ray/storage",
    "forward pass and loss": r"l2g_ray/(stages|models)/.*torch/nn|l2g_ray/models/",
    "the rest of the stages": r"l2g_ray/stages/",
    "MLflow": r"mlflow|sqlalchemy|alembic",
    "the rest of l2g_ray": r"l2g_ray/",
    "Ray's Python": r"/ray/|default_worker",
}
TRAINING = ("backward pass", "optimiser", "forward pass and loss", "the rest of the stages", "batches")


def main(arguments: list[str]) -> None:
    """Profile, or print two profiles beside each other."""
    if arguments[:1] == ["--compare"] and len(arguments) >= 2:
        print(tabulate([Path(name) for name in arguments[1:]]))
        return
    if "--" not in arguments[1:2] or len(arguments) < 3:
        raise SystemExit(__doc__)
    found = profile(arguments[2:])
    Path(arguments[0]).write_text(json.dumps(found, indent=1))
    print(tabulate([Path(arguments[0])]))


def profile(command: list[str]) -> dict[str, object]:
    """Run the command; CPU seconds by kind, and wall seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "stacks"
        spy = [
            "py-spy",
            "record",
            "--subprocesses",
            "--nonblocking",
            "--format",
            "raw",
            "-r",
            str(RATE_HZ),
            "-o",
            str(raw),
        ]
        began = time.perf_counter()
        try:
            ended = subprocess.run([*spy, "--", *command], stdin=subprocess.DEVNULL)
        except FileNotFoundError:
            raise SystemExit("py-spy is not installed: pip install py-spy") from None
        wall_s = time.perf_counter() - began
        if not raw.exists():
            raise SystemExit(
                f"py-spy left no profile (exit code {ended.returncode}); may it look into other processes?"
            )
        stacks = raw.read_text().splitlines()
    return {
        "command": command,
        "wall_s": wall_s,
        "seconds": {kind: n / RATE_HZ for kind, n in sort_stacks(stacks).items()},
    }


def sort_stacks(stacks: list[str]) -> Counter[str]:
    """Samples by kind, of lines `frame;frame;... count`."""
    patterns = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
    samples: Counter[str] = Counter()
    # A process is named by its command, which may have line breaks: a line without a count continues in the next line.
    for stack, count in re.findall(r"(.+?) (\d+)$", "\n".join(stacks), re.MULTILINE | re.DOTALL):
        kind = next((kind for kind, pattern in patterns.items() if pattern.search(stack)), "other Python")
        samples[kind] += int(count)
    return samples


def tabulate(paths: list[Path]) -> str:
    """A Markdown table of profiles, a column each."""
    found = [json.loads(path.read_text()) for path in paths]
    columns = [f["seconds"] for f in found]
    sums = [sum(seconds.values()) for seconds in columns]
    training = [sum(seconds.get(kind, 0) for kind in TRAINING) for seconds in columns]
    rows: list[tuple[str, list[str]]] = [
        *((kind, [f"{seconds.get(kind, 0):.0f}" for seconds in columns]) for kind in [*KINDS, "other Python"]),
        ("all that was seen", [f"{s:.0f}" for s in sums]),
        ("of it in training", [f"{t / max(s, 1e-9):.0%}" for t, s in zip(training, sums, strict=True)]),
        ("wall", [f"{f['wall_s']:.0f}" for f in found]),
    ]
    head = ["CPU seconds", *(path.stem for path in paths)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *([k, *c] for k, c in rows)])


if __name__ == "__main__":
    main(sys.argv[1:])
