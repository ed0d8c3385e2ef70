"""Run one phase: its command under a time limit, its log, and one JSON line last. Called by `run.sh`, which sets the paths."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
import uuid
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "scripts" / "gpu"
# Seconds.
LIMITS = {"unpack": 90, "check": 120, "bench": 180, "suite": 240, "paper": 300}
# Processes of a phase carry it in their environment, whatever session or parent they have.
MARK = "L2G_GPU_PHASE"
LINE_LENGTH = 9000
PACKAGES = ("torch", "transformers", "ray", "mlflow", "numpy", "pyarrow", "peft", "l2g-ray")


def make_command(phase: str, out: Path, limit_s: float, smoke: bool) -> list[str]:
    """Return the command of a phase; what it finds goes to `out`, but for unpack and check."""
    python = sys.executable
    if phase == "unpack":
        return [python, str(HERE / "pieces.py"), "unpack", os.environ["KIT"], os.environ["GPU_HOME"]]
    if phase == "check":
        # Only files with such tests, so that the others need not be imported; no cache in the checkout.
        files = [str(path) for path in sorted(ROOT.glob("tests/test_*.py")) if "mark.gpu" in path.read_text()]
        options = ["-m", "gpu", "-vv", "-rs", "--durations=10", "--timeout=100", "-p", "no:cacheprovider"]
        return [python, "-m", "pytest", *options, f"--junitxml={out.with_suffix('.xml')}", *files]
    if phase == "bench":
        return [python, "-m", "benchmarks.gpu", "--out", str(out), *(["--smoke"] if smoke else [])]
    words = [python, str(HERE / f"{phase}.py"), "--out", str(out), "--limit-s", str(limit_s - 5)]
    return words + (["--cpu-smoke"] if smoke else [])


def run(command: list[str], log: Path, limit_s: float, mark: str) -> tuple[int, bool]:
    """Run a command until it ends or its time is over; return its exit code, and whether it was stopped.

    Its own time is over first: SIGTERM, so that it can keep what it has, and 10 seconds later SIGKILL.
    """
    environment = {**os.environ, MARK: mark, "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        stopped = False
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            stopped = True
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        finally:
            end_children(mark)
    return process.wait(), stopped


def end_children(mark: str) -> None:
    """End what a phase left running: processes with its mark, and no others."""
    for number, wait_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 0.0)):
        there = find_marked(mark)
        for pid in there:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        until = time.monotonic() + wait_s
        while there and time.monotonic() < until and find_marked(mark):
            time.sleep(0.1)


def find_marked(mark: str) -> list[int]:
    wanted, found = f"{MARK}={mark}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def read_tests(xml: Path) -> dict[str, Any]:
    """Return the counts of a pytest run, and its failures in a line each."""
    if not xml.exists():
        return {}
    cases = list(ElementTree.parse(xml).iter("testcase"))
    xml.unlink()
    found: dict[str, Any] = {"tests": len(cases), "passed": 0, "skipped": 0, "failed": [], "seconds": {}}
    for case in cases:
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        found["seconds"][name] = round(float(case.get("time", 0)), 2)
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        if bad is not None:
            found["failed"].append(f"{name}: {' '.join((bad.get('message') or '').split())[:300]}")
        elif case.find("skipped") is not None:
            found["skipped"] += 1
        else:
            found["passed"] += 1
    return found


def read_found(phase: str, out: Path, log: Path) -> Any:
    """Return what a phase left, or None."""
    try:
        if phase == "check":
            return read_tests(out.with_suffix(".xml"))
        return json.loads(log.read_text().splitlines()[-1] if phase == "unpack" else out.read_text())
    except (OSError, ValueError, IndexError, ElementTree.ParseError):
        return None


def describe_machine() -> dict[str, Any]:
    """Return the versions and the device that a phase ran on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        device = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip() or "no GPU"
    except (OSError, subprocess.TimeoutExpired):
        device = "no GPU"
    return {"device": device, "cores": os.cpu_count(), "versions": versions}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=LIMITS)
    parser.add_argument("--cpu-smoke", action="store_true")
    parser.add_argument("--limit-s", type=float)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    limit_s = given.limit_s or LIMITS[given.phase]
    folder = Path(os.environ["OUT"])
    folder.mkdir(parents=True, exist_ok=True)
    out, log = folder / f"{given.phase}.json", folder / f"{given.phase}.log"
    out.unlink(missing_ok=True)
    begun = time.perf_counter()
    rc, stopped = run(make_command(given.phase, out, limit_s, given.cpu_smoke), log, limit_s, uuid.uuid4().hex)
    found = read_found(given.phase, out, log)
    if rc:
        print("\n".join(re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace")).splitlines()[-40:]))
    line = {
        "phase": given.phase,
        "smoke": given.cpu_smoke,
        "rc": rc,
        "stopped_by_limit": stopped,
        "wall_s": round(time.perf_counter() - begun, 1),
        **describe_machine(),
        "found": found,
    }
    out.write_text(json.dumps(line, indent=1) + "\n")
    shown = json.dumps(line)
    if len(shown) > LINE_LENGTH:  # the file has all of it
        shown = json.dumps({**line, "found": f"{len(shown):,} characters, see {out}"})
    print(shown, flush=True)
    return 1 if rc else 0


if __name__ == "__main__":
    sys.exit(main())
