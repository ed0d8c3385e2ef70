"""Several workers, or micro-batches, in place of one process and one batch: the same numbers (acceptance D6)."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow.csv import write_csv
from safetensors.torch import save_file
from torch import distributed, multiprocessing, nn
from toys import make_data, make_site, make_task, plant, tiny_config, tiny_reference, tiny_settings

from l2g_ray.config import DataSettings, OptimSettings
from l2g_ray.data.batches import iter_batches, iter_evaluation_batches
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import open_source
from l2g_ray.errors import UserError
from l2g_ray.models.l2g import L2GModel
from l2g_ray.models.layers import MaskedBatchNorm1d, join_team
from l2g_ray.models.team import ALONE, Team
from l2g_ray.orchestrate.jobs import run_job
from l2g_ray.orchestrate.spec import JobSpec
from l2g_ray.stages import finetune as finetune_module
from l2g_ray.stages import registry
from l2g_ray.stages.align import make_joint_losses, train_aligned
from l2g_ray.stages.context import (
    TaskData,
    build_net,
    count_rows,
    make_losses,
    make_validate,
    predict_source,
    with_dropout,
)
from l2g_ray.stages.distances import SampleDistance, mmd
from l2g_ray.stages.embedder_only import train_embedder_only
from l2g_ray.stages.finetune import FinetuneTrial, build_model, finetune
from l2g_ray.stages.loop import LoopSettings, Runtime, TrainResult, train
from l2g_ray.stages.optim import make_optimizer, make_schedule
from l2g_ray.stages.search import search_architecture
from l2g_ray.stages.select import train_backbone
from l2g_ray.store.results import Job, StageResult

pytestmark = pytest.mark.usefixtures("single_thread")

WORKERS = 2
# 45 rows in batches of 16: three steps an epoch, the last of 13 rows, which two workers cannot share equally.
ROWS = 45
TRIAL = FinetuneTrial(1e-3, 1e-3, 1e-4, 0.2, 16, "all", 0.0)


def mixed_lengths(rows: int, seed: int = 0) -> pa.Table:
    """Planted sequences of 24 to 60 bp, so that batches have padding."""
    table = plant(rows, 60, seed)
    stops = np.random.default_rng(seed).integers(24, 61, rows)
    cut = [text[:stop] for text, stop in zip(table["sequence"].to_pylist(), stops, strict=True)]
    return table.set_column(0, "sequence", pa.array(cut))


def missing_labels(rows: int, seed: int = 0) -> pa.Table:
    """Two outputs, of which a third is missing."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, 2)).astype("float32")
    values[rng.random((rows, 2)) < 1 / 3] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 2)
    return pa.table({"sequence": plant(rows, 60, seed)["sequence"], "label": column})


def binary() -> TaskData:
    return make_data(make_task(), mixed_lengths(ROWS), mixed_lengths(21, 9))


def regression() -> TaskData:
    return make_data(make_task("regression"), missing_labels(ROWS), missing_labels(21, 9))


def train_finetune(runtime: Runtime, language_model: Path) -> TrainResult:
    """Embedder with batch norm, language model with dropout in its layers and attentions, labels that are missing."""
    data, settings = regression(), tiny_settings(language_model, finetune__epochs=7)
    config = tiny_config(data, settings)
    state = build_net(config, data, tiny_reference(), 5).state_dict()
    return finetune(data, settings, tiny_reference(), runtime, config=config, embedder_state=state, trial=TRIAL, seed=1)


def train_align(runtime: Runtime, language_model: Path) -> TrainResult:
    """Two epochs on the task and five with MMD, three batches a step, with dropout and padding."""
    data = binary()
    settings = tiny_settings(
        language_model, align__epochs=7, align__task_only_epochs=2, align__dropout=0.2, align__optim__lr=1e-3
    )
    config = tiny_config(data, settings)
    return train_aligned(data, settings, tiny_reference(), runtime, config=config, alpha=1.0, seed=1)


def train_otdd(runtime: Runtime, language_model: Path) -> TrainResult:
    """The same with OTDD, which asks for the classes of all workers' rows; of values, so they are found by clustering."""
    data = regression()
    settings = tiny_settings(language_model, align__epochs=7, align__task_only_epochs=0, align__distance="otdd")
    config = tiny_config(data, settings)
    return train_aligned(data, settings, tiny_reference(), runtime, config=config, alpha=1.0, seed=1)


def train_search(runtime: Runtime, language_model: Path) -> TrainResult:
    """Gumbel noise over operations."""
    settings = tiny_settings(language_model, search__epochs=7, search__batch_fraction=1.0, search__optim__lr=1e-2)
    return search_architecture(binary(), settings, tiny_reference(), runtime, backbone="resnet", seed=1).training


def train_unet(runtime: Runtime, language_model: Path) -> TrainResult:
    """The other backbone, with dropout-free units, pooling and upsampling of padded batches."""
    settings = tiny_settings(language_model, select__epochs=7)
    return train_backbone(binary(), settings, tiny_reference(), runtime, backbone="unet", seed=1)


def train_alone(runtime: Runtime, language_model: Path) -> TrainResult:
    """The embedder alone, whose averaged weights are what is kept."""
    data, settings = binary(), tiny_settings(language_model, embedder_only__epochs=7)
    config = tiny_config(data, settings)
    return train_embedder_only(data, settings, tiny_reference(), runtime, config=config, seed=1)


STAGES = {
    "finetune": train_finetune,
    "align": train_align,
    "otdd": train_otdd,
    "search": train_search,
    "unet": train_unet,
    "alone": train_alone,
}
# Each stage of the registry whose workers train one model, and what of the above trains as it does.
TEAMED = {
    "select": "unet",
    "search": "search",
    "warmup": "align",
    "align": "align",
    "embedder_only": "alone",
    "trial": "finetune",
    "refit": "finetune",
}
CASES = [(name, torch.float64) for name in STAGES] + [("finetune", torch.float32), ("align", torch.float32)]


@contextlib.contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """All parameters, also the language model's, in this type."""
    load = finetune_module.load_transformer
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    finetune_module.load_transformer = lambda *arguments: load(*arguments).to(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        finetune_module.load_transformer = load


def numbers(result: TrainResult) -> dict[str, Any]:
    return {
        "loss": [row["train_loss"] for row in result.history],
        "score": [row["score"] for row in result.history],
        "state": result.best_state,
    }


def naive_mmd(team: Team, n_own: int = 16) -> float:
    """MMD as a worker would compute it of its own rows, meaned over workers."""
    generator = torch.Generator().manual_seed(3)
    source, target = torch.randn(32, 8, generator=generator), torch.randn(32, 8, generator=generator) + 0.5
    start, stop = n_own * team.rank, n_own * (team.rank + 1)
    return team.sum_number(float(mmd(source[start:stop], target[start:stop]))) / team.size


def work(rank: int, folder: str, language_model: str) -> None:
    """What each worker does; the first one writes what came out."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS)
    team = Team.joined()
    found: dict[str, Any] = {}
    for name, dtype in CASES:
        with precision(dtype):
            runtime = Runtime(state_path=Path(folder) / f"{name}-{dtype}.pt", team=team)
            found[f"{name} {dtype}"] = numbers(STAGES[name](runtime, Path(language_model)))
    found["naive"] = naive_mmd(team)
    with precision(torch.float64):
        found["layer"] = one_layer(team)
        net = build_net(tiny_config(binary(), tiny_settings()), binary(), tiny_reference(), 0)
        found["predictions"] = predict_source(net, binary().valid, make_task(), Runtime(team=team), batch_size=8)
    found["told"] = run_both_jobs(Path(folder), team)
    others = [None] * WORKERS
    distributed.all_gather_object(others, {name: found[name]["loss"] for name in found if "torch" in name})
    assert all(other == others[0] for other in others), "all workers report the same losses"
    if team.is_first:
        torch.save(found, Path(folder) / "found.pt")
    distributed.destroy_process_group()


def one_layer(team: Team) -> dict[str, torch.Tensor]:
    """A masked batch norm of rows that the workers share unequally: gradients and running statistics."""
    torch.manual_seed(0)
    x, mask = torch.randn(7, 3, 11), (torch.rand(7, 1, 11) < 0.7).double()
    layer = MaskedBatchNorm1d(3)
    join_team(layer, team)
    start, stop = (0, 7) if team.size == 1 else ((0, 5), (5, 7))[team.rank]
    part = x[start:stop].clone().requires_grad_()
    (layer(part, mask[start:stop]) * torch.randn(7, 3, 11)[start:stop] * mask[start:stop]).sum().backward()
    team.sum_gradients(layer.parameters())
    assert part.grad is not None
    assert layer.weight.grad is not None
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return {
        "x": team.gather_rows(part.grad, start, 7),
        "weight": layer.weight.grad,
        "running_mean": layer.running_mean,
        "running_var": layer.running_var,
    }


def prepare_jobs(folder: Path) -> None:
    """A prepared task and a reference in `folder`, as a pipeline leaves them."""
    source = folder / "source"
    source.mkdir()
    for seed, (split, rows) in enumerate((("train", ROWS), ("valid", 21), ("test", 8))):
        write_csv(plant(rows, 60, seed), source / f"{split}.csv")
    prepare(open_source([source], SourceOptions()), folder / "prepared", DataSettings())
    reference = tiny_reference()
    (folder / "reference").mkdir()
    tensors = {name: getattr(reference, name) for name in ("norm_weight", "norm_bias", "features")}
    save_file(tensors, str(folder / "reference" / "reference.safetensors"))


def run_both_jobs(folder: Path, team: Team) -> list[int]:
    """Warm-up, and an alignment that goes on from it, and the latter again; the epochs that were reported."""
    facts = {"width": 16, "max_tokens": 64, "norm_eps": 1e-12}
    reference = StageResult("reference", "r", folder / "reference", facts)
    settings = tiny_settings(align__epochs=3, align__task_only_epochs=2)
    site = make_site(folder, settings, reference=reference, root=folder / f"store-{team.size}")
    args = {"backbone": "resnet", "architecture": [[3, 1]] * 9, "seed": 0}
    warm, told = Job("warmup", "w", args, {}, {}), []
    run_job(JobSpec(site, warm), lambda row: told.append(row["epoch"]), team=team)
    inputs = {"warmup": str(folder / f"store-{team.size}" / "warmup" / warm.key)}
    for _ in range(2):
        align = Job("align", "a", args | {"alpha": 1.0}, inputs, {})
        run_job(JobSpec(site, align), lambda row: told.append(row["epoch"]), team=team)
    return told


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> dict[str, Any]:
    """What two gloo processes found."""
    folder = tmp_path_factory.mktemp("team")
    sys.path.insert(0, str(Path(__file__).parent))
    prepare_jobs(folder)
    multiprocessing.start_processes(work, (str(folder), str(tiny_lm)), nprocs=WORKERS, start_method="spawn")
    return torch.load(folder / "found.pt", weights_only=False) | {"folder": folder}


def largest_difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Of weights, relative to each tensor's largest entry."""
    return max(
        float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-6))
        for name, value in expected.items()
        if value.is_floating_point()
    )


def test_every_stage_of_a_team_is_tried() -> None:
    assert TEAMED.keys() == {name for name, stage in registry.STAGES.items() if stage.run and stage.teamed}
    assert set(TEAMED.values()) <= STAGES.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "dtype"), CASES)
def test_d6_two_workers_equal_one(stage: str, dtype: torch.dtype, together: dict[str, Any], tiny_lm: Path) -> None:
    """21 steps: losses with batch norm, dropout, augmentation, MMD, Gumbel noise and missing labels as they are.

    Weights are compared in float64 alone: a bias before a batch norm has a gradient of rounding errors only, which Adam
    makes as large as any other.
    """
    with precision(dtype):
        alone = numbers(STAGES[stage](Runtime(), tiny_lm))
    found = together[f"{stage} {dtype}"]
    assert len(set(alone["loss"])) == 7
    double = dtype == torch.float64
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-10 if double else 1e-5)
    if double:
        assert largest_difference(found["state"], alone["state"]) <= 1e-6
        assert found["score"] == pytest.approx(alone["score"], abs=1e-6)


@pytest.mark.slow
def test_d6_mmd_of_each_worker_alone_would_be_far_off(together: dict[str, Any]) -> None:
    assert abs(together["naive"] - naive_mmd(ALONE, 32)) > 0.01


@pytest.mark.slow
def test_batch_norm_over_workers_equals_that_of_one(together: dict[str, Any]) -> None:
    with precision(torch.float64):
        alone = one_layer(ALONE)
    for name, value in alone.items():
        torch.testing.assert_close(together["layer"][name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_workers_predict_all_rows_in_their_order(together: dict[str, Any]) -> None:
    with precision(torch.float64):
        net = build_net(tiny_config(binary(), tiny_settings()), binary(), tiny_reference(), 0)
        predictions, labels = predict_source(net, binary().valid, make_task(), Runtime(), batch_size=8)
    np.testing.assert_allclose(together["predictions"][0], predictions, atol=1e-6)
    np.testing.assert_array_equal(together["predictions"][1], labels)


@pytest.mark.slow
def test_workers_make_one_result_together(together: dict[str, Any]) -> None:
    """Lock, state and result are the first one's; the epochs are those of one process."""
    folder = together["folder"]
    told = run_both_jobs(folder, ALONE)
    assert together["told"] == told == [0, 1, 0, 1, 2, 0, 1, 2]
    results = {}
    for size in (1, WORKERS):
        store = folder / f"store-{size}"
        assert not list(store.rglob("*.work"))
        for path in store.glob("*/*/result.json"):
            results[size, path.parent.parent.name] = json.loads(path.read_text())
        (model,) = store.glob("align/*/model.safetensors")
        assert model.stat().st_size > 0
        assert [path.name for path in store.glob("warmup/*/warm.pt")] == ["warm.pt"]
    for stage in ("warmup", "align"):
        losses = [[row["train_loss"] for row in results[size, stage]["history"]] for size in (1, WORKERS)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# ---- parts of batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_workers", [2, 3, 20])
def test_workers_share_the_rows_of_every_batch(n_workers: int) -> None:
    """Encoded, padded and augmented as in the whole batch; a worker's part may be empty."""
    table = mixed_lengths(ROWS)
    options: dict[str, Any] = {"kind": "binary", "batch_size": 16, "seed": 3, "epoch": 1, "rc_augment": True}
    whole = list(iter_batches([table], shift_bp=3, **options))
    parts = [list(iter_batches([table], shift_bp=3, worker=(r, n_workers), **options)) for r in range(n_workers)]
    for i, batch in enumerate(whole):
        pieces = [part[i] for part in parts]
        for field in ("codes", "lengths_bp", "labels", "row_index"):
            assert torch.equal(torch.cat([getattr(p, field)[: p.n_own] for p in pieces]), getattr(batch, field))
        for piece in pieces:
            assert piece.part is not None
            assert (piece.part.n_rows, piece.part.n_labels) == (len(batch.codes), len(batch.codes))
            assert piece.codes.shape[1] == batch.codes.shape[1]
    evaluated = [list(iter_evaluation_batches([table], kind="binary", batch_size=16, worker=(r, 3))) for r in range(3)]
    rows = [batch.row_index[: batch.n_own] for step in zip(*evaluated, strict=True) for batch in step]
    assert torch.cat(rows).tolist() == list(range(ROWS))


def test_micro_batches_of_fewer_rows_than_there_are_of_them() -> None:
    batch = next(iter_batches([mixed_lengths(3)], kind="binary", batch_size=16, seed=0, epoch=0))
    pieces = batch.split(4)
    assert [piece.n_own for piece in pieces] == [1, 1, 1, 0]
    assert count_rows(pieces) == count_rows([batch]) == 3
    assert torch.equal(torch.cat([piece.codes[: piece.n_own] for piece in pieces]), batch.codes)
    again = pieces[1].split(2)
    assert [(piece.part.start, piece.part.stop) for piece in again if piece.part] == [(1, 2), (2, 2)]


def test_a_worker_without_rows_takes_the_same_steps(tiny_lm: Path) -> None:
    """The last batch may have fewer rows than there are workers: their gradients are zeros, not missing."""
    batch = next(iter_batches(binary().train.tables(), kind="binary", batch_size=3, seed=0, epoch=0, worker=(3, 4)))
    assert (batch.n_own, batch.lengths_bp.tolist()) == (0, [0])
    model = whole_model(tiny_lm).train()
    losses = make_losses(model, make_task(), torch.ones(2))
    loss = next(losses([batch], 0))
    assert float(loss.detach()) == 0
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def whole_model(language_model: Path) -> L2GModel:
    """A fresh model for `binary`."""
    data, settings = binary(), tiny_settings(language_model)
    config = tiny_config(data, settings)
    state = build_net(config, data, tiny_reference(), 5).state_dict()
    return build_model(data, settings, tiny_reference(), config=config, embedder_state=state, seed=0)


# ---- memory that does not suffice ------------------------------------------------------------------------------------


class SmallMemory(nn.Module):
    """A model for which only so many rows fit at once."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.limit = limit
        self.embed = nn.Embedding(5, 8)
        self.dropout = nn.Dropout(0.3)
        self.linear = nn.Linear(8, 2)
        self.register_buffer("passes", torch.zeros(()))
        self.widest = 0

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.passes += 1
        if len(codes) > self.limit:
            raise torch.OutOfMemoryError(f"{len(codes)} rows")
        self.widest = max(self.widest, len(codes))
        return self.linear(self.dropout(self.embed(codes.long())).mean(1))


def train_small(limit: int, state_path: Path | None = None, team: Team = ALONE) -> tuple[TrainResult, SmallMemory]:
    model, data = SmallMemory(limit), binary()
    optim = OptimSettings(optimizer="sgd", lr=0.1, decay="none", warmup_fraction=0.0)
    runtime = Runtime(state_path=state_path, team=team)
    result = train(
        model,
        make_optimizer(optim, [(model.parameters(), optim.lr)]),
        make_schedule(optim, 2, 3),
        LoopSettings(2, 3, 0),
        runtime,
        batches=lambda e: iter_batches(data.train.tables(), kind="binary", batch_size=16, seed=0, epoch=e),
        losses=make_losses(model, data.task, data.label_scale),
        validate=make_validate(model, data, runtime),
    )
    return result, model


def test_batches_that_do_not_fit_are_cut_and_keep_their_effect(tmp_path: Path) -> None:
    """Same losses, weights and scores as with enough memory; dropout and all. Validation is cut as well."""
    enough, _ = train_small(100)
    assert "micro_batches" not in enough.history[0]
    short, model = train_small(5, tmp_path / "state.pt")
    assert model.widest <= 5
    assert [row["micro_batches"] for row in short.history] == [4, 4]
    for name in ("train_loss", "score"):
        assert [row[name] for row in short.history] == pytest.approx([row[name] for row in enough.history], rel=1e-5)
    for name, value in enough.best_state.items():
        if name != "passes":
            torch.testing.assert_close(short.best_state[name], value, rtol=1e-5, atol=1e-7)
    # Four micro-batches a step: what a failed attempt did to buffers is undone.
    assert float(short.best_state["passes"]) == 3 * 4 * (short.best_epoch + 1)


def test_memory_for_less_than_two_rows_is_the_users_matter() -> None:
    with pytest.raises(UserError, match="memory does not suffice even for 2 rows"):
        train_small(1)


def test_a_team_that_runs_out_of_memory_starts_again_in_smaller_parts(tmp_path: Path) -> None:
    """A worker cannot change the step while the others wait in it: it leaves a note and fails."""
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            train_small(5, tmp_path / "state.pt", FakeTeam(0, 2))
    result, _ = train_small(5, tmp_path / "state.pt")
    assert result.history[0]["micro_batches"] == 4


class FakeTeam(Team):
    """A worker whose others are not there."""

    def copy_from_first(self, model: nn.Module) -> None:
        """Nobody to copy from."""


@pytest.mark.parametrize("micro_batches", [2, 3])
def test_joint_loss_in_micro_batches_equals_that_of_the_group(micro_batches: int) -> None:
    """Value and gradients of task and MMD, with dropout; batch norm frozen."""
    with precision(torch.float64):
        data, settings = binary(), tiny_settings(align__task_only_epochs=0)
        group = list(iter_batches(data.train.tables(), kind="binary", batch_size=16, seed=0, epoch=0))
        pieces = [piece for batch in group for piece in batch.split(micro_batches)]
        found = []
        for parts in (group, pieces):
            net = build_net(with_dropout(tiny_config(data, settings), 0.3), data, tiny_reference(), 0).train()
            for module in net.modules():
                if isinstance(module, MaskedBatchNorm1d):
                    module.eval()
            losses = make_joint_losses(
                net, data, SampleDistance(mmd, tiny_reference().features), settings.align, alpha=1.0
            )
            torch.manual_seed(4)
            value = 0.0
            for loss in losses(parts, 1):
                loss.backward()
                value += float(loss.detach())
            found.append((value, [p.grad for p in net.parameters()], torch.rand(1)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-12)
    for small, large in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(small, large, rtol=1e-9, atol=1e-12)
    assert torch.equal(found[0][2], found[1][2]), "the generator is where it would have been"
