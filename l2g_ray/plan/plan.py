"""What a run will take, before anything starts: trials, epochs, steps, tokens, operations, memory and disk by stage.

Two figures stand for what only the run itself finds out. `expected` is the mean over the candidate backbones, layers
that train and batch sizes, with the middle kernel size in every layer, and with ASHA stopping trials as its rule does
on random scores. `most` takes the costliest of all of them, and lets every trial run to its end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pkgutil import resolve_name

from l2g_ray.arms import ARMS, count_splits
from l2g_ray.config import OneCycleSettings, OptimSettings, Settings
from l2g_ray.counts import (
    average_strands,
    batches_per_epoch,
    count_batches,
    expected_epochs,
    find_channels,
    group_size,
    list_candidates,
)
from l2g_ray.plan.costs import Amount, Counted, Found, StagePlan, TaskPlan, add_amounts, read_known
from l2g_ray.plan.encoder import LanguageModelShape, count_language_model, count_vocabulary, measure_shape
from l2g_ray.plan.network import Mixture, NetShape, count_net, count_predictor
from l2g_ray.plan.rows import Rows
from l2g_ray.stages.registry import STAGES, find_shown, show_stage
from l2g_ray.tasks.schema import Task

_LAYERS_BY_COST = ("all", "top_half", "lora", "norms", "none")
# Measured on prepared benchmarks: a base in a shard (zstd), and what else a row has.
_SHARD_BYTES_A_BASE, _SHARD_BYTES_A_ROW = 0.32, 8
# Measured on random words of six letters with BERT's vocabulary.
_BASES_A_TOKEN = 1.8


def plan_task(
    task: Task,
    settings: Settings,
    rows: Rows,
    shape: LanguageModelShape,
    *,
    precision: str = "fp32",
    on_gpu: bool = True,
    found: Found | None = None,
) -> TaskPlan:
    """Return the plan of one task.

    Parameters
    ----------
    rows : counted or assumed. shape : of the language model. precision : 'fp32' or 'bf16', as the run will train.
    found : of a finished run, whose plan has no candidates left.
    """
    sizer = Sizer(task, settings, rows, shape, precision, on_gpu)
    likely = [sizer.amounts(v) for v in _variants(settings, found, costliest=False)]
    costly = [sizer.amounts(v) for v in _variants(settings, found, costliest=True)]
    stages = tuple(
        StagePlan(
            name,
            _start(name, _mean([a[name] for a in likely]), settings, on_gpu),
            _start(name, _largest([a[name] for a in costly]), settings, on_gpu),
        )
        for name in likely[0]
        if likely[0][name].trials
    )
    bases = (rows.train + rows.valid + rows.test) * rows.mean_bp
    shards = bases * _SHARD_BYTES_A_BASE + (rows.train + rows.valid + rows.test) * _SHARD_BYTES_A_ROW
    models = max(sizer.model_bytes(v) for v in _variants(settings, found, costliest=True))
    predictions = next((s.most.disk_bytes for s in stages if s.stage == "evaluate"), 0.0)
    return TaskPlan(task.name, rows, precision, stages, shards, 2 * (models + predictions))


@dataclass(frozen=True)
class Variant:
    """One way in which the run may go."""

    backbone: str
    architecture: tuple[tuple[int, int], ...]
    train_layers: str
    batch_size: int
    trial_epochs: float


def _variants(settings: Settings, found: Found | None, costliest: bool) -> list[Variant]:
    search, stage = settings.search, settings.finetune
    kernels = sorted(search.kernel_sizes)
    kernel = kernels[-1] if costliest else kernels[len(kernels) // 2]
    shapes = [(c.backbone, tuple(c.architecture)) for c in list_candidates(settings.select)]
    if search.enabled:
        shapes = list(dict.fromkeys((backbone, ((kernel, 1),) * len(pairs)) for backbone, pairs in shapes))
    if found is not None:
        shapes = [(found.backbone, found.architecture)]
    layers: Iterable[str] = dict.fromkeys(stage.train_layers)
    sizes: Iterable[int] = dict.fromkeys(stage.batch_size)
    epochs = float(stage.trials * stage.epochs)
    if costliest:
        layers, sizes = [min(layers, key=_LAYERS_BY_COST.index)], [min(sizes)]
    else:
        epochs = expected_epochs(
            stage.trials, stage.epochs, stage.grace_epochs, stage.reduction_factor, stage.parallel_trials
        )
    return [Variant(b, a, which, size, epochs) for b, a in shapes for which in layers for size in sizes]


def _start(stage: str, amount: Amount, settings: Settings, on_gpu: bool) -> Amount:
    """With the time that its trials take to start, one after the other in one slot."""
    seconds = read_known().start_up
    new = on_gpu or stage == "reference"
    each = {"tune": seconds["new_tune" if on_gpu else "tune"], "task": seconds["new_task" if new else "task"]}
    if stage == "trials" and settings.finetune.trial_runner == "train":
        each["tune"] += seconds["train"]
    tuned = amount.trials if find_shown(stage).tuned else 0
    if stage == "align":  # those of the folds choose nothing
        tuned = min(tuned, len(settings.align.alphas))
    return replace(amount, start_s=each["tune"] * tuned + each["task"] * (amount.trials - tuned))


def _mean(amounts: list[Amount]) -> Amount:
    names = [f.name for f in fields(Amount) if f.name != "trials"]
    return replace(amounts[0], **{n: sum(getattr(a, n) for a in amounts) / len(amounts) for n in names})


def _largest(amounts: list[Amount]) -> Amount:
    return Amount(**{f.name: max(getattr(a, f.name) for a in amounts) for f in fields(Amount)})


class Sizer:
    """Amounts of every stage, for one variant at a time, by the `count_...` that the stage's entry in the registry names."""

    def __init__(
        self, task: Task, settings: Settings, rows: Rows, shape: LanguageModelShape, precision: str, on_gpu: bool
    ) -> None:
        self.task, self.settings, self.rows, self.shape = task, settings, rows, shape
        self.precision, self.on_gpu = precision, on_gpu
        self.width, self.max_tokens = measure_shape(shape)
        self.members = settings.seeds * count_splits(settings)  # models of an arm
        self.counted_arms: dict[str, tuple[OneCycleSettings, Counted]] = {
            arm: resolve_name(ARMS[arm].count)(settings, task, rows, precision)
            for arm in settings.arms
            if ARMS[arm].count
        }

    def amounts(self, v: Variant) -> dict[str, Amount]:
        """Return the stages that run, in the registry's order."""
        found: dict[str, Amount] = {}
        for stage in STAGES.values():
            if stage.count:
                found |= resolve_name(stage.count)(self, v, stage.name)
        return found

    def count_embedder_arm(self, v: Variant, name: str) -> dict[str, Amount]:
        """Return an arm that is the embedder alone, by the section of the settings that has the arm's name."""
        if name not in self.settings.arms:
            return {}
        stage = getattr(self.settings, name)
        net, epochs = self._net(v.backbone, v.architecture, stage.dropout), stage.count_epochs(self._fold_rows()[0])
        return {name: self._train_arm(net, stage.optim, epochs, stage.batch_size)}

    def count_arms(self, v: Variant, name: str) -> dict[str, Amount]:
        """Return the arms that train by gradients, and are baselines too."""
        n_rows = self._fold_rows()[0]
        return {
            arm: self._train_arm(model, schedule.optim, schedule.count_epochs(n_rows), schedule.batch_size)
            for arm, (schedule, model) in self.counted_arms.items()
        }

    def _train_arm(self, model: Counted, optim: OptimSettings, epochs: int, batch_size: int) -> Amount:
        one = self._train_members(model, optim, self.members, epochs, batch_size)
        return replace(one, disk_bytes=float(self.members * model.model_bytes))

    def _shared_epochs(self) -> int:
        """Epochs of the warm-up, which the alignments of all alphas have in common."""
        align = self.settings.align
        return align.task_only_epochs if 0 < align.task_only_epochs < align.epochs else 0

    def count_warmup(self, v: Variant, name: str) -> dict[str, Amount]:
        """Return the epochs that the runs of all alphas share."""
        align, shared = self.settings.align, self._shared_epochs()
        if "l2g" not in self.settings.arms or not shared:
            return {}
        net = self._net(v.backbone, v.architecture, align.dropout)
        warm = self._train(net, align.optim, 1, shared, align.batch_size, group_size(align))
        kept = net.model_bytes + net.optimizer_bytes(align.optim.optimizer, align.optim.momentum)
        return {name: replace(warm, disk_bytes=float(kept))}

    def count_align(self, v: Variant, name: str) -> dict[str, Amount]:
        """Return every alpha once on the given split, then the winner's for every seed and fold."""
        align, group = self.settings.align, group_size(self.settings.align)
        if "l2g" not in self.settings.arms:
            return {}
        net, jobs = self._net(v.backbone, v.architecture, align.dropout), len(align.alphas)
        epochs = jobs * (align.epochs - self._shared_epochs())
        one = self._train(net, align.optim, jobs, epochs, align.batch_size, group)
        # Without folds the first seed's is one of those.
        again = self.members - (0 if self.settings.folds else 1)
        if again:
            one = add_amounts(
                [one, self._train_members(net, align.optim, again, align.epochs, align.batch_size, group)]
            )
        return {name: replace(one, disk_bytes=float((jobs + again) * net.model_bytes))}

    def model_bytes(self, v: Variant) -> float:
        """Return weights of the L2G model and of the embedder alone."""
        return self._whole(v).model_bytes + self._net(v.backbone, v.architecture, 0.0).model_bytes

    def count_reference(self, v: Variant, name: str) -> dict[str, Amount]:
        """Return the text: the embedding layer looks tokens up, so no product, and nothing for the encoder."""
        return {name: Amount(trials=1, disk_bytes=4.0 * self.width * (9 * self.settings.align.per_class + 2))}

    def count_pretrain(self, v: Variant, name: str) -> dict[str, Amount]:
        """Continued pre-training of the language model, where it is asked for."""
        stage, layers = self.settings.pretrain, self.settings.model.language_model_layers
        if not stage.enabled:
            return {}
        tokens = max(1, round(min(self.rows.mean_bp, stage.window_bp) / _BASES_A_TOKEN))
        tokens = min(tokens, measure_shape(self.shape)[1])
        options = {"positions": "lm", "layers": layers, "masked": True, "precision": self.precision}
        model = count_language_model(self.shape, tokens, **options, on_gpu=self.on_gpu)
        model = model + count_vocabulary(self.shape, tokens)
        amount = self._train(model, stage.optim, 1, stage.epochs, stage.batch_size)
        seen = stage.epochs * self.rows.train * tokens
        return {name: replace(amount, tokens=float(seen), disk_bytes=float(model.model_bytes))}

    def _embeds(self) -> bool:
        return any(ARMS[arm].embeds for arm in self.settings.arms)

    def count_select(self, v: Variant, name: str) -> dict[str, Amount]:
        """Return all candidates, where there is something to choose."""
        stage = self.settings.select
        candidates = list_candidates(stage)
        if not self._embeds() or len(candidates) == 1:
            return {}
        nets = [self._net(c.backbone, tuple(c.architecture), stage.dropout) for c in candidates]
        return {name: add_amounts(self._train(net, stage.optim, 1, stage.epochs, stage.batch_size) for net in nets)}

    def count_search(self, v: Variant, name: str) -> dict[str, Amount]:
        """DASH on a share of the training rows."""
        stage = self.settings.search
        if not self._embeds() or not stage.enabled:
            return {}
        net = count_net(
            self._shape_of(v.backbone, (), 0.0),
            self.rows.length_bp,
            mixture=Mixture(tuple(stage.kernel_sizes), tuple(stage.dilations), stage.separable),
            masked=self.rows.is_padded,
            precision=self.precision,
        )
        batches = batches_per_epoch(stage, self.rows.train)
        seen = min(self.rows.train, batches * stage.batch_size)
        return {name: self._train(net, stage.optim, 1, stage.epochs, stage.batch_size, n_rows=seen)}

    def count_trials(self, v: Variant, name: str) -> dict[str, Amount]:
        """Fine-tuning's search."""
        if "l2g" not in self.settings.arms:
            return {}
        stage, largest = self.settings.finetune, max(self.settings.finetune.batch_size)
        amount = self._train(
            self._whole(v), stage.optim, stage.trials, v.trial_epochs, v.batch_size, memory_rows=largest
        )
        seen = v.trial_epochs * (self.rows.train + self.rows.valid)
        return {show_stage(name): replace(amount, tokens=seen * self._n_tokens(v))}

    def count_refit(self, v: Variant, name: str) -> dict[str, Amount]:
        """Return the winner's models for every seed and fold."""
        if "l2g" not in self.settings.arms:
            return {}
        stage, whole, largest = self.settings.finetune, self._whole(v), max(self.settings.finetune.batch_size)
        refit = self._train_members(whole, stage.optim, self.members, stage.epochs, v.batch_size, memory_rows=largest)
        tokens = float(self.members * stage.epochs * sum(self._fold_rows()) * self._n_tokens(v))
        return {name: replace(refit, tokens=tokens, disk_bytes=float(self.members * whole.model_bytes))}

    def count_evaluate(self, v: Variant, name: str) -> dict[str, Amount]:
        """Return every arm's models on the test split."""
        s = self.settings
        both = average_strands(s, self.task)
        passes = (3 if both else 1) * self.members
        n_values = self.task.n_outputs * (2 if both else 1)
        alone = self._net(v.backbone, v.architecture, s.align.dropout)
        models = [alone] * ("embedder_only" in s.arms) + [self._whole(v)] * ("l2g" in s.arms)
        models += [model for _, model in self.counted_arms.values()]
        tokens = self._n_tokens(v) if "l2g" in s.arms else 0
        one = Amount(
            trials=1,
            tokens=float(passes * self.rows.test * tokens),
            flops=passes * self.rows.test * sum(model.forward_flops for model in models),
            memory_bytes=float(max((model.model_bytes for model in models), default=0)),
            disk_bytes=float((len(s.arms) + 1) * s.seeds * self.rows.test * (12 + 4 * n_values)),
        )
        return {name: one}

    def _fold_rows(self) -> tuple[int, int]:
        """Return rows that a model of an arm is trained on, and those that it predicts."""
        rows, folds = self.rows.train + self.rows.valid, self.settings.folds
        if not folds:
            return self.rows.train, self.rows.valid
        return rows - rows // folds, rows // folds

    def _train_members(
        self,
        model: Counted,
        optim: OptimSettings,
        jobs: int,
        epochs: int,
        batch_size: int,
        group: int = 1,
        memory_rows: int | None = None,
    ) -> Amount:
        """Count `jobs` models of an arm, with `epochs` epochs each, on the rows of all folds but one."""
        n_rows, n_valid = self._fold_rows()
        return self._train(
            model,
            optim,
            jobs,
            jobs * epochs,
            batch_size,
            group,
            n_rows=n_rows,
            n_valid=n_valid,
            memory_rows=memory_rows,
        )

    def _train(
        self,
        model: Counted,
        optim: OptimSettings,
        jobs: int,
        epochs: float,
        batch_size: int,
        group: int = 1,
        *,
        n_rows: int | None = None,
        n_valid: int | None = None,
        memory_rows: int | None = None,
    ) -> Amount:
        """`epochs` of all jobs together; `group` batches make a step and are in memory at once."""
        n_rows = self.rows.train if n_rows is None else n_rows
        n_valid = self.rows.valid if n_valid is None else n_valid
        batches = count_batches(n_rows, batch_size, drop_last=True)
        flops = n_rows * model.train_flops + batches * model.fixed_flops + n_valid * model.forward_flops
        in_memory = min(n_rows, group * (memory_rows or batch_size))
        state = 2 * model.model_bytes + model.optimizer_bytes(optim.optimizer, optim.momentum)
        return Amount(
            trials=jobs,
            epochs=epochs,
            steps=epochs * -(-batches // group),
            flops=epochs * flops,
            # Batches pad to their longest row, and memory is for the longest batch.
            memory_bytes=model.training_bytes(
                in_memory * self.rows.max_bp / self.rows.length_bp, optim.optimizer, optim.momentum
            ),
            scratch_bytes=float(jobs * state),
        )

    def _shape_of(self, backbone: str, pairs: tuple[tuple[int, int], ...], dropout: float) -> NetShape:
        model = self.settings.model
        return NetShape(
            backbone=backbone,
            architecture=pairs,
            channels=find_channels(model, backbone, self.width),
            length_bp=self.rows.max_bp,
            width=self.width,
            max_tokens=self.max_tokens,
            n_outputs=self.task.n_outputs,
            in_channels=self.settings.data.channels,
            target_tokens=model.target_tokens,
            full_tokens=backbone == "resnet" and model.resnet_tokens == "full",
            pool=model.resnet_pool,
            causal=model.causal,
            dropout=dropout,
            predictor_reads=model.predictor_reads,
            pooling=model.find_pooling(self.task.strand_specific),
        )

    def _net(self, backbone: str, pairs: tuple[tuple[int, int], ...], dropout: float) -> Counted:
        return count_net(
            self._shape_of(backbone, pairs, dropout),
            self.rows.length_bp,
            masked=self.rows.is_padded,
            precision=self.precision,
        )

    def _whole(self, v: Variant) -> Counted:
        model = self.settings.model
        net = self._net(v.backbone, v.architecture, 0.0)
        shape = self._shape_of(v.backbone, v.architecture, 0.0)
        head = count_predictor(replace(shape, predictor_reads="tokens"), self.precision)
        if model.combine != "skip":  # Predictor 1 does not train; that it does not run either saves next to nothing
            net = replace(net, trainable=net.trainable - count_predictor(shape).parameters)
        encoder = count_language_model(
            self.shape,
            self._n_tokens(v),
            v.train_layers,
            positions=model.positions,
            layers=model.language_model_layers,
            lora_rank=self.settings.finetune.lora_rank,
            masked=self.rows.is_padded,
            precision=self.precision,
            on_gpu=self.on_gpu,
        )
        return net + encoder + head

    def _n_tokens(self, v: Variant) -> int:
        """Tokens of a row of mean length."""
        return self._shape_of(v.backbone, v.architecture, 0.0).n_tokens(self.rows.length_bp)
