"""One task, from prepared shards to scores: select, search, align, finetune, refit, evaluate."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from math import log
from typing import TYPE_CHECKING, Any, TypeVar

from l2g_ray.arms import ARMS
from l2g_ray.config import BACKBONES, Settings
from l2g_ray.counts import Candidate, describe_end, list_candidates, name_trial, rung_epochs, use_rc
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.splits import Fold, make_folds
from l2g_ray.monitor.events import Note, StageDone, TrialName, Winner
from l2g_ray.orchestrate.keys import describe_data, make_baseline_job, name_member
from l2g_ray.orchestrate.place import Place, emit_history
from l2g_ray.orchestrate.spec import HyperParameters, SearchTrial
from l2g_ray.orchestrate.tasks import find_runner, run_jobs
from l2g_ray.plan.finished import Spent, list_spent
from l2g_ray.store.guard import persist
from l2g_ray.store.results import Job, StageResult, make_key

if TYPE_CHECKING:
    from hyperopt.pyll import Apply

T = TypeVar("T")

LORA_SETTINGS = ("lora_rank", "lora_alpha")
# Settings that a stage's result does not depend on, so that arms that differ in them share the result: the reference's key
# covers the text, and the arguments of an alignment have its alpha.
TEXT_SETTINGS = ("source", "source_path", "per_class", "reference_weights")
NOT_IN_ALIGN = frozenset({"alphas", *TEXT_SETTINGS})
NOT_IN_WARMUP = NOT_IN_ALIGN | {"enabled", "distance"}
# Backbones whose widths are in the keys of all embedders. Those of any other are in the keys of its own embedders alone.
FIRST_BACKBONES = ("resnet", "unet", "deepsea")


@dataclass(frozen=True)
class Member:
    """A trained model of an arm: its seed, and the fold that it has not seen (0 where there is one split only)."""

    arm: str
    seed: int
    fold: int
    result: StageResult


@dataclass(frozen=True)
class TaskOutcome:
    """All that one task's pipeline found; the leaderboard row is made of it.

    `members` are the models of all arms; `aligned` the embedders that L2G's were trained from, by seed and fold. Without L2G among
    the arms there are no `trials`.
    """

    task: str
    seeds: list[int]
    backbone: str
    select_scores: dict[str, float]
    architecture: list[tuple[int, int]]
    architecture_from: str
    precision: str
    trials: list[SearchTrial]
    best_trial: SearchTrial | None
    members: list[Member]
    aligned: dict[tuple[int, int], StageResult]
    baselines: dict[str, StageResult]
    evaluation: StageResult
    histories: dict[str, list[dict[str, float]]]
    cost: dict[str, float]
    spent: list[Spent]
    aligned_to: str
    wall_s: float
    pretrained: StageResult | None = None


class Pipeline:
    """Builds each stage's jobs from what the stage before found, with the keys that make results reusable."""

    def __init__(
        self,
        place: Place,
        prepared: PreparedTask,
        settings: Settings,
        reference: StageResult,
        pretrained: StageResult | None = None,
    ) -> None:
        self.place = place
        self.prepared = prepared
        self.reference = reference
        self.settings = settings
        self.wait_s = settings.cluster.storage_wait_s
        self.seeds = [settings.seed + i for i in range(settings.seeds)]
        rc = use_rc(settings, prepared.task)
        self.arms = [name for name in settings.arms if not (ARMS[name].one_strand and rc)]
        self.folds = make_folds(prepared, settings.folds, settings.data.split_seed)
        self.pretrained = pretrained
        self.results: list[StageResult] = [pretrained] if pretrained else []
        dumped = settings.model_dump(mode="json")
        # What every training stage depends on; each job adds its own stage's settings and inputs. Before alignment only
        # the shape and the LayerNorm of the language model's embeddings matter, not the text.
        self.common = describe_data(prepared, settings) | {
            "embedding": {name: reference.values[name] for name in ("width", "max_tokens", "norm_eps", "norm")},
            "precision": place.site.precision,
            "threads": place.slots.cpus,
        }
        if "lora" not in settings.finetune.train_layers:  # keys without it do not depend on it
            dumped["finetune"] = {k: v for k, v in dumped["finetune"].items() if k not in LORA_SETTINGS}
        self.dumped = dumped
        later = [name for name in BACKBONES if name not in FIRST_BACKBONES]
        self.widths: dict[str, list[int | None]] = {name: dumped["model"].pop(f"{name}_channels", []) for name in later}

    def run(self) -> TaskOutcome:
        """Run all stages; each takes from the store what is already there. `wall_s` is of this call alone."""
        start = time.monotonic()
        candidate, scores = Candidate("", "", []), dict[str, float]()
        if any(ARMS[arm].embeds for arm in self.arms):
            candidate, scores = self._select()
        architecture, origin = self._search(candidate)
        shape = replace(candidate, architecture=architecture)
        # Nothing but the evaluation waits for the other arms and the baselines: they train beside the stages of L2G.
        wait_for_others = self._beside(lambda: self._train_others(shape))
        trials: list[SearchTrial] = []
        best: SearchTrial | None = None
        aligned: dict[tuple[int, int], StageResult] = {}
        members: list[Member] = []
        try:
            if "l2g" in self.arms:
                inputs = self._align_all(shape)
                trials, best = self._finetune(shape, inputs)
                members, aligned = self._train_l2g(shape, best.trial or {}, inputs)
        finally:  # of a failure too: what a pipeline has started ends before it does
            others, fitted = wait_for_others()
        members = self._whole_arms([*others, *members])
        self._keep([*fitted.values(), *(member.result for member in members)])
        beside = [name for name in self.settings.baselines.names if name not in self.arms]
        baselines = {name: fitted[name] for name in beside}
        evaluation = self._evaluate(members, baselines)
        return TaskOutcome(
            task=self.prepared.task.name,
            seeds=self.seeds,
            backbone=candidate.backbone,
            select_scores=scores,
            architecture=architecture,
            architecture_from=origin,
            precision=self.common["precision"],
            trials=trials,
            best_trial=best,
            members=members,
            aligned=aligned,
            baselines=baselines,
            evaluation=evaluation,
            histories=self._histories(trials),
            cost=self._cost(trials),
            spent=list_spent([self.reference, *self.results]),
            aligned_to=self.reference.values["described"],
            wall_s=time.monotonic() - start,
            pretrained=self.pretrained,
        )

    def _train_others(self, shape: Candidate) -> tuple[list[Member], dict[str, StageResult]]:
        """Return the members of all arms but L2G, and all that was fitted on the given split, by name. Called beside
        L2G's stages.
        """
        simple = [arm for arm in self.arms if not ARMS[arm].embeds]
        tuned = [arm for arm in simple if ARMS[arm].tuned]
        names = list(dict.fromkeys([*self.settings.baselines.names, *tuned]))
        found = run_jobs(self.place, "baseline", [self._baseline(name) for name in names]) if names else []
        baselines = dict(zip(names, found, strict=True))
        wanted: list[tuple[str, int, Fold, Job]] = []
        for arm in simple:
            strength = baselines[arm].values.get("chosen", {}).get("C") if arm in tuned else None
            for seed in self.seeds if ARMS[arm].seeded else self.seeds[:1]:
                for fold in self.folds:
                    job = self._baseline(arm, seed, fold, strength)
                    wanted.append((arm, seed, fold, job))
        results = run_jobs(self.place, "arms", [job for *_, job in wanted]) if wanted else []
        members = [Member(arm, seed, fold.number, r) for (arm, seed, fold, _), r in zip(wanted, results, strict=True)]
        # What another seed would not change stands for all of them.
        members += [
            replace(member, seed=seed) for member in members if not ARMS[member.arm].seeded for seed in self.seeds[1:]
        ]
        if "embedder_only" in self.arms:
            pairs = [(seed, fold) for seed in self.seeds for fold in self.folds]
            jobs = [self._embedder_only(shape, seed, fold) for seed, fold in pairs]
            results = run_jobs(self.place, "embedder", jobs)
            members += [Member("embedder_only", s, f.number, r) for (s, f), r in zip(pairs, results, strict=True)]
        return members, baselines

    def _whole_arms(self, members: list[Member]) -> list[Member]:
        """Without the arms of which a model was not made for this task; says which."""
        left_out = {m.arm: m.result.values["skipped"] for m in members if "skipped" in m.result.values}
        for reason in left_out.values():
            self.place.emit(Note(self.place.task, f"{self.place.task}: {reason}"))
        return [member for member in members if member.arm not in left_out]

    def _run(self, name: str, jobs: list[Job], runner: str | None = None) -> list[StageResult]:
        results = run_jobs(self.place, name, jobs, runner)
        self._keep(results)
        return results

    def _keep(self, results: list[StageResult]) -> None:
        for result in results:
            if result not in self.results:
                self.results.append(result)

    def _beside(self, call: Callable[[], T]) -> Callable[[], T]:
        """Begin `call` in a thread; what is returned waits for it, and returns or raises what it does."""
        pool = ThreadPoolExecutor(1, thread_name_prefix=f"{self.place.task}-beside")
        future = pool.submit(call)
        pool.shutdown(wait=False)
        return future.result

    def _parts(self, *sections: str, **inputs: str) -> dict[str, Any]:
        chosen = {name: self.dumped[name] for name in sections}
        # What shapes the embedder. The language model and how the two are joined matter to fine-tuning only, whose
        # parts have the whole section.
        later = ("combine", "positions")
        model = {k: v for k, v in self.dumped["model"].items() if not k.startswith("language_model") and k not in later}
        return self.common | {"model": model, "settings": chosen, "inputs": inputs}

    def _align_parts(self, without: frozenset[str], **inputs: str) -> dict[str, Any]:
        stage = {name: value for name, value in self.dumped["align"].items() if name not in without}
        return self._parts(**inputs) | {"settings": {"align": stage}}

    def _embed(
        self,
        stage: str,
        label: str,
        shape: Candidate,
        parts: dict[str, Any],
        warm: StageResult | None = None,
        **args: Any,
    ) -> Job:
        """Return a job that trains an embedder of this shape, from that of `warm` on; `args` as its stage's function
        takes them.
        """
        inputs = {"warmup": str(warm.folder)} if warm else {}
        return Job(stage, label, _to_args(shape) | args, inputs, parts | self._own_widths(shape.backbone))

    def _own_widths(self, backbone: str) -> dict[str, list[int | None]]:
        return {"channels": self.widths[backbone]} if self.widths.get(backbone) else {}

    def _select(self) -> tuple[Candidate, dict[str, float]]:
        candidates = {c.name: c for c in list_candidates(self.settings.select)}
        names = list(candidates)
        if len(names) == 1:
            text = f"{self.place.task}: select has one candidate, {names[0]}: nothing to train"
            self.place.emit(Note(self.place.task, text))
            return candidates[names[0]], {}
        jobs = [
            self._embed("select", name, c, self._parts("select"), seed=self.seeds[0]) for name, c in candidates.items()
        ]
        results = self._run("select", jobs)
        scores = {name: float(r.values["score"]) for name, r in zip(names, results, strict=True)}
        return candidates[choose_best(scores)], scores

    def _search(self, candidate: Candidate) -> tuple[list[tuple[int, int]], str]:
        """Return the architecture to deploy and where it is from: what DASH finds, or the candidate's."""
        if not candidate.architecture:
            return [], "none"
        if not self.settings.search.enabled:
            kernel_size, dilation = candidate.architecture[0]
            return candidate.architecture, f"uniform {kernel_size}x{dilation}"
        backbone = candidate.backbone
        args = {"backbone": backbone, "seed": self.seeds[0]}
        job = Job("search", backbone, args, {}, self._parts("search") | self._own_widths(backbone))
        values = self._run("search", [job])[0].values["architecture"]
        return [(int(k), int(d)) for k, d in values], "searched"

    def _shares_warmup(self) -> bool:
        """Return whether there is a task-only phase that the runs of all alphas have in common."""
        align = self.settings.align
        return align.enabled and 0 < align.task_only_epochs < align.epochs

    def _warmup(self, shape: Candidate, seed: int) -> Job:
        return self._embed("warmup", f"seed-{seed}", shape, self._align_parts(NOT_IN_WARMUP), seed=seed)

    def _baseline(
        self, name: str, seed: int | None = None, fold: Fold | None = None, strength: float | None = None
    ) -> Job:
        precision = self.common["precision"]
        return make_baseline_job(self.prepared, self.settings, name, seed, fold, strength, precision)

    def _embedder_only(self, shape: Candidate, seed: int, fold: Fold) -> Job:
        parts, label = self._parts("embedder_only"), name_member("", seed, fold)
        return self._embed("embedder_only", label, shape, parts, seed=seed, fold=asdict(fold))

    def _align_all(self, shape: Candidate) -> dict[str, StageResult]:
        """Return the first seed's embedder for every alpha, trained on the given split."""
        first, alphas = self.seeds[0], self.settings.align.alphas
        warm = self._run("warmup", [self._warmup(shape, first)])[0] if self._shares_warmup() else None
        aligned = self._run("align", [self._align(shape, a, first, warm) for a in alphas])
        return {f"align:{a}": r for a, r in zip(alphas, aligned, strict=True)}

    def _align(
        self, shape: Candidate, alpha: float, seed: int, warm: StageResult | None = None, fold: Fold | None = None
    ) -> Job:
        label = f"alpha-{alpha:g} seed-{seed}" if fold is None else name_member(f"alpha-{alpha:g}", seed, fold)
        parts = self._align_parts(NOT_IN_ALIGN, **({"warmup": warm.key} if warm else {}))
        args = {"alpha": alpha, "seed": seed} | ({} if fold is None else {"fold": asdict(fold)})
        return self._embed("align", label, shape, parts | {"reference": self.reference.key}, warm, **args)

    def _finetune_parts(self, inputs: dict[str, StageResult]) -> dict[str, Any]:
        # The language model's name is in the reference's key.
        parts = self._parts("model", **{name: r.key for name, r in inputs.items()}) | {"reference": self.reference.key}
        stage = self.dumped["finetune"]
        names = ("epochs", "lr_predictor", "optim", *LORA_SETTINGS)
        if self.pretrained is not None:  # not always in the reference's key (`align.reference_weights`)
            parts |= {"pretrain": self.pretrained.key}
        return parts | {"finetune": {k: stage[k] for k in names if k in stage}}

    def _finetune(self, shape: Candidate, inputs: dict[str, StageResult]) -> tuple[list[SearchTrial], SearchTrial]:
        stage, seed = self.settings.finetune, self.seeds[0]
        folders = {name: str(r.folder) for name, r in inputs.items()}
        base = Job("trial", "trial", {"seed": seed}, folders, self._finetune_parts(inputs))
        key = make_key("finetune", base.parts | {"search": self.dumped["finetune"], "seed": seed})
        found = self.place.store.find("finetune", key)
        cached = found is not None
        if found is None:
            from l2g_ray.orchestrate.tune import run_search  # a second of imports that a finished stage can do without

            runner = find_runner(self.place, base.stage)  # workers of a team exist in Train runs only
            runner = "train" if stage.trial_runner == "train" else runner
            trials = run_search(self.place, stage, base, self._space(), seed, runner)
            found = persist(self.place.store.root, lambda: self._keep_search(key, trials), self.wait_s)
            self.place.store.discard_work("trial", [trial.key for trial in trials])
        else:
            trials = [SearchTrial.from_json(stored) for stored in found.values["trials"]]
            self._emit_search(trials)
        number = max((i for i, trial in enumerate(trials) if trial.trial), key=lambda number: trials[number].best_score)
        self.place.emit(Winner(self._describe_trial(number, trials[number])))
        self.place.emit(StageDone(self.place.task, "finetune", cached))
        self.results.append(found)
        return trials, trials[number]

    def _describe_trial(self, number: int, trial: SearchTrial) -> TrialName:
        return TrialName(self.place.task, "trial", name_trial(number), trial.key, trial.trial or {})

    def _emit_search(self, trials: list[SearchTrial]) -> None:
        """Tell a search that the store has."""
        stage = self.settings.finetune
        rungs = rung_epochs(stage.grace_epochs, stage.epochs, stage.reduction_factor)
        for number, trial in enumerate(trials):
            if trial.history:
                stopped = describe_end(len(trial.history), trial.history[-1]["train_loss"], stage.epochs, rungs)
                name = self._describe_trial(number, trial)
                emit_history(self.place, name, trial.history, trial.began_at, trial.ended_at, stopped)

    def _keep_search(self, key: str, trials: list[SearchTrial]) -> StageResult:
        self.place.store.open_work("finetune", key)
        values = {"trials": [trial.to_json() for trial in trials], "history": []}
        return self.place.store.commit("finetune", key, values)

    def _space(self) -> dict[str, Apply]:
        from hyperopt import hp

        stage = self.settings.finetune
        ranges = {name: getattr(stage, name) for name in ("lr_embedder", "lr_language_model", "weight_decay")}
        choices = {name: list(getattr(stage, name)) for name in ("dropout", "batch_size", "train_layers")}
        choices["alpha"] = list(self.settings.align.alphas)
        # HyperOpt refuses a range of one value, which is what a report's winning settings have.
        choices |= {name: [low] for name, (low, high) in ranges.items() if low == high}
        ranges = {name: ends for name, ends in ranges.items() if name not in choices}
        return {name: hp.loguniform(name, log(low), log(high)) for name, (low, high) in ranges.items()} | {
            name: hp.choice(name, values) for name, values in choices.items()
        }

    def _train_l2g(
        self, shape: Candidate, trial: HyperParameters, inputs: dict[str, StageResult]
    ) -> tuple[list[Member], dict[tuple[int, int], StageResult]]:
        """Return the winner's settings trained for every seed and fold, stage 2 too, so that the spread is that of
        the whole method; and the embedders that they were trained from.
        """
        alpha, one_split = float(trial["alpha"]), not self.folds[0].of
        name = f"align:{alpha}"
        pairs = [(seed, fold) for seed in self.seeds for fold in self.folds]
        # The given split's first seed is there already.
        missing = [(s, f) for s, f in pairs if not (one_split and s == self.seeds[0])]
        jobs = [self._align(shape, alpha, s, fold=f) for s, f in missing]
        made = dict(zip(missing, self._run("align", jobs) if jobs else [], strict=True))
        sources = {pair: {name: made.get(pair, inputs[name])} for pair in pairs}
        refits = [
            Job(
                "refit",
                name_member("", seed, fold),
                {"trial": trial, "seed": seed, "fold": asdict(fold)},
                {name: str(source[name].folder)},
                self._finetune_parts(source),
            )
            for (seed, fold), source in sources.items()
        ]
        results = self._run("refit", refits, self._refit_runner())
        members = [Member("l2g", s, f.number, r) for (s, f), r in zip(pairs, results, strict=True)]
        return members, {(s, f.number): source[name] for (s, f), source in sources.items()}

    def _refit_runner(self) -> str:
        """Return the runner of the final models: rows that are not in the object store come through Ray Data."""
        asked = self.settings.finetune.trial_runner
        if asked == "auto":
            return "process" if self.place.held and self.place.slots.workers == 1 else "train"
        return asked if self.place.slots.workers == 1 else "train"

    def _evaluate(self, members: list[Member], baselines: dict[str, StageResult]) -> StageResult:
        inputs: dict[str, StageResult] = {}
        contenders: dict[str, dict[str, str | int]] = {}
        for member in members:
            name = f"{member.arm}:{member.seed}:{member.fold}"
            inputs[name] = member.result
            contenders[name] = {"arm": member.arm, "seed": member.seed, "fold": member.fold}
        for arm, result in baselines.items():
            if "skipped" not in result.values:
                inputs[arm] = result
                contenders[arm] = {"arm": arm, "seed": self.seeds[0]}
        parts = self._parts("evaluate", "ensemble", **{name: r.key for name, r in inputs.items()})
        parts |= {"test": self.prepared.fingerprint("test")}
        folders = {name: str(r.folder) for name, r in inputs.items()}
        args = {"contenders": contenders, "folds": asdict(self.folds[0])}
        return self._run("evaluate", [Job("evaluate", "test", args, folders, parts)])[0]

    def _histories(self, trials: list[SearchTrial]) -> dict[str, list[dict[str, float]]]:
        found = {f"{r.stage}/{r.key[:6]}": r.values["history"] for r in self.results if r.values.get("history")}
        return found | {f"finetune/{name_trial(i)}": t.history for i, t in enumerate(trials)}

    def _cost(self, trials: list[SearchTrial]) -> dict[str, float]:
        cost: dict[str, float] = {}
        for result in self.results:
            cost[result.stage] = cost.get(result.stage, 0.0) + float(result.values.get("cpu_s", 0.0))
        if trials:
            cost["finetune"] = sum(trial.cpu_s for trial in trials)
        return cost


def _to_args(shape: Candidate) -> dict[str, str | list[list[int]]]:
    return {"backbone": shape.backbone, "architecture": [list(pair) for pair in shape.architecture]}


def choose_best(scores: dict[str, float]) -> str:
    """Return the candidate with the best validation score; ties go to the one listed first."""
    return max(scores, key=lambda name: scores[name])
