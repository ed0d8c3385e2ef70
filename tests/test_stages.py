"""The stages on toys: acceptance A7, D1-D5, D7, D9."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import every_stage
import numpy as np
import pyarrow as pa
import pytest
import torch
from toys import make_data, make_task, plant, regression_table, tiny_config, tiny_reference, tiny_settings, toy_data

from l2g_ray.config import OptimSettings
from l2g_ray.counts import group_size
from l2g_ray.data.batches import Batch, iter_batches
from l2g_ray.models.l2g import L2GModel
from l2g_ray.models.mixed_conv import OperationSet, SearchableConv1d, replace_convolutions
from l2g_ray.orchestrate.pipeline import choose_best
from l2g_ray.presets import list_presets, resolve
from l2g_ray.sequence import encode
from l2g_ray.stages.align import alpha_at, make_joint_losses, train_aligned
from l2g_ray.stages.context import build_net, make_batches, make_losses, make_validate
from l2g_ray.stages.distances import SampleDistance, mmd
from l2g_ray.stages.embedder_only import train_embedder_only
from l2g_ray.stages.finetune import FinetuneTrial, build_model, finetune
from l2g_ray.stages.loop import LoopSettings, Runtime, TrainResult, train
from l2g_ray.stages.optim import compute_task_loss, make_optimizer, make_schedule
from l2g_ray.stages.search import (
    find_temperature,
    make_search_optimizer,
    search_architecture,
    set_logit_gradients,
)
from l2g_ray.stages.select import train_backbone
from l2g_ray.tasks.catalogue import find_tasks, list_benches

pytestmark = pytest.mark.usefixtures("single_thread")

TRIAL = FinetuneTrial(1e-3, 1e-3, 1e-4, 0.1, 16, "all", 0.0)
# The small CNN's epochs are its own: test_cnn.py has it.
STAGES = [stage for stage in every_stage.STAGES if stage != "cnn"]


def run_stage(stage: str, data: Any, settings: Any, runtime: Runtime, seed: int) -> TrainResult:
    return every_stage.run_stage(stage, data, settings, runtime, seed, TRIAL)


@pytest.mark.parametrize("stage", STAGES)
def test_d1_same_seed_same_losses_and_weights(stage: str, tiny_lm: Path) -> None:
    data, settings = toy_data(), tiny_settings(tiny_lm, search__batch_fraction=1.0)
    first, second, other = (run_stage(stage, data, settings, Runtime(), seed) for seed in (3, 3, 4))
    assert [r["train_loss"] for r in first.history] == [r["train_loss"] for r in second.history]
    assert all(torch.equal(first.best_state[k], second.best_state[k]) for k in first.best_state)
    assert [r["train_loss"] for r in first.history] != [r["train_loss"] for r in other.history]


def test_d2_stage_two_leaves_language_model_and_head_alone(tiny_lm: Path) -> None:
    data, settings = toy_data(), tiny_settings(tiny_lm)
    config = tiny_config(data, settings)
    state = build_net(config, data, tiny_reference(), 0).state_dict()
    model = build_model(data, settings, tiny_reference(), config=config, embedder_state=state, seed=0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batch = next(iter(iter_batches(data.train.tables(), kind="binary", batch_size=16, seed=0, epoch=0)))
    distance = SampleDistance(mmd, tiny_reference().features)
    losses = make_joint_losses(data, distance, settings.align, torch.ones(2), alpha=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # every parameter of the whole model, the LM's too
    for _ in range(3):
        optimizer.zero_grad()
        for compute in losses(model.net, [batch], settings.align.task_only_epochs):
            compute().backward()
        optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(name.startswith("net.") for name in changed), "only the embedder and Predictor 1 learn in stage 2"


def test_d2_alpha_is_a_step_after_the_task_only_epochs() -> None:
    assert [alpha_at(e, 0.5, 2) for e in range(4)] == [0.0, 0.0, 0.5, 0.5]
    data, settings = toy_data(), tiny_settings(align__epochs=3, align__task_only_epochs=2)
    net = build_net(tiny_config(data, settings), data, tiny_reference(), 0).eval()
    batch = next(iter(iter_batches(data.train.tables(), kind="binary", batch_size=16, seed=0, epoch=0)))
    distance = SampleDistance(mmd, tiny_reference().features)

    def compute(alpha: float, epoch: int) -> float:
        (loss,) = make_joint_losses(data, distance, settings.align, torch.ones(2), alpha)(net, [batch], epoch)
        return float(loss().detach())

    value = {epoch: (compute(1.0, epoch), compute(0.0, epoch)) for epoch in (1, 2)}
    assert value[1][0] == value[1][1], "before the switch MMD takes no part"
    assert value[2][0] > value[2][1] + 1e-3


def test_d2_a_config_that_never_aligns_is_refused() -> None:
    from l2g_ray.errors import UserError

    with pytest.raises(UserError, match="task_only_epochs"):
        resolve("fast", None, {"align.task_only_epochs": 99})
    assert resolve("fast", None, {"align.task_only_epochs": 7, "align.alphas": [0]}).align.alphas == (0.0,)


@pytest.mark.parametrize(("batch", "rows"), [(64, 5), (128, 3), (32, 9)])
def test_groups_are_as_large_as_the_official_ones(batch: int, rows: int) -> None:
    settings = tiny_settings(align__batch_size=batch, align__max_samples=256).align
    assert group_size(settings) == rows


def shipped_schedules() -> list[tuple[str, OptimSettings, int]]:
    found = []
    for preset in list_presets():
        for bench in list_benches():
            for task in find_tasks(bench):
                settings = resolve(preset, task.overrides)
                for stage in ("select", "align", "finetune", "embedder_only"):
                    part = getattr(settings, stage)
                    epochs = part.count_epochs(5000) if stage == "embedder_only" else part.epochs
                    found.append((f"{preset}/{bench}/{task.name}/{stage}", part.optim, epochs))
    return found


def test_d3_learning_rates_never_go_below_zero_and_end_at_zero() -> None:
    schedules = shipped_schedules()
    assert len(schedules) > 100
    for name, optim, epochs in {(o.model_dump_json(), e): (n, o, e) for n, o, e in schedules}.values():
        multiplier = make_schedule(optim, epochs, 7)
        values = [multiplier(t) for t in range(epochs * 7 + 1)]
        assert min(values) >= 0, name
        assert max(values) <= 1, name
        if optim.decay in ("linear", "cosine"):
            assert values[-1] == pytest.approx(0, abs=1e-12), name


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stage", STAGES)
def test_d4_stop_and_resume_equals_no_stop(stage: str, tiny_lm: Path, tmp_path: Path) -> None:
    data = toy_data()
    settings = tiny_settings(tiny_lm, select__epochs=2, align__epochs=2, embedder_only__epochs=2)
    through = run_stage(stage, data, settings, Runtime(), 0)

    def stop(row: dict[str, Any]) -> None:
        raise Stopped

    seen: list[int] = []
    with pytest.raises(Stopped):
        run_stage(stage, data, settings, Runtime(report=stop, state_path=tmp_path / "state.pt"), 0)
    torch.rand(7)  # what happens in between must not matter
    resumed = run_stage(
        stage,
        data,
        settings,
        Runtime(report=lambda row: seen.append(row["epoch"]), state_path=tmp_path / "state.pt"),
        0,
    )
    assert seen == [0, 1], "history is reported again, then the run resumes"
    assert [r["train_loss"] for r in resumed.history] == [r["train_loss"] for r in through.history]
    assert all(torch.equal(resumed.best_state[k], through.best_state[k]) for k in through.best_state)


def test_d4_numbers_of_numpy_in_a_row_do_not_break_a_resume(tmp_path: Path) -> None:
    def run(epochs: int) -> list[dict[str, Any]]:
        model, optim = torch.nn.Linear(60, 2), OptimSettings(optimizer="sgd", decay="none", warmup_fraction=0.0)
        loss = torch.zeros((), requires_grad=True)
        return train(
            model,
            make_optimizer(optim, [(model.parameters(), optim.lr)]),
            make_schedule(optim, epochs, 1),
            LoopSettings(epochs, 1, 0),
            Runtime(state_path=tmp_path / "state.pt"),
            batches=lambda e: iter_batches([plant(8)], kind="binary", batch_size=8, seed=0, epoch=e),
            losses=lambda model, batches, epoch: [lambda: loss],
            validate=lambda: {"score": np.float64(epochs), "auc": np.float32(0.5), "n": np.int64(7)},
        ).history

    run(1)
    first, second = run(2)
    assert (first["score"], second["score"]) == (1.0, 2.0), "the first epoch is not trained again"
    assert {type(value) for row in (first, second) for value in row.values()} == {int, float}


def test_d4_every_alpha_goes_on_from_the_shared_warm_up(tiny_lm: Path, tmp_path: Path) -> None:
    data = toy_data()
    settings = tiny_settings(tiny_lm, align__epochs=3, align__task_only_epochs=2)
    config, path = tiny_config(data, settings), tmp_path / "state.pt"
    arguments = (data, settings, tiny_reference())
    through = train_aligned(*arguments, Runtime(), config=config, alpha=1.0, seed=0)
    train_aligned(*arguments, Runtime(state_path=path), config=config, alpha=0.0, seed=0, last_epoch=2)
    shared = train_aligned(*arguments, Runtime(state_path=path), config=config, alpha=1.0, seed=0)
    assert [r["train_loss"] for r in shared.history] == [r["train_loss"] for r in through.history]
    assert through.best_epoch == shared.best_epoch == 2, "chosen among the joint epochs"


def test_d5_accumulation_equals_the_large_batch() -> None:
    table = plant(60)

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = torch.nn.Linear(60, 2)

        def forward(self, codes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            return self.linear(codes.float())

    def run(batch_size: int, group: int) -> torch.Tensor:
        model = Linear()
        optim = OptimSettings(optimizer="sgd", lr=0.01, decay="none", warmup_fraction=0.0)
        train(
            model,
            make_optimizer(optim, [(model.parameters(), optim.lr)]),
            make_schedule(optim, 2, 4),
            LoopSettings(2, 4, 0, group=group),
            Runtime(),
            batches=lambda e: iter_batches([table], kind="binary", batch_size=batch_size, seed=0, epoch=e),
            losses=make_losses(make_task(), torch.ones(2)),
            validate=lambda: {"score": 0.0},
        )
        return model.linear.weight.detach()

    large, small = run(16, 1), run(4, 4)  # 60 rows: the last group is smaller
    assert (large - small).abs().max() <= 1e-5 * large.abs().max()


def test_d7_overfits_64_sequences(tiny_lm: Path) -> None:
    table = plant(64)
    data = make_data(make_task(metric="accuracy"), table, table)
    settings = tiny_settings(
        tiny_lm,
        embedder_only__epochs=60,
        embedder_only__dropout=0.0,
        embedder_only__optim__lr=5e-3,
        model__resnet_channels=[16, 24, 32],
        data__shift_bp=0,
    )
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"rc_augment": "off"})})
    result = train_embedder_only(
        data, settings, tiny_reference(), Runtime(), config=tiny_config(data, settings), seed=0
    )
    assert result.best_score >= 0.99


def train_planted(shuffle_labels: bool, tiny_lm: Path) -> float:
    train_table = plant(1500, 40, shuffle_labels=shuffle_labels)
    valid_table = plant(400, 40, seed=99)
    data = make_data(make_task(), train_table, valid_table)
    settings = tiny_settings(
        tiny_lm, embedder_only__epochs=10, finetune__epochs=3, model__resnet_channels=[16, 24, 32],
        embedder_only__batch_size=32, data__shift_bp=0,
    )  # fmt: skip
    config = dataclasses.replace(tiny_config(data, settings), architecture=((7, 1),) * 3 + ((3, 1),) * 6)
    net = train_embedder_only(data, settings, tiny_reference(), Runtime(), config=config, seed=0)
    trial = dataclasses.replace(TRIAL, batch_size=32)
    return finetune(
        data, settings, tiny_reference(), Runtime(), config=config, embedder_state=net.best_state, trial=trial, seed=0
    ).history[-1]["score"]


@pytest.mark.slow
def test_d7_planted_motif_is_learned_and_shuffled_labels_are_not(tiny_lm: Path) -> None:
    assert train_planted(False, tiny_lm) >= 0.9
    assert abs(train_planted(True, tiny_lm)) <= 0.15


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_a7_search_finds_the_field_that_a_distant_pair_needs(preset: str) -> None:
    operations = OperationSet((3, 5), (1, 3, 7))  # fields 3 7 15 5 13 29; only the last one spans 28
    spacing, length_bp = 28, 80

    def sample(rows: int, seed: int) -> pa.Table:
        rng = np.random.default_rng(seed)
        letters = rng.choice(list("CG"), (rows, length_bp))
        labels = np.arange(rows) % 2
        for row in range(rows):
            for start in rng.choice(length_bp - 46, 3, replace=False):
                other = rng.choice([d for d in range(20, 46) if d != spacing])
                letters[row, start], letters[row, start + (spacing if labels[row] else other)] = "A", "T"
        return pa.table({"sequence": ["".join(r) for r in letters], "label": pa.array(labels)})

    class OneLayer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = SearchableConv1d(4, 16, 3)
            self.norm = torch.nn.BatchNorm1d(16)
            self.activation = torch.nn.ReLU()
            self.linear = torch.nn.Linear(16, 2)

        def forward(self, codes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            x = torch.nn.functional.one_hot(codes.long(), 5)[..., :4].transpose(1, 2).float()
            return self.linear(self.activation(self.norm(self.conv(x))).mean(2))

    stage = resolve(preset).search
    stage = stage.model_copy(update={"epochs": 6, "gradient_scale": 1.0})
    optim = stage.optim.model_copy(update={"decay": "none", "warmup_fraction": 0.0})
    table = sample(1200, 0)

    def search(seed: int) -> int:
        torch.manual_seed(seed)
        model = OneLayer()
        generator = torch.Generator().manual_seed(seed)
        mixed = replace_convolutions(model, operations, weight_std=stage.weight_std, generator=generator)

        def batches(epoch: int) -> Iterator[Batch]:
            mixed["conv"].temperature = find_temperature(stage, epoch)
            return iter_batches([table], kind="binary", batch_size=32, seed=seed, epoch=epoch)

        train(
            model,
            make_search_optimizer(model, mixed, stage),
            make_schedule(optim, stage.epochs, 38),
            LoopSettings(stage.epochs, 38, seed, clip_norm=stage.optim.clip_norm),
            Runtime(),
            batches=batches,
            losses=make_losses(make_task(), torch.ones(2)),
            validate=lambda: {"score": 0.0},
            before_step=lambda: set_logit_gradients(mixed, stage),
        )
        k, d = mixed["conv"].best()
        return d * (k - 1) + 1

    fields = [search(seed) for seed in range(5)]
    assert sum(field > spacing for field in fields) >= 4, fields


def distinct_configs() -> list[tuple[str, str, str]]:
    """One (preset, bench, task) for each distinct set of settings that ships."""
    chosen: dict[str, tuple[str, str, str]] = {}
    for preset in list_presets():
        for bench in list_benches():
            for task in find_tasks(bench):
                resolved = resolve(preset, task.overrides).model_dump_json(exclude={"evaluate"})
                chosen.setdefault(resolved, (preset, bench, task.name))
    return list(chosen.values())


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "bench", "name"), distinct_configs())
def test_d9_every_shipped_config_takes_two_steps(preset: str, bench: str, name: str, tiny_lm: Path) -> None:
    task = find_tasks(bench, [name])[0]
    settings = resolve(
        preset, task.overrides,
        {"model.language_model": str(tiny_lm), "model.language_model_layers": 1, "search.batch_size": 2,
         "align.batch_size": 2, "align.max_samples": 3, "select.batch_size": 2, "embedder_only.batch_size": 2,
         "select.epochs": 1, "search.epochs": 1, "search.batch_fraction": 1.0, "align.epochs": 2,
         "align.task_only_epochs": 1, "embedder_only.epochs": 1, "finetune.epochs": 1, "finetune.grace_epochs": 1,
            # Widths are only scaled down; the shape of each network stays.
            "model.resnet_channels": [8, 12, None if preset == "paper" else 10], "model.unet_channels": [8, 8, 10, 12, 12],
            "model.deepsea_channels": [8, 10, 12]},
    )  # fmt: skip
    length_bp = min(task.length_bp or 60, 200)
    values = np.random.default_rng(0).normal(size=(4, task.n_outputs)).astype("float32")
    labels: pa.Array = pa.array(np.arange(4) % task.n_outputs)
    if task.kind == "multilabel":
        values = (values > 0).astype("float32")
    if not task.is_classification:
        labels = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), task.n_outputs)
    table = pa.table({"sequence": plant(4, length_bp)["sequence"], "label": labels})
    data = make_data(task, table, table)
    reference, runtime = tiny_reference(), Runtime()
    for backbone in settings.select.backbones:
        train_backbone(data, settings, reference, runtime, backbone=backbone, seed=0)
        if settings.search.enabled:
            found = search_architecture(data, settings, reference, runtime, backbone=backbone, seed=0)
            assert all(k in settings.search.kernel_sizes for k, _ in found.architecture)
    config = tiny_config(data, settings, settings.select.backbones[0])
    aligned = train_aligned(data, settings, reference, runtime, config=config, alpha=settings.align.alphas[-1], seed=0)
    trial = dataclasses.replace(
        TRIAL, batch_size=2, dropout=settings.finetune.dropout[-1], train_layers=settings.finetune.train_layers[0]
    )
    result = finetune(
        data, settings, reference, runtime, config=config, embedder_state=aligned.best_state, trial=trial, seed=0
    )
    assert math.isfinite(result.history[0]["train_loss"])


def test_a_diverged_backbone_never_wins() -> None:
    data = toy_data()
    settings = tiny_settings(select__optim__lr=1e30, select__optim__optimizer="sgd", select__optim__clip_norm=None)
    result = run_stage("select", data, settings, Runtime(), 0)
    assert result.best_score == -math.inf or result.best_score <= 0.2
    assert all(torch.isfinite(values).all() for values in result.best_state.values())
    assert choose_best({"resnet": -math.inf, "unet": -0.3}) == "unet"
    assert choose_best({"resnet": 0.5, "unet": 0.5}) == "resnet"


def test_regression_learns_in_the_labels_units() -> None:
    data = make_data(
        make_task("regression", strand_specific=True), regression_table(400), regression_table(100, seed=7)
    )
    settings = tiny_settings(embedder_only__epochs=6, embedder_only__dropout=0.0, embedder_only__optim__lr=5e-3)
    result = train_embedder_only(
        data, settings, tiny_reference(), Runtime(), config=tiny_config(data, settings), seed=0
    )
    assert result.best_score > 0.9


def test_missing_labels_take_no_part_in_the_loss() -> None:
    outputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    labels = torch.tensor([[1.0, math.nan], [math.nan, 6.0]])
    loss = compute_task_loss("regression", outputs, labels, torch.tensor([1.0, 2.0]))
    assert float(loss) == pytest.approx((0 + 1) / 2)
    loss.backward()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()
    assert outputs.grad[0, 1] == 0
    assert float(compute_task_loss("multilabel", outputs, torch.full((2, 2), math.nan))) == 0


def test_the_embedder_alone_keeps_the_last_epoch_s_averaged_weights() -> None:
    """However low its score: a rate that ends in noise has better epochs before."""
    data = toy_data()
    settings = tiny_settings(embedder_only__epochs=5, embedder_only__optim__lr=0.5)
    result = run_stage("embedder_only", data, settings, Runtime(), 0)
    assert len(result.history) == result.best_epoch + 1 == 5
    assert result.best_score == result.history[-1]["score"]
    net = build_net(tiny_config(data, settings), data, tiny_reference(), 0)
    net.load_state_dict(result.best_state)
    assert make_validate(net, data, Runtime())()["score"] == result.best_score


def test_the_embedder_alone_trains_as_long_as_its_rows_ask_for() -> None:
    settings = tiny_settings(embedder_only__epochs=[1, 4], embedder_only__steps=30)
    lengths = {
        rows: len(run_stage("embedder_only", toy_data(rows), settings, Runtime(), 0).history) for rows in (60, 160, 960)
    }
    assert lengths == {60: 4, 160: 3, 960: 1}  # 16 rows a step


def test_skip_and_lm_only_have_their_own_gradients(tiny_lm: Path) -> None:
    data = toy_data()
    for combine, trains_predictor_one in (("skip", True), ("lm_only", False)):
        settings = tiny_settings(tiny_lm, model__combine=combine)
        config = tiny_config(data, settings)
        state = build_net(config, data, tiny_reference(), 0).state_dict()
        model = build_model(data, settings, tiny_reference(), config=config, embedder_state=state, seed=0)
        assert isinstance(model, L2GModel)
        assert all(p.requires_grad == trains_predictor_one for p in model.net.predictor.parameters())


def test_a_step_may_have_batches_with_and_without_padding() -> None:
    """Batches of like lengths are cut from buckets: some have no padding, and their backward pass comes last."""
    long, short = plant(40, 60), plant(24, 40, seed=1)  # 16 rows a batch: one has both
    table = pa.concat_tables([long, short])
    data = make_data(make_task(), table, plant(40, seed=2))
    settings = tiny_settings(align__max_samples=63, align__batch_size=16, align__epochs=4, align__alphas=[1.0])
    result = run_stage("align", data, settings, Runtime(), 0)
    assert len(result.history) == 4
    assert all(math.isfinite(row["train_loss"]) for row in result.history)


def test_rows_of_a_strand_specific_task_reach_the_model_unshifted() -> None:
    table = plant(32)
    settings = tiny_settings()
    given = {tuple(row) for row in encode(table["sequence"])[0].tolist()}
    for strand_specific, unshifted in ((True, True), (False, False)):
        data = make_data(make_task(strand_specific=strand_specific), table, table)
        seen = torch.cat([batch.codes for batch in make_batches(settings, data, 16, seed=0)(0)])
        assert ({tuple(row) for row in seen.tolist()} == given) is unshifted
