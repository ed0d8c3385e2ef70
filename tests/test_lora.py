"""LoRA: what trains, that merging keeps outputs, storing, resuming, several workers' parts, keys and the plan."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny_language_model
from toys import make_pipeline, make_task, tiny_config, tiny_reference, tiny_settings, toy_data

from l2g_ray.data.batches import iter_batches
from l2g_ray.models import embedder
from l2g_ray.models.l2g import L2GModel, load_model, save_model
from l2g_ray.models.language_model import LanguageModel, load_transformer
from l2g_ray.plan.encoder import count_language_model, read_shape
from l2g_ray.stages.context import build_net, make_losses
from l2g_ray.stages.finetune import FinetuneTrial, build_model, finetune
from l2g_ray.stages.loop import Runtime, TrainResult
from l2g_ray.store.results import make_key

pytestmark = pytest.mark.usefixtures("single_thread")

TRIAL = FinetuneTrial(1e-3, 1e-2, 1e-4, 0.1, 16, "lora", 0.0)


def make_model(language_model: Path, **changes: Any) -> L2GModel:
    data, settings = toy_data(), tiny_settings(language_model, model__combine="lm_only", **changes)
    config = tiny_config(data, settings)
    state = build_net(config, data, tiny_reference(), 5).state_dict()
    model = build_model(data, settings, tiny_reference(), config=config, embedder_state=state, seed=0)
    assert isinstance(model, L2GModel)
    return model


def first_batch() -> Any:
    return next(iter(iter_batches(toy_data().train.tables(), kind="binary", batch_size=16, seed=0, epoch=0)))


def train(language_model: Path, seed: int = 0, runtime: Runtime | None = None, **changes: Any) -> TrainResult:
    data, settings = toy_data(), tiny_settings(language_model, model__combine="lm_only", finetune__epochs=2, **changes)
    config = tiny_config(data, settings)
    state = build_net(config, data, tiny_reference(), 5).state_dict()
    return finetune(
        data,
        settings,
        tiny_reference(),
        runtime or Runtime(),
        config=config,
        embedder_state=state,
        trial=TRIAL,
        seed=seed,
    )


def disturb(model: L2GModel) -> None:
    """Give B values, so that LoRA adds something."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


def test_only_the_additions_embedder_and_head_have_gradients(tiny_lm: Path) -> None:
    model = make_model(tiny_lm)
    frozen = {name: p.clone() for name, p in model.language_model.named_parameters()}
    model.language_model.add_lora(4, 8.0, 0)
    disturb(model)
    batch = first_batch()
    for compute in make_losses(make_task(), torch.ones(2))(model, [batch], 0):
        compute().backward()
    inside = {n for n, p in model.language_model.named_parameters() if p.grad is not None}
    # Two layers of six linear maps, A and B of each.
    assert len(inside) == 2 * 6 * 2
    assert all(".lora_A." in name or ".lora_B." in name for name in inside)
    outside = {n for n, p in model.named_parameters() if p.grad is not None and not n.startswith("language_model.")}
    assert "head.linear.weight" in outside
    assert any(name.startswith("net.embedder.backbone") for name in outside)
    for name, parameter in model.language_model.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(parameter, frozen[name.replace(".base_layer", "")])
            assert not parameter.requires_grad


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
@pytest.mark.parametrize("positions", ["none", "lm"])
def test_added_and_merged_it_gives_the_outputs_of_before(tmp_path: Path, family: str, positions: str) -> None:
    """As added, those of the plain model; merged, those that the additions had given. W + (alpha / rank) B A is computed here."""
    folder = make_tiny_language_model(tmp_path / family, family)
    model = LanguageModel(load_transformer(str(folder)), positions).eval()
    tokens = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 7])
    names = list(model.state_dict())
    plain = model(tokens, mask)
    random = torch.random.get_rng_state()
    model.add_lora(4, 8.0, 0)
    assert torch.equal(torch.random.get_rng_state(), random), "whoever draws next draws what it would have"
    torch.testing.assert_close(model(tokens, mask), plain)

    disturb(model)  # type: ignore[arg-type]
    changed = model(tokens, mask)
    assert float((changed - plain).abs().max().detach()) > 1e-2
    state = model.state_dict()
    base = next(name for name in state if name.endswith("base_layer.weight"))
    stem = base.removesuffix("base_layer.weight")
    by_hand = state[base] + 8.0 / 4 * state[f"{stem}lora_B.default.weight"] @ state[f"{stem}lora_A.default.weight"]
    twin = copy.deepcopy(model)
    model.merge_lora()
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model.state_dict()[f"{stem.rstrip('.')}.weight"], by_hand)
    torch.testing.assert_close(model(tokens, mask), changed, atol=1e-5, rtol=0)
    torch.testing.assert_close(twin(tokens, mask), changed)


def test_a_trained_model_is_stored_as_any_other(tiny_lm: Path, tmp_path: Path) -> None:
    """What fine-tuning returns fits a model without LoRA, which was changed by no more than the rank."""
    result = train(tiny_lm, finetune__lora_rank=2)
    model = make_model(tiny_lm)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    model.load_state_dict(result.best_state)
    save_model(model.eval(), tmp_path)
    assert "lora" not in (tmp_path / "config.json").read_text()
    batch = first_batch()
    loaded = load_model(tmp_path)
    assert torch.equal(loaded(batch.codes, batch.lengths_bp), model(batch.codes, batch.lengths_bp))

    query = "language_model.transformer.encoder.layer.1.attention.self.query"
    assert (
        int(torch.linalg.matrix_rank(result.best_state[f"{query}.weight"] - before[f"{query}.weight"], atol=1e-6)) == 2
    )
    kept = [n for n in before if "LayerNorm" in n or n == f"{query}.bias"]
    assert all(torch.equal(before[n], result.best_state[n]) for n in kept if n.startswith("language_model"))


def test_scores_are_those_of_the_merged_model(tiny_lm: Path) -> None:
    from l2g_ray.stages.context import make_validate

    data, result = toy_data(), train(tiny_lm)
    model = make_model(tiny_lm)
    model.load_state_dict(result.best_state)
    assert make_validate(model.eval(), data, Runtime())()["score"] == pytest.approx(result.best_score, abs=1e-5)


def test_the_seed_and_the_rank_decide(tiny_lm: Path) -> None:
    first, second, other = (train(tiny_lm, seed) for seed in (3, 3, 4))
    assert [r["train_loss"] for r in first.history] == [r["train_loss"] for r in second.history]
    assert all(torch.equal(first.best_state[k], second.best_state[k]) for k in first.best_state)
    assert [r["train_loss"] for r in first.history] != [r["train_loss"] for r in other.history]
    wider = train(tiny_lm, 3, finetune__lora_rank=2)
    stronger = train(tiny_lm, 3, finetune__lora_alpha=64.0)
    losses = {tuple(r["train_loss"] for r in result.history) for result in (first, wider, stronger)}
    assert len(losses) == 3


class Stopped(Exception):
    pass


def test_stop_and_resume_equals_no_stop(tiny_lm: Path, tmp_path: Path) -> None:
    through = train(tiny_lm)

    def stop(row: dict[str, Any]) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        train(tiny_lm, runtime=Runtime(report=stop, state_path=tmp_path / "state.pt"))
    resumed = train(tiny_lm, runtime=Runtime(state_path=tmp_path / "state.pt"))
    again = train(tiny_lm, runtime=Runtime(state_path=tmp_path / "state.pt"))  # finished, but not yet stored
    for result in (resumed, again):
        assert all(torch.equal(through.best_state[k], result.best_state[k]) for k in through.best_state)


def test_its_settings_are_in_the_keys_of_what_uses_it_alone() -> None:
    def key(**changes: Any) -> str:
        return make_key("trial", make_pipeline(tiny_settings(**changes))._finetune_parts({}))

    without = [key(), key(finetune__lora_rank=2), key(finetune__lora_alpha=1.0)]
    assert len(set(without)) == 1
    some = {"finetune__train_layers": ["all", "lora"]}
    assert len({key(**some), key(**some, finetune__lora_rank=2), key(**some, finetune__lora_alpha=1.0), *without}) == 4
    assert "lora_rank" not in make_pipeline(tiny_settings())._finetune_parts({})["finetune"]


def test_the_plan_counts_what_trains(tiny_lm: Path) -> None:
    shape = read_shape(str(tiny_lm))
    every, low = count_language_model(shape, 10), count_language_model(shape, 10, "lora", lora_rank=4)
    by_hand = 2 * 4 * (4 * (16 + 16) + (16 + 32) + (32 + 16))
    assert low.trainable == by_hand
    assert low.parameters == every.parameters + by_hand
    # No gradients of the weights themselves, a little more on the way.
    assert every.forward_flops < low.forward_flops
    frozen = count_language_model(shape, 10, "none")
    assert frozen.train_flops < low.train_flops


def test_gradients_of_micro_batches_add_up(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "_MEAN_MAX_DROPOUT", 0.0)
    batch = first_batch()
    found = []
    for pieces in ([batch], batch.split(3)):
        model = make_model(tiny_lm).train()
        model.language_model.set_dropout(0.0)
        model.language_model.add_lora(4, 8.0, 0)
        disturb(model)
        for module in model.net.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.eval()
        torch.manual_seed(2)
        for compute in make_losses(make_task(), torch.ones(2))(model, pieces, 0):
            compute().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if ".lora_" in n})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_other_choices_are_left_as_they_were(tiny_lm: Path) -> None:
    """`replace` of the trial: with 'none' the language model's weights are those of before, with LoRA they are not."""
    data, settings = toy_data(), tiny_settings(tiny_lm, model__combine="lm_only", finetune__epochs=1)
    config = tiny_config(data, settings)
    state = build_net(config, data, tiny_reference(), 5).state_dict()
    before = make_model(tiny_lm).language_model.state_dict()
    for which, same in (("none", True), ("lora", False)):
        result = finetune(
            data,
            settings,
            tiny_reference(),
            Runtime(),
            config=config,
            embedder_state=state,
            trial=replace(TRIAL, train_layers=which),
            seed=0,
        )
        assert all(torch.equal(result.best_state[f"language_model.{k}"], v) for k, v in before.items()) == same
