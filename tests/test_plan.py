"""`l2g-ray plan`: operations, steps and bytes against manual counts and against real modules; a finished run's table."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow.csv import write_csv
from toys import make_task, plant, tiny_config, tiny_reference, tiny_settings, toy_data
from transformers import AutoModel

from l2g_ray.cli.main import run
from l2g_ray.config import BACKBONES
from l2g_ray.counts import (
    batches_per_epoch,
    choose_cnn_schedule,
    default_architecture,
    expected_epochs,
    group_size,
    rung_epochs,
)
from l2g_ray.errors import UserError
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.models.language_model import LanguageModel
from l2g_ray.models.mixed_conv import OperationSet, replace_convolutions
from l2g_ray.plan.costs import Found, TaskPlan, find_machine, read_known
from l2g_ray.plan.encoder import count_language_model, measure_shape, read_shape
from l2g_ray.plan.finished import read_spent, show_hours, sum_stages
from l2g_ray.plan.network import Mixture, NetShape, count_net
from l2g_ray.plan.plan import plan_task
from l2g_ray.plan.rows import Rows
from l2g_ray.stages.context import build_net, count_steps
from l2g_ray.store.results import StageResult

ROWS = Rows(160, 40, 40, 60, 60.0, 60, True, "given")
Call = Callable[..., dict[str, Any]]
LOADED = """
import atexit, sys
atexit.register(lambda: print("MODULES", *(name for name in sys.modules if "." not in name)))
from l2g_ray.cli.main import run
run()
"""


def shape_of(config: EmbedderConfig) -> NetShape:
    """The sizes of an embedder's config."""
    values = {name: value for name, value in config.__dict__.items() if name != "norm_eps"}
    values["architecture"] = config.architecture or tuple(default_architecture(config.backbone))
    return NetShape(**values)


@pytest.fixture
def plan_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """`l2g-ray plan ... --json` in this process."""

    def call(*arguments: object) -> dict[str, Any]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["l2g-ray", "plan", *map(str, arguments), "--json"])
        run()
        return json.loads(capsys.readouterr().out)

    return call


def plan_toy(tiny_lm: Path, **changes: Any) -> TaskPlan:
    settings = tiny_settings(tiny_lm, **{"select__backbones": ["resnet"]} | changes)
    return plan_task(make_task(), settings, ROWS, read_shape(str(tiny_lm)))


def stage(plan: TaskPlan, name: str) -> Any:
    return next(s for s in plan.stages if s.stage == name)


def convolutions_by_hand(net: torch.nn.Module, length_bp: int) -> tuple[float, float]:
    """Forward operations of a row through all convolutions and linears, and of the first convolutions alone."""
    total, seen = 0.0, []
    for module in net.modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.Linear):
            seen.append(module.register_forward_hook(lambda m, inputs, out: sums.append((m, inputs[0], out))))
    sums: list[Any] = []
    net.eval()
    with torch.no_grad():
        net(torch.zeros(1, length_bp, dtype=torch.uint8), torch.tensor([length_bp]))
    first = 0.0
    for module, x, out in sums:
        per_output = module.in_features if isinstance(module, torch.nn.Linear) else x.shape[1] * module.kernel_size[0]
        flops = 2.0 * out.numel() * per_output
        total += flops
        first += flops if x.shape[1] == 5 and x.ndim == 3 else 0.0
    return total, first


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_operations_of_an_embedder_are_those_counted_by_hand(backbone: str) -> None:
    data, settings = toy_data(), tiny_settings(data__channels=5)  # no later layer has 5 channels
    config = tiny_config(data, settings, backbone)
    counted = count_net(shape_of(config), 60)
    by_hand, first = convolutions_by_hand(build_net(config, data, tiny_reference(), 0), 60)
    assert counted.forward_flops == by_hand
    # Backward is twice forward, but nothing flows back into the sequence.
    assert counted.train_flops == 3 * by_hand - first


def test_the_supernet_costs_a_convolution_a_dilation_and_one_mixing_a_batch() -> None:
    config = tiny_config(toy_data(), tiny_settings())
    operations = OperationSet((3, 5, 7), (1, 3))
    plain, mixed = (
        count_net(shape_of(config), 60),
        count_net(shape_of(config), 60, mixture=Mixture((3, 5, 7), (1, 3), False)),
    )
    net = EmbedderNet(config)
    layers = replace_convolutions(net.embedder.backbone, operations)
    mixing = sum(2 * layer.weight.numel() for layer in layers.values())
    assert mixed.fixed_flops == 3 * mixing
    # Two dilations, kernels of 7 instead of 3: the searched part is 14/3 of the deployed one.
    x, searched = config.length_bp, 0.0
    for i, layer in enumerate(layers.values()):
        length = x // 2 ** (i // 3)  # pooled by two after each block of three
        searched += 2.0 * layer.in_channels * layer.out_channels * 3 * length
    assert mixed.forward_flops == pytest.approx(plain.forward_flops + searched * (14 / 3 - 1))


def test_the_language_model_costs_its_matrices_and_its_attention(tiny_lm: Path) -> None:
    n, width, inner, layers = 10, 16, 32, 2
    counted = count_language_model(read_shape(str(tiny_lm)), n)
    by_hand = layers * (2 * n * (4 * width * width + 2 * width * inner) + 4 * n * n * width)
    assert counted.forward_flops == by_hand
    assert by_hand * 2.9 < counted.train_flops < by_hand * 3.2
    half = count_language_model(read_shape(str(tiny_lm)), n, "top_half")
    assert half.trainable < counted.trainable
    assert half.train_flops < counted.train_flops


@pytest.mark.parametrize("masked", [False, True])
def test_weights_and_saved_tensors_are_those_of_the_real_model(tiny_lm: Path, masked: bool) -> None:
    transformer = AutoModel.from_pretrained(tiny_lm)
    model = LanguageModel(transformer).train()
    model.set_dropout(0.0)
    counted = count_language_model(read_shape(str(tiny_lm)), 12, masked=masked, on_gpu=False)
    assert counted.model_bytes == sum(p.numel() * p.element_size() for p in model.parameters())
    assert measure_shape(read_shape(str(tiny_lm))) == (model.width, model.max_tokens)

    data = toy_data()
    config = tiny_config(data, tiny_settings())
    net = build_net(config, data, tiny_reference(), 0).train()
    storages = [t.untyped_storage() for t in [*net.parameters(), *net.buffers()]]  # kept: addresses are used again
    own = {storage.data_ptr() for storage in storages}
    held: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage
        return tensor

    rows = 8
    mask = torch.ones(rows, 1, 60) if masked else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net.predict(net.embedder(torch.zeros(rows, 4, 60), mask))
    planned = count_net(shape_of(config), 60, masked=masked)
    assert planned.parameters == sum(p.numel() for p in net.parameters())
    kept = sum(s.nbytes() for s in held.values())
    # Masks and what belongs to single channels are left out.
    assert planned.saved_bytes * rows + planned.fixed_bytes == pytest.approx(kept, rel=0.02 if masked else 1e-9)


def test_peak_memory_is_weights_gradients_states_and_activations() -> None:
    counted = count_net(shape_of(tiny_config(toy_data(), tiny_settings())), 60)
    weights = 4 * counted.parameters
    for optimizer, momentum, states in (("adamw", 0.9, 2), ("sgd", 0.9, 1), ("sgd", 0.0, 0)):
        expected = weights * (2 + states) + int(16 * counted.saved_bytes + counted.fixed_bytes)
        assert counted.training_bytes(16, optimizer, momentum) == expected


def test_steps_are_those_that_the_stages_take(tiny_lm: Path) -> None:
    data = toy_data(rows=ROWS.train)
    settings = tiny_settings(tiny_lm, select__backbones=["resnet"], seeds=2)
    plan = plan_task(make_task(), settings, ROWS, read_shape(str(tiny_lm)))
    steps = {s.stage: s.most.steps for s in plan.stages}
    align, search = settings.align, settings.search
    a_step = count_steps(data, align.batch_size, group_size(align))
    per_epoch = batches_per_epoch(search, data.train.n_rows)
    assert "select" not in steps, "one candidate"
    both = plan_task(make_task(), tiny_settings(tiny_lm), ROWS, read_shape(str(tiny_lm)))
    each = count_steps(data, settings.select.batch_size) * settings.select.epochs
    assert stage(both, "select").most.steps == 2 * each
    sizes = plan_task(make_task(), tiny_settings(tiny_lm, select__kernel_sizes=[3, 5]), ROWS, read_shape(str(tiny_lm)))
    assert stage(sizes, "select").most.steps == 4 * each
    assert stage(sizes, "select").most.trials == 4
    assert steps["search"] == count_steps(data, search.batch_size, max_batches=per_epoch) * search.epochs
    assert steps["warmup"] == a_step * align.task_only_epochs
    # Two seeds of two folds: each trains on half of train and valid.
    fold = toy_data(rows=(ROWS.train + ROWS.valid) // 2)
    members = 2 * settings.folds
    first = len(align.alphas) * a_step * (align.epochs - align.task_only_epochs)
    again = count_steps(fold, align.batch_size, group_size(align)) * align.epochs
    assert steps["align"] == first + members * again
    assert steps["embedder_only"] == members * count_steps(fold, 16) * settings.embedder_only.count_epochs(
        fold.train.n_rows
    )
    cnn = choose_cnn_schedule(settings, by_position=False)
    assert steps["cnn"] == members * count_steps(fold, cnn.batch_size) * cnn.count_epochs(fold.train.n_rows)
    assert steps["trials"] == settings.finetune.trials * settings.finetune.epochs * count_steps(data, 16)
    assert steps["refit"] == members * settings.finetune.epochs * count_steps(fold, 16)
    assert {s.stage: s.most.trials for s in plan.stages} == {
        "reference": 1, "search": 1, "warmup": 1, "align": 2 + members, "embedder_only": members,
        "cnn": members, "trials": 2, "refit": members, "evaluate": 1,
    }  # fmt: skip


def test_one_split_trains_each_arm_once_a_seed(tiny_lm: Path) -> None:
    settings = tiny_settings(tiny_lm, select__backbones=["resnet"], folds=0, seeds=2)
    plan = plan_task(make_task(), settings, ROWS, read_shape(str(tiny_lm)))
    trials = {s.stage: s.most.trials for s in plan.stages}
    # The first seed's embedder is one of those of all alphas.
    assert [trials[name] for name in ("align", "embedder_only", "refit")] == [2 + 1, 2, 2]
    steps = {s.stage: s.most.steps for s in plan.stages}
    each = count_steps(toy_data(rows=ROWS.train), 16)
    assert steps["refit"] == 2 * settings.finetune.epochs * each


def test_arms_that_are_not_asked_for_are_not_planned(tiny_lm: Path) -> None:
    for arms, missing in ((["cnn", "embedder_only"], "align trials refit"), (["gapped_kmer"], "select embedder_only")):
        plan = plan_task(make_task(), tiny_settings(tiny_lm, arms=arms), ROWS, read_shape(str(tiny_lm)))
        assert not {s.stage for s in plan.stages} & set(missing.split())


def test_tokens_and_operations_of_the_trials(tiny_lm: Path) -> None:
    plan = plan_toy(tiny_lm, search__enabled=False, finetune__train_layers=["all"])
    most = stage(plan, "trials").most
    n_tokens = 8  # 60 bp, pooled twice to 15, of which two make a token
    assert most.tokens == most.epochs * (ROWS.train + ROWS.valid) * n_tokens
    assert "search" not in {s.stage for s in plan.stages}
    more = plan_toy(tiny_lm, search__enabled=False, finetune__train_layers=["all"], finetune__trials=4)
    assert stage(more, "trials").most.flops == 2 * most.flops
    assert stage(more, "refit").most == stage(plan, "refit").most


def test_expected_epochs_lie_between_the_rungs_and_the_bound() -> None:
    assert expected_epochs(6, 3, 3, 3, 1) == 18  # no rung: nobody stops
    assert expected_epochs(1, 9, 1, 3, 1) == 9  # nobody to lose against
    for trials, epochs, grace in ((24, 25, 3), (100, 81, 1)):
        expected = expected_epochs(trials, epochs, grace, 3, 4)
        assert trials * grace < expected < trials * epochs
    # With many trials a third of them passes each rung, beside the first ones, which meet no peers.
    rungs = [*rung_epochs(1, 81, 3), 81]
    ideal = 2000 * (rungs[0] + sum((b - a) / 3 ** (i + 1) for i, (a, b) in enumerate(itertools.pairwise(rungs))))
    assert expected_epochs(2000, 81, 1, 3, 1, repeats=2) == pytest.approx(ideal, rel=0.15)


def test_what_a_run_has_found_leaves_no_candidates(tiny_lm: Path) -> None:
    settings = tiny_settings(tiny_lm)
    found = Found("resnet", ((3, 1),) * 9)
    plan = plan_task(make_task(), settings, ROWS, read_shape(str(tiny_lm)), found=found)
    alone = stage(plan, "embedder_only")
    assert alone.expected == alone.most


def test_an_unknown_machine_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"machine 'a6000': .*did you mean 'RTX A6000'"):
        find_machine("a6000")
    assert find_machine("rtx a6000").name == "RTX A6000"
    machine = find_machine("L4")
    assert machine.hours(30.3e12 * 3600, "fp32", 0.5) == pytest.approx(2.0)
    assert all(machine.source for machine in read_known().machines.values())


def test_a_known_hub_model_needs_no_network() -> None:
    shape = read_shape("FacebookAI/roberta-base")
    assert measure_shape(shape) == (768, 512)
    assert count_language_model(shape, 4).parameters == 12 * (12 * 768 * 768 + 13 * 768)
    with pytest.raises(UserError, match="nobody/knows-this"):
        read_shape("nobody/knows-this")


def test_rows_of_own_files_are_counted(plan_json: Call, tiny_lm: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for seed, (split, rows) in enumerate((("train", 50), ("test", 20))):
        write_csv(plant(rows, 40, seed), tmp_path / "mine" / f"{split}.csv")
    told = plan_json("mine", "--language-model", tiny_lm, "--preset", "smoke", "--machine", "T4", "--price-per-hour", 2)
    (task,) = told["tasks"]
    assert [task["rows"][split] for split in ("train", "valid", "test")] == [45, 5, 20]
    assert (task["rows"]["min_bp"], task["rows"]["max_bp"]) == (40, 40)
    assert task["total"]["fits"] == "yes"
    assert told["total"]["expected"]["flops"] == task["total"]["expected"]["flops"] > 0
    expected, most = told["total"]["hours"]
    assert 0 < expected <= most
    again = plan_json("mine", "--language-model", tiny_lm, "--preset", "smoke", "--machine", "T4", "--utilisation", 0.5)
    start = told["total"]["expected"]["start_s"] / 3600
    assert again["total"]["hours"][0] - start == pytest.approx((expected - start) / 2)

    write_csv(plant(100, 40, 3), tmp_path / "all.csv")
    (task,) = plan_json("all.csv", "--language-model", tiny_lm, "--preset", "smoke")["tasks"]
    assert [task["rows"][split] for split in ("train", "valid", "test")] == [81, 9, 10]


def test_rows_that_are_not_here_are_said_to_be_unknown(plan_json: Call, tiny_lm: Path) -> None:
    told = plan_json("--bench", "nt", "--tasks", "enhancers", "--preset", "smoke", "--language-model", tiny_lm)
    (task,) = told["tasks"]
    assert not task["rows"]["known"]
    assert (task["rows"]["train"], task["rows"]["max_bp"]) == (1000, 200)
    assert "rows unknown: per 1,000 training rows" in told["notes"][0]
    assert told["total"]["hours"] == [0, 0]


def fake_run(folder: Path, tiny_lm: Path, spent: list[dict[str, Any]] | None) -> Path:
    task, settings = make_task(), tiny_settings(tiny_lm, select__backbones=["resnet"])
    task_folder = folder / task.name
    task_folder.mkdir(parents=True)
    raw = settings.model_dump(mode="json") | {"of_another_version": 1}
    raw["data"].pop("bucket_batches")
    (folder / "suite.json").write_text(json.dumps({"schema": 1, "settings": {task.name: raw, "unfinished": raw}}))
    lengths = {"min": 60, "median": 60.0, "max": 60}
    splits = {name: {"rows": n, "length_bp": lengths} for name, n in (("train", 160), ("valid", 40), ("test", 40))}
    (task_folder / "task.json").write_text(json.dumps({"task": task.model_dump(mode="json"), "splits": splits}))
    row = {"wall_s": 3.0, "cpu_s": 2.0}
    stages: dict[str, Any] = {
        "backbone": "resnet",
        "architecture": [{"kernel_size": 3, "dilation": 1}] * 9,
        "histories": {"warmup/aa": [row], "align/bb": [row, row], "finetune/00": [row, row]},
    }
    (task_folder / "stages.json").write_text(json.dumps(stages | ({"spent": spent} if spent is not None else {})))
    return folder


def test_a_finished_run_tells_what_it_took(plan_json: Call, tiny_lm: Path, tmp_path: Path) -> None:
    base = {"stage": "refit", "key": "k1", "trials": 1, "epochs": 2, "wall_s": 3600.0, "cpu_s": 1800.0, "gpu_s": 900.0}
    spent = [base, base | {"key": "k2"}, base | {"stage": "evaluate", "key": "k3", "epochs": 0}]
    told = plan_json(fake_run(tmp_path / "new", tiny_lm, spent), "--machine", "L4", "--price-per-hour", 4)
    refit = told["tasks"]["planted"]["stages"]["refit"]
    assert (refit["spent"]["trials"], refit["spent"]["epochs"], refit["spent"]["gpu_s"]) == (2, 4, 1800.0)
    assert refit["planned"]["epochs"] == 2 * 2, "two epochs of each of two folds"
    assert told["total"] == {"wall_s": 10800.0, "cpu_s": 5400.0, "gpu_s": 2700.0, "price": 3.0}


def test_a_run_of_an_earlier_version_is_told_from_its_histories(plan_json: Call, tiny_lm: Path, tmp_path: Path) -> None:
    told = plan_json(fake_run(tmp_path / "old", tiny_lm, None))
    stages = told["tasks"]["planted"]["stages"]
    assert stages["align"]["spent"]["epochs"] == 1  # the first epoch is the warm-up's
    assert stages["trials"]["spent"] | {"key": ""} == {
        "stage": "trials", "key": "", "trials": 1, "epochs": 2, "wall_s": 6.0, "cpu_s": 4.0, "gpu_s": None,
    }  # fmt: skip
    assert stages["evaluate"]["spent"]["cpu_s"] is None
    assert told["device"] == "cpu"
    assert told["total"]["cpu_s"] == 8.0


def test_results_are_summed_by_stage_and_an_unfinished_run_is_refused(tmp_path: Path, tiny_lm: Path) -> None:
    from l2g_ray.plan.finished import list_spent, read_run

    values = {"history": [{}, {}], "epochs": 1, "wall_s": 2.0, "cpu_s": 1.0, "gpu_s": 1.0}
    searched = {"trials": [{"key": "t", "history": [{"wall_s": 5.0}], "epochs": 1, "cpu_s": 4.0}], "history": []}
    results = [
        StageResult("align", "a", tmp_path, values),
        StageResult("align", "b", tmp_path, values),
        StageResult("finetune", "c", tmp_path, searched),
    ]
    sums = sum_stages(list_spent(results))
    assert (sums["align"].trials, sums["align"].epochs, sums["align"].gpu_s) == (2, 2, 2.0)
    assert (sums["trials"].wall_s, sums["trials"].cpu_s, sums["trials"].gpu_s) == (5.0, 4.0, None)
    run_folder = fake_run(tmp_path / "run", tiny_lm, [])
    assert read_spent(run_folder / "planted") == []
    (run_folder / "planted" / "stages.json").unlink()
    with pytest.raises(UserError, match="no task of this suite is finished"):
        read_run(run_folder)


def test_planning_loads_nothing_heavy(tiny_lm: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for seed, (split, rows) in enumerate((("train", 50), ("test", 20))):
        write_csv(plant(rows, 40, seed), mine / f"{split}.csv")
    finished = fake_run(tmp_path / "run", tiny_lm, [])
    for arguments in (
        [str(mine), "--language-model", str(tiny_lm), "--preset", "smoke"],
        ["--bench", "nt", "--preset", "paper"],
        [str(finished)],
    ):
        done = subprocess.run(
            [sys.executable, "-c", LOADED, "plan", *arguments], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        told, _, loaded = done.stdout.partition("MODULES ")
        assert "reaches 25% of its peak" in " ".join(told.split())
        heavy = {"torch", "ray", "transformers", "mlflow", "sklearn", "scipy"}
        # pyarrow imports pandas as soon as it reads rows.
        assert not set(loaded.split()) & (heavy if arguments[0] == str(mine) else heavy | {"pandas"})


def test_what_trials_take_to_start_is_planned(plan_json: Call, tiny_lm: Path, tmp_path: Path) -> None:
    starts = read_known().start_up
    plan = plan_toy(tiny_lm)
    assert stage(plan, "align").expected.start_s == 2 * starts["new_tune"] + 2 * starts["new_task"], (
        "two alphas, two folds"
    )
    assert stage(plan, "refit").expected.start_s == 2 * starts["new_task"], "a GPU's trial has a process to itself"
    (tmp_path / "mine").mkdir()
    for seed, (split, rows) in enumerate((("train", 50), ("test", 20))):
        write_csv(plant(rows, 40, seed), tmp_path / "mine" / f"{split}.csv")
    told = plan_json("mine", "--language-model", tiny_lm, "--preset", "smoke", "--machine", "RTX A6000")["total"]
    # Arithmetic of so small a task is nothing beside it.
    assert told["hours"][0] * 3600 == pytest.approx(told["expected"]["start_s"], rel=0.01)
    assert told["expected"]["start_s"] > 30


@pytest.mark.parametrize(
    ("hours", "shown"),
    [(0.4 / 3600, "0.4 s"), (90 / 3600, "1.5 min"), (47.9, "47.9 h"), (72.0, "3.0 d"), (24_000.0, "1,000.0 d")],
)
def test_times_are_in_units_that_fit(hours: float, shown: str) -> None:
    assert show_hours(hours) == shown
