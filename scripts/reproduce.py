"""Run what the ledger lacks, a part at a time, at the lowest priority.

    python -m scripts.reproduce --data-dir DIR              # all parts, in order; many hours on two cores
    python -m scripts.reproduce --data-dir DIR gue nt       # some; also one: gue/gue-mouse_0
    python -m scripts.reproduce --data-dir DIR --print      # what is left, with its commands and estimated minutes

A part is one `l2g-ray` command of at most about an hour on two cores, and one file of `results/`. It is skipped where the file is
of the same command and of the stages as they are now. A run that was stopped resumes from what is in `--out`. Nothing is
committed; `python -m scripts.results_tables` then fills the tables of the docs.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NoReturn

from l2g_ray.arms import ARMS
from l2g_ray.errors import UserError, nearest
from l2g_ray.studies.study import ARMS_OF_STUDIES, find_study, read_baseline_arms
from l2g_ray.tasks.catalogue import find_tasks
from scripts.ledger import LEDGER, collect, count_cpu_s, is_current, read, write

CORES = 2
GUE = ("mouse_0", "mouse_2", "tf_0", "tf_1", "tf_3", "prom_core_all", "prom_core_notata", "prom_300_tata")
LONG = ("H3K14ac", "H3K36me3", "H3K4me1", "H3K4me2", "H3K4me3", "H4ac")  # of nt: L2G is a part of its own
STAGE_TASKS = ("gue/mouse_0", "nt/H3", "nt/enhancers", "nt/promoter_tata")
FIGURE_5_TASKS = ("nt/H3", "nt/enhancers", "nt/promoter_tata")
SIZE_TASKS = ("nt/H3", "nt/enhancers")
REST = (
    "mpra/yeast_native_promoters", "uci/splice_junction", "genomic_benchmarks/human_enhancers_cohn",
    "genomic_benchmarks/human_ensembl_regulatory", "demo/splice_junction", "demo/enhancer_grammar",
)  # fmt: skip
# Study: its arms, the control first. Each other arm is a part beside the control, whose stages are then in the store.
STAGES_PAY = {
    "embedder": ("dash", "no_search"), "alpha": ("1", "0.1", "0", "none"), "weights": ("pretrained", "random"),
    "combine": ("skip", "embedder"), "tuning": ("asha", "random"),
}  # fmt: skip
# What is said of the ensemble is said without L2G: a study compares L2G wherever all arms have it.
ENSEMBLES = {"folds": ("3", "5"), "ensemble": ("stack", "greedy", "mean", "best")}
WITHOUT_L2G = tuple(arm for arm in ARMS if arm != "l2g")


@dataclass(frozen=True, eq=False)
class Part:
    """One command, and one file of the ledger.

    Parameters
    ----------
    group : folder of the ledger.
    name : of the file in it.
    task : BENCH/TASK.
    words : the command without options that all parts have.
    variants : dotted settings of each run of the task, for the estimate.
    ahead : it only trains what later parts share; it is left out where an earlier part has trained the same.
    language_model : in place of that of all parts; empty for that.
    """

    group: str
    name: str
    task: str
    words: tuple[str, ...]
    variants: tuple[Mapping[str, Any], ...]
    ahead: bool = False
    language_model: str = ""

    def __str__(self) -> str:
        return f"{self.group}/{self.name}"

    @property
    def run(self) -> str:
        """The run's folder in `--out`."""
        return f"{self.group}-{self.name}"

    def command(self, options: argparse.Namespace) -> list[str]:
        """The whole command."""
        given = {
            "preset": options.preset, "language-model": self.language_model or options.language_model, "data-dir": options.data_dir,
            "seeds": options.seeds, "out": options.out, "name": self.run,
        }  # fmt: skip
        return ["l2g-ray", *self.words, *(str(word) for name, value in given.items() for word in (f"--{name}", value))]


def list_parts(second_model: str | None = None) -> list[Part]:
    """Return all parts, in the order in which they run; those of the group `size` only with a second language model."""
    parts = [_suite("gue", f"gue/{name}") for name in GUE]
    for name in (task.name for task in find_tasks("nt")):
        if name in LONG:
            parts.append(_suite("nt", f"nt/{name}", ".without_l2g", {"arms": list(WITHOUT_L2G)}))
        parts.append(_suite("nt", f"nt/{name}"))
    for task in STAGE_TASKS:
        parts += [part for study, arms in STAGES_PAY.items() for part in _study("stages", task, study, arms)]
        parts += [_vary("stages", task, key, values) for key, values in ENSEMBLES.items()]
    for task in FIGURE_5_TASKS:
        for study in ("weights", "loss", "embedder"):
            parts += _study("figure5", task, study, tuple(find_study(study).arms))
    parts += [_suite("rest", task) for task in REST]
    if second_model:
        arms = {"arms": list(ARMS_OF_STUDIES)}
        parts += [replace(_suite("size", task, "", arms), language_model=second_model) for task in SIZE_TASKS]
    return parts + [_baseline("baselines", task, arm) for task in FIGURE_5_TASKS for arm in read_baseline_arms()]


def _suite(group: str, task: str, label: str = "", settings: Mapping[str, Any] | None = None) -> Part:
    bench, name = task.split("/")
    words = ["suite", "--bench", bench, "--tasks", name]
    words += [word for key, value in (settings or {}).items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return Part(group, f"{bench}-{name}{label}", task, tuple(words), (settings or {},), ahead=bool(label))


def _study(group: str, task: str, study: str, arms: tuple[str, ...]) -> Iterator[Part]:
    """The control, as a suite, then the control beside each other arm: with all arms a part would take hours."""
    known = {arm: {"arms": list(ARMS_OF_STUDIES)} | dict(find_study(study).arms[arm]) for arm in arms}
    control, *others = arms
    yield _suite(group, task, f".{study}.{control}", known[control])
    for arm in others:
        words = ("ablate", task, "--study", study, "--arms", f"{control},{arm}")
        yield Part(group, f"{task.replace('/', '-')}.{study}.{arm}", task, words, (known[control], known[arm]))


def _vary(group: str, task: str, key: str, values: tuple[str, ...]) -> Part:
    words = ("ablate", task, "--vary", f"{key}={';'.join(values)}", "--set", f"arms=[{', '.join(WITHOUT_L2G)}]")
    variants = tuple({"arms": WITHOUT_L2G, key: int(value) if value.isdigit() else value} for value in values)
    return Part(group, f"{task.replace('/', '-')}.{key}", task, words, variants)


def _baseline(group: str, task: str, arm: str) -> Part:
    variants = ({"arms": ARMS_OF_STUDIES}, {"arms": ARMS_OF_STUDIES} | dict(read_baseline_arms()[arm]["set"]))
    return Part(group, f"{task.replace('/', '-')}.{arm}", task, ("baseline", arm, task), variants)


def choose_parts(parts: list[Part], names: list[str]) -> list[Part]:
    """Return the parts of the groups or names given, all where none is. Raises UserError for an unknown one."""
    groups = list(dict.fromkeys(part.group for part in parts))
    for name in names:
        if name not in (known := [*groups, *map(str, parts)]):
            raise UserError(f"no part '{name}': {nearest(name, known)}; groups are {', '.join(groups)}")
    return [part for part in parts if not names or part.group in names or str(part) in names]


def estimate(parts: list[Part], options: argparse.Namespace) -> dict[Part, float | None]:
    """Return the minutes of parts on `CORES` cores by `l2g_ray.plan`, None where a task's data is not in the data's folder.

    What a part trains is not counted again in those that follow.
    """
    from l2g_ray.api.requests import find_source
    from l2g_ray.plan.rows import count_rows
    from l2g_ray.presets import resolve

    base = {"seeds": options.seeds, "model.language_model": options.language_model}
    trained: dict[str, set[str]] = {}
    known: dict[str, Any] = {}
    found: dict[Part, float | None] = {}
    for part in parts:
        if part.task not in known:
            try:
                source = find_source((part.task,), {}, options.data_dir)
                settings = resolve(options.preset, source.task.overrides, base)
                known[part.task] = (source.task, count_rows(source, settings.data))
            except UserError:
                known[part.task] = None
        if known[part.task] is None:
            found[part] = None
            continue
        task, rows = known[part.task]
        minutes = 0.0
        for variant in part.variants:
            given = base | dict(variant)
            if part.language_model:
                given["model.language_model"] = part.language_model
            settings = resolve(options.preset, task.overrides, given).for_task(task.strand_specific)
            same = trained.setdefault(part.task + settings.model_dump_json(exclude={"arms", "ensemble"}), set())
            if left := [arm for arm in (ARMS if settings.arms == "all" else settings.arms) if arm not in same]:
                minutes += _plan(task, settings.model_copy(update={"arms": tuple(left)}), rows)
                same |= set(left)
        found[part] = minutes
    return found


def _plan(task: Any, settings: Any, rows: Any) -> float:
    from l2g_ray.plan.costs import find_machine, read_known
    from l2g_ray.plan.encoder import read_shape
    from l2g_ray.plan.plan import plan_task

    core, shape = find_machine("cpu"), read_shape(settings.model.language_model)
    amount = plan_task(task, settings, rows, shape, precision="fp32", on_gpu=False).total("expected")
    hours = core.hours(amount.flops, "fp32", read_known().utilisation) + amount.start_s / 3600
    return hours * 60 / CORES


def show_left(minutes: Mapping[Part, float | None], options: argparse.Namespace) -> None:
    """Print a line for each part: its state, its minutes and, where it is left, its command."""
    left, total = 0, 0.0
    for part, planned in minutes.items():
        state, content = find_state(part, options)
        taken = planned if content is None else count_cpu_s(content) / 60 / CORES
        shown = "     –  " if taken is None else f"{taken:4.0f} min"
        if state == "done":
            print(f"done     {shown}  {part}")
        elif planned is None:
            print(f"no data  {shown}  {part}: not in {options.data_dir}")
        else:
            left, total = left + 1, total + (taken or 0.0)
            print(f"{state:8} {shown}  {part}: {shlex.join(part.command(options))}")
    print(f"{left} of {len(minutes)} parts left, about {total / 60:.1f} hours on {CORES} cores")


def find_state(part: Part, options: argparse.Namespace) -> tuple[str, dict[str, Any] | None]:
    """Return 'done', 'outdated' (another command or other stages) or 'left', and the ledger's content."""
    content = read(options.ledger / part.group / f"{part.name}.json")
    if content is None:
        return "left", None
    return "done" if is_current(content, shlex.join(part.command(options))) else "outdated", content


def run_part(part: Part, options: argparse.Namespace, lock: IO[str]) -> str:
    """Run a part until it succeeds, at most `--tries` times. Returns why it failed, empty where it did not."""
    command = [*shlex.split(options.l2g_ray), *part.command(options)[1:], "--replace"]
    command += ["--cpus", str(options.cpus)] if options.cpus else []
    for one in range(1, options.tries + 1):
        print(f"{part}: {shlex.join(command)}", flush=True)
        code = _call(command, lock)
        if not code:
            try:
                content = collect(options.out / part.run, part.task.split("/")[0])
                write(options.ledger / part.group / f"{part.name}.json", content)
            except UserError as error:
                return str(error)
            print(f"{part}: written to {options.ledger / part.group / part.name}.json", flush=True)
            return ""
        wait_s = options.wait_s if one < options.tries else 0
        print(f"{part}: try {one} of {options.tries} failed (exit code {code})", flush=True)
        time.sleep(wait_s)
    return f"failed {options.tries} times (exit code {code})"


def _call(command: list[str], lock: IO[str]) -> int:
    """Run a command; an interrupt stops it as SIGTERM does, so that it keeps what is finished.

    It holds the lock as well: whoever kills this process does not free a machine on which the command still runs.
    """
    with subprocess.Popen(command, start_new_session=True, pass_fds=[lock.fileno()]) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def run_parts(minutes: Mapping[Part, float | None], options: argparse.Namespace) -> int:
    """Run what is left of the parts, one at a time. Returns the number of those that failed."""
    options.out.mkdir(parents=True, exist_ok=True)
    failed = {}
    with (options.out / "reproduce.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{options.out}: another scripts.reproduce runs there; wait for it, or stop it") from None
        for part, planned in minutes.items():
            if find_state(part, options)[0] == "done":
                continue
            if planned is None:
                print(f"{part}: left out, its data is not in {options.data_dir}", flush=True)
            elif reason := run_part(part, options, lock):
                failed[part] = reason
    for name, reason in failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    return len(failed)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="a group, or GROUP/NAME; all by default")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder that holds the benchmarks' files")
    parser.add_argument("--print", action="store_true", dest="shows", help="show what is left, and run nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/results"), help="where runs are kept")
    parser.add_argument("--ledger", type=Path, default=LEDGER, help="folder of the ledger")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--language-model", default="minilm")
    parser.add_argument(
        "--second-model", help="adds the group size: two tasks with this language model, such as a folder's"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cpus", type=int, help="cores of Ray; all by default")
    parser.add_argument("--tries", type=int, default=3, help="how often a part that fails is started")
    parser.add_argument("--wait-s", type=float, default=60.0, help="seconds between two tries")
    parser.add_argument("--l2g-ray", default=shlex.quote(str(Path(sys.executable).with_name("l2g-ray"))))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        parts = list_parts(options.second_model)
        chosen = choose_parts(parts, options.parts)
        planned = estimate(parts, options)  # also of earlier parts, which those that were asked for build on
        minutes = {part: planned[part] for part in chosen if planned[part] != 0 or not part.ahead}
        if options.shows:
            show_left(minutes, options)
            return
        os.nice(19)
        if run_parts(minutes, options):
            sys.exit(1)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
