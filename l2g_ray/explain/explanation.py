"""`l2g-ray explain`, but for the printing: from a run to contributions, motifs, names and files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from l2g_ray.arms import ARMS, ENSEMBLE
from l2g_ray.data.table_writer import refuse_overwrite
from l2g_ray.errors import UserError
from l2g_ray.explain import databases
from l2g_ray.explain.attribution import (
    BY_CAPTUM,
    METHODS,
    WARN_ABOVE,
    Attributions,
    ExplainedOutput,
    attribute,
    choose_output,
    describe_output,
    evaluate,
    make_weights,
    reads_one_hot,
)
from l2g_ray.explain.databases import KnownMotif, Match, Site
from l2g_ray.explain.linear import LinearOutput, attribute_linear, is_linear
from l2g_ray.explain.motifs import (
    Discovery,
    MotifSettings,
    choose_seqlet,
    discover_motifs,
    fit_seqlet,
)
from l2g_ray.explain.request import (
    Candidates,
    ExplainRequest,
    Explanation,
    choose_at_random,
    choose_top,
    open_candidates,
    read_candidates,
)
from l2g_ray.extras import how_to_install, need
from l2g_ray.models.ensemble import AverageModel, MeanOutputs
from l2g_ray.names import safe_names
from l2g_ray.predict import Predictor, load_predictor
from l2g_ray.results.explain_page import PAGES
from l2g_ray.run_folder import AVERAGE, Arm, choose_member
from l2g_ray.tasks.schema import Task

Q_BELOW = 0.05
ARRAYS = "one_hot.npz"  # in the folder of every explained output
# Arms with contributions of bases: those of which one stands for an ensemble, first by gradients, else exactly.
_BY_GRADIENTS, _EXACT = (
    tuple(name for name, kind in ARMS.items() if kind.explained == how) for how in ("gradients", "exact")
)


@dataclass(frozen=True)
class Opened:
    """What a request resolves to: the predictor of its model, the outputs to explain, and the folder to write to, if any."""

    predictor: Predictor
    outputs: list[int]
    candidates: Candidates
    out: Path | None


def open_request(request: ExplainRequest) -> Opened:
    """Find model and sequences, and read what else is named. All mistakes that can be known without computing end here.

    What stands for an ensemble: see `find_explained`.
    """
    arm = find_explained(request.arm)
    predictor = load_predictor(arm, request.device)
    if not is_linear(predictor.model) and not reads_one_hot(predictor.model):
        others = ", ".join((*_BY_GRADIENTS, *_EXACT))
        raise UserError(f"{arm.folder}: the arm {arm.name} has no contributions of bases; choose one of: {others}")
    if is_linear(predictor.model) and request.method != METHODS[0]:
        raise UserError(
            f"method '{request.method}': the arm {arm.name} is linear, its contributions are exact; leave the method out"
        )
    _need_packages(request, is_linear(predictor.model))
    outputs = choose_output(predictor.task, request.output)
    for name in request.databases or ():
        databases.read_database(name)
    if request.known is not None:
        databases.read_list(request.known)
    if request.sequences is not None:
        candidates = read_candidates(predictor, request.sequences, request.sequence_column)
    else:
        candidates = open_candidates(predictor, arm, request.top)
    if request.truth is not None:
        databases.read_sites(request.truth, candidates.ids)
    out = _choose_folder(request, arm, predictor.task, outputs) if request.writes else None
    return Opened(predictor, outputs, candidates, out)


def _need_packages(request: ExplainRequest, linear: bool) -> None:
    """Raise UserError where a package that the request needs is missing; without JASPAR, motifs have no names."""
    modules = [] if linear else ["tangermeme"]
    if not linear and request.method in BY_CAPTUM:
        modules.append("captum")
    if request.with_motifs:
        modules += ["modiscolite", "memelite"]
    if request.writes:
        modules.append("logomaker")
    need("explain", "explain", *modules)


def _choose_folder(request: ExplainRequest, arm: Arm, task: Task, outputs: Sequence[int]) -> Path:
    """Return the folder to write to, made. Raises UserError where files that it must keep are in the way."""
    out = request.out or arm.local_folder("name an output folder (--out)") / "explain" / arm.name
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); name another output folder (--out)") from None
    if not os.access(out, os.W_OK):
        raise UserError(f"{out}: may not be written to; name another output folder (--out)")
    own = [out / folder_names(task)[output] for output in outputs]
    files = [Path(name) for name in (*(request.databases or ()), request.known) if name and Path(name).exists()]
    sequences = None if isinstance(request.sequences, pa.Table) else request.sequences
    refuse_overwrite([arm.folder, sequences, request.truth, *files], [*own, *(out / name for name in PAGES)])
    for place in own:
        if place.exists() and not (place / ARRAYS).exists():
            raise UserError(f"{place}: holds other files, which would be replaced; name another output folder (--out)")
    return out


def find_explained(arm: Arm) -> Arm:
    """Return what is explained of an arm: itself, but of an ensemble its arm with the largest weight that reads
    one-hot, or if none has weight the largest that is linear in k-mers.
    """
    return choose_member(arm, (_BY_GRADIENTS, _EXACT), "contributions of bases") if arm.name == ENSEMBLE else arm


def folder_names(task: Task) -> list[str]:
    """Return, for each output, the folder that its files go to; all different."""
    return safe_names(task.labels, otherwise="output")


def explain_output(
    request: ExplainRequest,
    opened: Opened,
    output: int,
    *,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Explanation:
    """Explain one output. `progress` receives the step, the amount done and the total."""
    task, model = opened.predictor.task, opened.predictor.model
    label = task.labels[output]
    weights = make_weights(task, output)
    timings_s: dict[str, float] = {}
    clock = _Clock(timings_s)
    device = opened.predictor.device
    linear = LinearOutput(model, weights) if is_linear(model) else None
    # Of the average of an earlier version, which joins arms, the prediction itself is explained.
    folds = list(model.members) if isinstance(model, AverageModel) and opened.predictor.arm.name != AVERAGE else []
    if folds and linear is None:
        model = MeanOutputs(folds)
    explained = ExplainedOutput(model, weights).to(device).eval() if linear is None else None

    def score(codes: np.ndarray, lengths_bp: np.ndarray) -> np.ndarray:
        if linear is not None:
            return linear.evaluate(codes)
        assert explained is not None
        return evaluate(explained, codes, lengths_bp, device, request.batch_size)

    progress("scoring", 0, len(opened.candidates.ids))
    if request.pick == "random":
        chosen = choose_at_random(opened.candidates, request.top, request.seed)
    else:
        chosen = choose_top(opened.candidates, score, request.top)
    clock.note("choose sequences")
    n = len(chosen.ids)
    common: dict[str, Any] = {
        "rc_average": request.rc_average,
        "output": label,
        "progress": lambda done: progress("contributions", done, n),
    }
    if linear is not None:
        attributions = attribute_linear(linear, chosen.codes, chosen.lengths_bp, **common)
    else:
        attributions = attribute(
            model,
            chosen.codes,
            chosen.lengths_bp,
            weights,
            method=request.method,
            n_references=request.n_references,
            seed=request.seed,
            device=device,
            batch_size=request.batch_size,
            steps=request.steps,
            **common,
        )
    clock.note("contributions")
    picked = {"highest": "those with the highest value", "random": "drawn at random"}[request.pick]
    notes = [f"{n:,} sequences of {len(opened.candidates.ids):,} ({chosen.source}), {picked}."]
    unit = describe_output(task, output)
    if linear is not None:
        notes.append(_describe_linear(linear))
    if folds:
        unit += f", mean over the {len(folds)} fold models"
        if task.kind != "regression":
            notes.append(
                "The arm predicts with the mean of the fold models' probabilities; explained is that of their logits."
            )
    warnings = _find_warnings(attributions)
    discovery: Discovery | None = None
    if request.with_motifs:
        progress("motifs", 0, 1)
        core_bp, flank_bp = choose_seqlet(chosen.lengths_bp)
        settings = MotifSettings(
            core_bp=request.core_bp or core_bp,
            flank_bp=flank_bp if request.flank_bp is None else request.flank_bp,
            min_seqlets=request.min_seqlets,
            max_seqlets=request.max_seqlets,
        )
        discovery = discover_motifs(attributions, settings)
        clock.note("motifs")
        notes.append(_describe_discovery(discovery, settings, chosen.lengths_bp, attributions.observed_only))
    targets, note = _read_targets(request)
    notes += [note] if note and discovery and discovery.motifs else []
    sites, planted_motifs = _read_truth(request, task, label, chosen)
    progress("names", 0, 1)
    queries = [motif.ppm for motif in discovery.motifs] if discovery else []
    found = databases.match_motifs(queries, [*planted_motifs, *targets], seed=request.seed)
    clock.note("names")
    matches = [match for match in found if match.q_value < Q_BELOW]
    planted = [(target, _best(found, target)) for target in planted_motifs]
    progress("names", 1, 1)
    return Explanation(
        output=label,
        folder=folder_names(task)[output],
        unit=unit,
        ids=chosen.ids,
        source=chosen.source,
        attributions=attributions,
        discovery=discovery,
        matches=matches,
        sites=sites,
        shares=_measure_shares(attributions, sites, label),
        planted=planted,
        comparison=_compare(request, task, label, discovery, matches, planted_motifs),
        notes=notes,
        warnings=warnings,
        timings_s=timings_s,
    )


class _Clock:
    def __init__(self, timings_s: dict[str, float]) -> None:
        self.timings_s = timings_s
        self.last = time.perf_counter()

    def note(self, name: str) -> None:
        now = time.perf_counter()
        self.timings_s[name] = now - self.last
        self.last = now


def _find_warnings(attributions: Attributions) -> list[str]:
    median = float(np.median(attributions.completeness_errors))
    if median <= WARN_ABOVE:
        return []
    return [
        f"The contributions of {attributions.method} do not add up: their sum misses the difference that they explain by "
        f"{median:.0%} (median). Do not read them as shares of the prediction."
    ]


def _describe_linear(linear: LinearOutput) -> str:
    """Return what the contributions to a linear model are."""
    return (
        f"Exact: the bias, {linear.bias:.3g}, and the contributions add up to the value. The part of each k-mer (weight times "
        "value in this sequence) is divided equally among the bases that it reads. Only bases of the sequence have one."
    )


def _describe_discovery(
    discovery: Discovery, settings: MotifSettings, lengths_bp: np.ndarray, observed_only: bool
) -> str:
    if discovery.motifs:
        read = ", without hypothetical contributions" if observed_only else ""
        return f"Motifs by TF-MoDISco from seqlets of {settings.core_bp} bp with {settings.flank_bp} bp on either side{read}."
    longest_bp = int(lengths_bp.max())
    if settings.window_bp > longest_bp:
        fitting = fit_seqlet(longest_bp)
        remedy = (
            "sequences are too short for motifs"
            if fitting is None
            else "try --core-bp {} --flank-bp {}".format(*fitting)
        )
        return (
            f"No motif: the window of TF-MoDISco, {settings.window_bp} bp (--core-bp {settings.core_bp} and --flank-bp "
            f"{settings.flank_bp} on either side), is longer than the longest sequence, {longest_bp} bp; {remedy}."
        )
    return (
        f"No motif: too few seqlets of {settings.window_bp} bp stand out or resemble each other in {len(lengths_bp):,} "
        f"sequences (at least {settings.min_seqlets} of a sign are needed, {settings.min_cluster_seqlets} for a motif)."
        f"{f' TF-MoDISco stopped with {discovery.reason}.' if discovery.reason else ''}"
    )


def _read_targets(request: ExplainRequest) -> tuple[list[KnownMotif], str]:
    names = request.databases
    if names is None:
        if not databases.has_jaspar():
            return [], f"Motifs are not named: JASPAR is not installed; run: {how_to_install('explain')}"
        names = ("jaspar:vertebrates",)
    found = [motif for name in names for motif in databases.read_database(name)]
    return found, f"Named by TOMTOM against {', '.join(names)} ({len(found):,} motifs), q < {Q_BELOW}."


def _read_truth(
    request: ExplainRequest, task: Task, label: str, chosen: Candidates
) -> tuple[list[Site], list[KnownMotif]]:
    """Return all planted sites of the chosen sequences, and as motifs those that drive this output."""
    path = request.truth or shipped_truth(task)
    if path is None:
        return [], []
    sites = databases.read_sites(path, chosen.ids)
    own = [site for site in sites if site.output == label]
    return sites, databases.build_motifs(own, chosen.codes, "planted")


def shipped_truth(task: Task) -> Path | None:
    """`truth.parquet` beside the data that the package brings for a task, if there is one."""
    import l2g_ray

    path = Path(l2g_ray.__file__).parent / "data" / (task.folder or "") / "truth.parquet"
    return path if task.folder and path.is_file() else None


def _measure_shares(attributions: Attributions, sites: Sequence[Site], label: str) -> dict[str, dict[str, float]]:
    if not sites:
        return {}
    shape = attributions.codes.shape
    own = [site for site in sites if site.output == label]
    return {
        "sites of this output": databases.measure_share(attributions, databases.cover(own, shape)),
        "all sites": databases.measure_share(attributions, databases.cover(sites, shape)),
    }


def _compare(
    request: ExplainRequest,
    task: Task,
    label: str,
    discovery: Discovery | None,
    matches: list[Match],
    planted: list[KnownMotif],
) -> databases.Comparison | None:
    if discovery is None:
        return None
    entry = (
        databases.read_list(request.known) if request.known else databases.find_list(f"{task.bench}/{task.name}", label)
    )
    if entry is None and planted:
        entry = databases.KnownList(
            title="Planted motifs", motifs=tuple(databases.KnownName(motif=motif.name) for motif in planted)
        )
    return None if entry is None else databases.compare(entry, len(discovery.motifs), matches)


def _best(matches: Sequence[Match], target: KnownMotif) -> Match | None:
    return min((match for match in matches if match.target is target), key=lambda match: match.p_value, default=None)
