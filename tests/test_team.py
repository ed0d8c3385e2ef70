"""Several workers, or micro-batches, in place of one process and one batch: the same numbers (acceptance D6).

Given the same batches and without dropout. Workers that read shares of the rows are tried further below, and with Ray in
`test_shares.py`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow.csv import write_csv
from safetensors.torch import save_file
from torch import distributed, multiprocessing
from toys import (
    freeze_norms,
    make_data,
    make_site,
    make_task,
    mixed_lengths,
    plant,
    precision,
    tiny_config,
    tiny_reference,
    tiny_settings,
)

from l2g_ray.config import DataSettings
from l2g_ray.data.batches import Batch, InMemorySource, Part, cut_rows, iter_batches
from l2g_ray.data.dataset import open_prepared
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import open_source
from l2g_ray.models import embedder as embedder_module
from l2g_ray.models.layers import MaskedBatchNorm1d
from l2g_ray.models.team import ALONE, Team
from l2g_ray.orchestrate.jobs import run_job
from l2g_ray.orchestrate.spec import JobSpec
from l2g_ray.stages import context, loop, registry
from l2g_ray.stages.align import make_joint_losses, train_aligned
from l2g_ray.stages.context import (
    TaskData,
    build_net,
    predict_source,
)
from l2g_ray.stages.distances import SampleDistance, mmd
from l2g_ray.stages.embedder_only import train_embedder_only
from l2g_ray.stages.finetune import FinetuneTrial, finetune
from l2g_ray.stages.loop import Runtime, TrainResult
from l2g_ray.stages.parts import join_counts
from l2g_ray.stages.search import search_architecture
from l2g_ray.stages.select import train_backbone
from l2g_ray.store.results import Job, StageResult

pytestmark = pytest.mark.usefixtures("single_thread")

WORKERS = 2
# 45 rows in batches of 16: three steps an epoch, the last of 13 rows, which two workers cannot share equally.
ROWS = 45
TRIAL = FinetuneTrial(1e-3, 1e-3, 1e-4, 0.0, 16, "all", 0.0)


def missing_labels(rows: int, seed: int = 0) -> pa.Table:
    """Two outputs, of which a third is missing."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, 2)).astype("float32")
    values[rng.random((rows, 2)) < 1 / 3] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 2)
    return pa.table({"sequence": plant(rows, 60, seed)["sequence"], "label": column})


def cut(table: pa.Table, rank: int, size: int) -> InMemorySource:
    """A worker's share of the rows: every `size`-th one, with its number, as a stream has them."""
    numbered = table.append_column("row_index", pa.array(np.arange(table.num_rows)))
    return InMemorySource(numbered.take(np.arange(rank, table.num_rows, size)))


def share_valid(data: TaskData, team: Team) -> TaskData:
    """The data of a worker that has its share of validation, and all rows of train."""
    assert isinstance(data.valid, InMemorySource)
    return replace(data, valid=cut(data.valid.table, team.rank, team.size)) if team.size > 1 else data


@contextlib.contextmanager
def same_batches() -> Iterator[None]:
    """Within, workers have their rows of the batches that one process would have."""

    def iterate(tables: Any, *, worker: tuple[int, int], **options: Any) -> Iterator[Batch]:
        for batch in iter_batches(tables, **options):
            yield batch.take(*cut_rows(len(batch.codes), *worker), Part(0, (0,), 0)) if worker[1] > 1 else batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "iter_batches", iterate)
        yield


def binary(team: Team = ALONE) -> TaskData:
    return share_valid(make_data(make_task(), mixed_lengths(ROWS), mixed_lengths(21, 9)), team)


def regression(team: Team = ALONE) -> TaskData:
    return share_valid(make_data(make_task("regression"), missing_labels(ROWS), missing_labels(21, 9)), team)


def train_finetune(runtime: Runtime, language_model: Path) -> TrainResult:
    """Embedder with batch norm, and labels that are missing."""
    data, settings = regression(runtime.team), tiny_settings(language_model, finetune__epochs=7)
    config = tiny_config(data, settings)
    state = build_net(config, data, tiny_reference(), 5).state_dict()
    return finetune(data, settings, tiny_reference(), runtime, config=config, embedder_state=state, trial=TRIAL, seed=1)


def train_align(runtime: Runtime, language_model: Path, last_epoch: int | None = None, **changes: Any) -> TrainResult:
    """Two epochs on the task and five with MMD, three batches a step, with padding."""
    data = binary(runtime.team)
    changes = {"align__epochs": 7, "align__task_only_epochs": 2, "align__dropout": 0.0, **changes}
    settings = tiny_settings(language_model, align__optim__lr=1e-3, **changes)
    config = tiny_config(data, settings)
    return train_aligned(
        data, settings, tiny_reference(), runtime, config=config, alpha=1.0, seed=1, last_epoch=last_epoch
    )


def train_features(runtime: Runtime, language_model: Path) -> TrainResult:
    """The same where the predictor reads the backbone: projection and LayerNorm have no gradient until MMD gives them one."""
    return train_align(runtime, language_model, model__predictor_reads="backbone")


def train_otdd(runtime: Runtime, language_model: Path) -> TrainResult:
    """With OTDD, which asks for the classes of all workers' rows; of values, so they are found by clustering."""
    data = regression(runtime.team)
    settings = tiny_settings(
        language_model, align__epochs=7, align__task_only_epochs=0, align__distance="otdd", align__dropout=0.0
    )
    config = tiny_config(data, settings)
    return train_aligned(data, settings, tiny_reference(), runtime, config=config, alpha=1.0, seed=1)


def train_search(runtime: Runtime, language_model: Path) -> TrainResult:
    """Gumbel noise over operations."""
    settings = tiny_settings(
        language_model, search__epochs=7, search__batch_fraction=1.0, search__optim__lr=1e-2, search__form="by_dilation"
    )
    data = binary(runtime.team)
    return search_architecture(data, settings, tiny_reference(), runtime, backbone="resnet", seed=1).training


def train_unet(runtime: Runtime, language_model: Path) -> TrainResult:
    """The other backbone, with pooling and upsampling of padded batches."""
    settings = tiny_settings(language_model, select__epochs=7, select__dropout=0.0)
    return train_backbone(binary(runtime.team), settings, tiny_reference(), runtime, backbone="unet", seed=1)


def train_alone(runtime: Runtime, language_model: Path) -> TrainResult:
    """The embedder alone, whose averaged weights are what is kept."""
    data = binary(runtime.team)
    settings = tiny_settings(language_model, embedder_only__epochs=7, embedder_only__dropout=0.0)
    config = tiny_config(data, settings)
    return train_embedder_only(data, settings, tiny_reference(), runtime, config=config, seed=1)


STAGES = {
    "finetune": train_finetune,
    "align": train_align,
    "features": train_features,
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
    place, lm = Path(folder), Path(language_model)
    with same_batches(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder_module, "_MEAN_MAX_DROPOUT", 0.0)
        for name, dtype in CASES:
            with precision(dtype):
                found[f"{name} {dtype}"] = numbers(STAGES[name](Runtime(team=team), lm))
        found["told"] = run_both_jobs(place, team)
        with precision(torch.float64):
            found["resumed"] = numbers(train_align(Runtime(state_path=place / "of_one.pt", team=team), lm))
            train_align(Runtime(state_path=place / "of_two.pt", team=team), lm, last_epoch=3)
    found["naive"] = naive_mmd(team)
    with precision(torch.float64):
        found["layer"] = one_layer(team)
        net = build_net(tiny_config(binary(), tiny_settings()), binary(), tiny_reference(), 0)
        found["predictions"] = predict_source(net, binary(team).valid, make_task(), Runtime(team=team), batch_size=8)
        found["pieces"] = [one_step(team, micro_batches) for micro_batches in (1, 2)]
    found["shares"] = train_shares(team)
    others = team.gather({name: found[name]["loss"] for name in found if "torch" in name or name == "shares"})
    assert all(other == others[0] for other in others), "all workers report the same losses"
    if team.is_first:
        torch.save(found, Path(folder) / "found.pt")
    distributed.destroy_process_group()


def one_layer(team: Team) -> dict[str, torch.Tensor]:
    """A masked batch norm of rows that the workers share unequally: gradients and running statistics."""
    torch.manual_seed(0)
    x, mask = torch.randn(7, 3, 11), (torch.rand(7, 1, 11) < 0.7).double()
    layer = MaskedBatchNorm1d(3)
    wrapped = team.wrap(layer)
    start, stop = (0, 7) if team.size == 1 else ((0, 5), (5, 7))[team.rank]
    part = x[start:stop].clone().requires_grad_()
    loss = (wrapped(part, mask[start:stop]) * torch.randn(7, 3, 11)[start:stop] * mask[start:stop]).sum() * team.size
    loss.backward()
    assert part.grad is not None
    assert layer.weight.grad is not None
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return {
        "x": team.gather_rows(part.grad / team.size, (5, 2)),
        "weight": layer.weight.grad,
        "running_mean": layer.running_mean,
        "running_var": layer.running_var,
    }


def one_step(team: Team, micro_batches: int) -> tuple[float, list[torch.Tensor | None]]:
    """Loss and gradients of one group by task and MMD, in micro-batches; batch norm frozen."""
    data, settings = binary(), tiny_settings(align__task_only_epochs=0)
    net = freeze_norms(build_net(tiny_config(data, settings), data, tiny_reference(), 0).train())
    distance = SampleDistance(mmd, tiny_reference().features)
    losses = make_joint_losses(data, distance, settings.align, torch.ones(2), 1.0, team)
    group = list(iter_batches(data.train.tables(), kind="binary", batch_size=16, seed=0, epoch=0))
    if team.size > 1:
        group = [batch.take(*cut_rows(len(batch.codes), team.rank, team.size), Part(0, (0,), 0)) for batch in group]
    wrapped, group = team.wrap(net), join_counts(group, team)
    state, optimizer = loop._State(micro_batches=micro_batches), torch.optim.SGD(net.parameters())
    (team.generator or torch.default_generator).manual_seed(4)
    value = loop._backward(wrapped, optimizer, Runtime(team=team), lambda p: losses(wrapped, p, 1), group, state)
    return team.sum_number(float(value)) / team.size, [p.grad for p in net.parameters()]


@dataclass(frozen=True)
class Share:
    """A worker's rows of a train split of `n_rows`."""

    table: pa.Table
    n_rows: int

    def tables(self) -> Iterator[pa.Table]:
        yield self.table


def train_shares(team: Team) -> dict[str, Any]:
    """Shares of 31 and 14 rows, with dropout: the second worker has no rows left for the third step."""
    data, table = binary(team), mixed_lengths(ROWS)
    own = table.slice(0, 31) if team.is_first else table.slice(31)
    data, settings = replace(data, train=Share(own, ROWS)), tiny_settings(select__epochs=2, select__dropout=0.2)
    result = train_backbone(data, settings, tiny_reference(), Runtime(team=team), backbone="resnet", seed=1)
    return numbers(result) | {"alike": len({repr(x) for x in team.gather(digest(result))}) == 1}


def digest(result: TrainResult) -> list[float]:
    return [float(value.double().sum()) for value in result.best_state.values()]


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
    """Run a warm-up, an alignment that resumes from it, and the latter again; return the reported epochs."""
    facts = {"width": 16, "max_tokens": 64, "norm_eps": 1e-12}
    reference = StageResult("reference", "r", folder / "reference", facts)
    settings = tiny_settings(align__epochs=3, align__task_only_epochs=2, align__dropout=0.0)
    site = make_site(folder, settings, reference=reference, root=folder / f"store-{team.size}")
    args = {"backbone": "resnet", "architecture": [[3, 1]] * 9, "seed": 0}
    warm, told = Job("warmup", "w", args, {}, {}), []
    valid = cut(open_prepared(site.prepared).table("valid"), team.rank, team.size)
    run_job(JobSpec(site, warm), lambda row: told.append(row["epoch"]), valid=valid, team=team)
    inputs = {"warmup": str(folder / f"store-{team.size}" / "warmup" / warm.key)}
    for _ in range(2):
        align = Job("align", "a", args | {"alpha": 1.0}, inputs, {})
        run_job(JobSpec(site, align), lambda row: told.append(row["epoch"]), valid=valid, team=team)
    return told


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> dict[str, Any]:
    """What two gloo processes found."""
    folder = tmp_path_factory.mktemp("team")
    sys.path.insert(0, str(Path(__file__).parent))
    prepare_jobs(folder)
    with precision(torch.float64):
        train_align(Runtime(state_path=folder / "of_one.pt"), tiny_lm, last_epoch=3)
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
    """21 steps: losses with batch norm, augmentation, MMD, Gumbel noise and missing labels as they are.

    Weights are compared in float64 alone: a bias before a batch norm has a gradient of rounding errors only, which Adam
    makes as large as any other.
    """
    with precision(dtype):
        alone = numbers(STAGES[stage](Runtime(), tiny_lm))
    found = together[f"{stage} {dtype}"]
    assert len(set(alone["loss"])) == 7
    double = dtype == torch.float64
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-8 if double else 1e-5)
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
def test_a_training_goes_on_with_another_number_of_workers(together: dict[str, Any], tiny_lm: Path) -> None:
    """The state of one process with two, and that of two with one."""
    with precision(torch.float64):
        alone = numbers(train_align(Runtime(), tiny_lm))
        resumed = numbers(train_align(Runtime(state_path=together["folder"] / "of_two.pt"), tiny_lm))
    for found in (together["resumed"], resumed):
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-8)
        assert largest_difference(found["state"], alone["state"]) <= 1e-6


@pytest.mark.slow
def test_micro_batches_of_workers_have_the_gradients_of_the_whole(together: dict[str, Any]) -> None:
    """Gradients are averaged once, after the last micro-batch."""
    with precision(torch.float64):
        value, gradients = one_step(ALONE, 1)
    for found_value, found in together["pieces"]:
        assert found_value == pytest.approx(value, rel=1e-10)
        for own, expected in zip(found, gradients, strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.slow
def test_workers_with_unequal_shares_take_the_same_steps(together: dict[str, Any]) -> None:
    found = together["shares"]
    assert found["alike"]
    assert all(np.isfinite(found["loss"]))
    assert len(set(found["loss"])) == 2


@pytest.mark.slow
def test_workers_make_one_result_together(together: dict[str, Any]) -> None:
    """Lock, state and result are the first one's; the epochs are those of one process."""
    folder = together["folder"]
    with precision(torch.float32):
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


@pytest.mark.parametrize("n_workers", [2, 3, 5])
def test_workers_take_as_many_steps_as_one_process(n_workers: int) -> None:
    """Each row once an epoch, in batches that are a worker's share of the whole, in another order at each epoch."""
    table, settings = mixed_lengths(ROWS), tiny_settings()
    orders = []
    for epoch in range(2):
        seen, sizes = [], []
        for rank in range(n_workers):
            own = cut(table, rank, n_workers).table
            data = replace(binary(), train=Share(own, ROWS))
            team = Team(rank, n_workers)
            batches = list(context.make_batches(settings, data, 16, 0, team=team)(epoch))
            seen += [row for batch in batches for row in batch.row_index[: batch.n_own].tolist()]
            sizes.append([batch.n_own for batch in batches])
        assert {len(own) for own in sizes} == {3}
        assert sorted(seen) == list(range(ROWS))
        assert sum(own[0] for own in sizes) == 16
        orders.append(seen)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("micro_batches", [2, 3])
def test_joint_loss_in_micro_batches_equals_that_of_the_group(micro_batches: int) -> None:
    """Value and gradients of task and MMD; batch norm frozen."""
    with precision(torch.float64):
        (value, gradients), (found, small) = one_step(ALONE, 1), one_step(ALONE, micro_batches)
    assert found == pytest.approx(value, rel=1e-12)
    for own, expected in zip(small, gradients, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-12)
