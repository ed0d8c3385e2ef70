"""Continued pre-training: DNA as text, masked loss against a manual one, what is read, what is stored and who uses it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import make_tiny_language_model
from every_stage import make_rows
from host_syncs import no_host_syncs
from pyarrow.csv import write_csv
from toys import (
    make_data,
    make_pipeline,
    make_site,
    make_task,
    plant,
    tiny_config,
    tiny_reference,
    tiny_settings,
    toy_data,
)
from transformers import AutoModelForMaskedLM, BertTokenizerFast

from l2g_ray.config import DataSettings
from l2g_ray.data.batches import make_batch
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import open_source
from l2g_ray.errors import UserError
from l2g_ray.models.l2g import L2GModel, load_model, save_model
from l2g_ray.models.language_model import LanguageModel, load_transformer
from l2g_ray.orchestrate.jobs import run_job
from l2g_ray.orchestrate.keys import make_pretrain_job
from l2g_ray.orchestrate.spec import JobSpec
from l2g_ray.plan.encoder import count_vocabulary, read_shape
from l2g_ray.plan.plan import plan_task
from l2g_ray.plan.rows import Rows
from l2g_ray.stages.context import TaskData, build_net
from l2g_ray.stages.finetune import build_model
from l2g_ray.stages.loop import Runtime, TrainResult
from l2g_ray.stages.pretrain import MaskedLM, load_masked_lm, masked_losses, pretrain, split_words
from l2g_ray.store.results import Job, StageResult, make_key

pytestmark = pytest.mark.usefixtures("single_thread")

LETTERS = [f"{mark}{letter}" for mark in ("", "##") for letter in "ACGTN"]


def add_tokenizer(folder: Path, words: list[str] = LETTERS) -> Path:
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizerFast(str(vocabulary), do_lower_case=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of two layers whose vocabulary is the five letters, at the beginning of a word and inside of one."""
    return add_tokenizer(make_tiny_language_model(tmp_path_factory.mktemp("reader")))


def load(folder: Path, **changes: Any) -> MaskedLM:
    options = {"layers": None, "word_bp": 3, "window_bp": 600, "mask_fraction": 0.15} | changes
    return load_masked_lm(str(folder), "pretrained", 0, **options)


def make_codes(*sequences: str) -> tuple[torch.Tensor, torch.Tensor]:
    batch = make_batch(pa.table({"sequence": list(sequences)}), "binary")
    return batch.codes, batch.lengths_bp


def run(folder: Path, data: TaskData, seed: int = 0, runtime: Runtime | None = None, **changes: Any) -> TrainResult:
    settings = tiny_settings(folder, **{"pretrain__batch_size": 16, "pretrain__epochs": 2, **changes})
    return pretrain(data, settings, runtime or Runtime(), seed)[1]


# ---- DNA as text -----------------------------------------------------------------------------------------------------


def test_words_lie_side_by_side() -> None:
    assert split_words("ACGTACGTA", 4, 0) == ["ACGT", "ACGT", "A"]
    assert split_words("ACGTACGTA", 4, 3) == ["ACG", "TACG", "TA"]
    assert split_words("AC", 4, 3) == ["AC"]
    assert split_words("", 4, 1) == []


def test_tokens_are_the_words_letters_without_padding(reader: Path) -> None:
    model = load(reader)
    coded = model.read(*make_codes("ACGTAN", "TTT"))
    tokens = [model.tokenizer.convert_ids_to_tokens(row) for row in coded["input_ids"].tolist()]
    assert "".join(tokens[0]).replace("##", "") == "[CLS]ACGTAN[SEP]"
    assert "".join(tokens[1]).replace("##", "") == "[CLS]TTT[SEP][PAD][PAD][PAD]"
    assert coded["special_tokens_mask"].sum(1).tolist() == [2, 5]
    starts = set()
    for _ in range(30):
        tokens = model.tokenizer.convert_ids_to_tokens(model.read(*make_codes("ACGTAN"))["input_ids"][0].tolist())
        starts.add(tuple(i for i, token in enumerate(tokens[1:-1]) if not token.startswith("##")))
    assert starts == {(0, 3), (0, 1, 4), (0, 2, 5)}, "words of three, begun at any of three places"


def test_of_long_sequences_a_window_is_read_from_anywhere(reader: Path) -> None:
    rng = np.random.default_rng(0)
    long = "".join(rng.choice(list("ACGT"), 100))
    model = load(reader, window_bp=20)
    found = set()
    for _ in range(200):
        ids = model.read(*make_codes(long))["input_ids"][0].tolist()
        text = "".join(model.tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True)).replace("##", "")
        assert len(text) == 20
        found.add(long.index(text))
    assert min(found) == 0
    assert max(found) == 80
    assert load(reader).read(*make_codes(long))["input_ids"].shape[1] == 66, "no more tokens than there are positions"


def test_the_loss_is_that_of_the_masked_tokens(reader: Path) -> None:
    model = load(reader, mask_fraction=0.5).eval()
    codes, lengths = make_codes("ACGTANNTGC", "TTTACG")
    torch.manual_seed(5)
    loss = float(model(codes, lengths).detach())
    torch.manual_seed(5)
    coded = model.read(codes, lengths)
    ids, labels = model.masking.torch_mask_tokens(coded["input_ids"].clone(), coded["special_tokens_mask"])
    logits = model.model(input_ids=ids, attention_mask=coded["attention_mask"]).logits.log_softmax(-1)
    by_hand = [
        -float(logits[i, j, labels[i, j]].detach())
        for i in range(2)
        for j in range(labels.shape[1])
        if labels[i, j] != -100
    ]
    assert 2 < len(by_hand) < 16
    assert loss == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert float(model(*make_codes("A")).detach()) >= 0  # perhaps nothing is masked


# ---- training --------------------------------------------------------------------------------------------------------


def runs(rows: int, seed: int = 0) -> pa.Table:
    """Sequences of one letter each, so that a masked letter is known from any other."""
    letters = np.random.default_rng(seed).choice(list("ACGT"), rows)
    return pa.table({"sequence": [letter * 24 for letter in letters], "label": np.arange(rows) % 2})


def test_it_learns_what_can_be_known_of_masked_letters(reader: Path) -> None:
    data = make_data(make_task(), runs(160), runs(40, 1))
    result = run(reader, data, pretrain__epochs=12, pretrain__optim__lr=1e-2, pretrain__word_bp=1)
    losses = [-row["score"] for row in result.history]
    # Who knows no more than how frequent the four letters are is at log 4.
    assert losses[0] > math.log(4)
    assert losses[-1] < 0.7 * math.log(4)
    assert result.best_epoch == 11


def test_the_seed_decides(reader: Path) -> None:
    first, second, other = (run(reader, toy_data(), seed) for seed in (3, 3, 4))
    assert [r["train_loss"] for r in first.history] == [r["train_loss"] for r in second.history]
    assert all(torch.equal(first.best_state[k], second.best_state[k]) for k in first.best_state)
    assert [r["train_loss"] for r in first.history] != [r["train_loss"] for r in other.history]


class Stopped(Exception):
    pass


def test_stop_and_resume_equals_no_stop(reader: Path, tmp_path: Path) -> None:
    through = run(reader, toy_data())

    def stop(row: dict[str, Any]) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        run(reader, toy_data(), runtime=Runtime(report=stop, state_path=tmp_path / "state.pt"))
    torch.rand(3)
    resumed = run(reader, toy_data(), runtime=Runtime(state_path=tmp_path / "state.pt"))
    assert all(torch.equal(through.best_state[k], resumed.best_state[k]) for k in through.best_state)


class Closed:
    """Rows that nobody may read."""

    n_rows = 40

    def tables(self) -> Iterator[pa.Table]:
        raise AssertionError("validation rows were read")


@pytest.mark.parametrize("lengths", ["one", "many"])
def test_a_step_reads_nothing_from_the_device(lengths: str, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_rows("binary" if lengths == "one" else "regression")
    with no_host_syncs(monkeypatch) as rows:
        run(reader, data)
    assert rows


def test_neither_labels_nor_validation_rows_are_read(reader: Path) -> None:
    table = plant(80)
    plain = run(reader, make_data(make_task(), table, plant(40, seed=1)))
    other = table.set_column(1, "label", pa.array(np.arange(80) // 40, pa.int64()))
    data = replace(make_data(make_task(), other, plant(40, seed=1)), valid=Closed())
    found = run(reader, data)
    assert all(torch.equal(plain.best_state[k], found.best_state[k]) for k in plain.best_state)


def test_micro_batches_weigh_by_their_rows(reader: Path) -> None:
    """With every letter masked in the same way: the parts' losses add up to the whole's."""
    model = load(reader, word_bp=1).eval()
    batch = make_batch(plant(12, 20), "binary")

    def mask_all(ids: torch.Tensor, special: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.where(special.bool(), ids, 4), torch.where(special.bool(), -100, ids)

    model.masking.torch_mask_tokens = mask_all
    whole = sum(float(compute().detach()) for compute in masked_losses(model, [batch], 0))
    parts = [float(compute().detach()) for compute in masked_losses(model, batch.split(5), 0)]
    assert len(parts) == 5
    assert sum(parts) == pytest.approx(whole, rel=1e-5)


def test_a_rate_that_is_too_high_is_the_users_matter(reader: Path) -> None:
    with pytest.raises(UserError, match=r"pretrain\.optim\.lr"):
        run(
            reader,
            toy_data(),
            pretrain__optim__lr=1e30,
            pretrain__optim__optimizer="sgd",
            pretrain__optim__clip_norm=None,
        )


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_what_is_stored_is_a_language_model_like_any_other(tmp_path: Path, family: str) -> None:
    folder = add_tokenizer(make_tiny_language_model(tmp_path / family, family))
    model = load(folder, layers=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save(tmp_path)
    assert "l2g" not in (tmp_path / "config.json").read_text()
    again = load_transformer(str(tmp_path))
    assert len(again.encoder.layer) == 1
    state, own = again.state_dict(), model.model.base_model.state_dict()
    assert set(own) <= set(state)
    assert all(torch.equal(state[name], value) for name, value in own.items())
    tokens = torch.randn(2, 5, 16)
    assert LanguageModel(again, "lm", 1)(tokens).shape == (2, 5, 16)


def test_mistakes_are_one_sentence(tiny_lm: Path, reader: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not know the letters A, C, G and T, or there is none"):
        load(tiny_lm)
    with pytest.raises(UserError, match="has 2 layers; lower it"):
        load(reader, layers=3)
    maskless = add_tokenizer(make_tiny_language_model(tmp_path))
    told = json.loads((maskless / "tokenizer_config.json").read_text()) | {"mask_token": None}
    (maskless / "tokenizer_config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="no mask token"):
        load(maskless)


# ---- who uses it -----------------------------------------------------------------------------------------------------


def test_fine_tuning_begins_with_it(reader: Path, tmp_path: Path) -> None:
    model = load(reader, layers=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save(tmp_path)
    data, settings = toy_data(), tiny_settings(reader, model__language_model_init="random")
    config = tiny_config(data, settings)
    state = build_net(config, data, tiny_reference(), 5).state_dict()

    def first_weight(**pretrained: Any) -> torch.Tensor:
        built = build_model(data, settings, tiny_reference(), config=config, embedder_state=state, seed=0, **pretrained)
        assert isinstance(built, L2GModel)
        assert built.config.language_model == str(reader)
        return built.language_model.transformer.encoder.layer[0].output.dense.weight

    stored = model.model.base_model.encoder.layer[0].output.dense.weight
    assert torch.equal(first_weight(pretrained=tmp_path), stored)
    assert not torch.equal(first_weight(), stored)


def test_jobs_hand_it_on(reader: Path, tmp_path: Path) -> None:
    """As a pipeline runs them, without Ray: pretrain, reference, refit. The text goes through the new embedding layer."""
    source = tmp_path / "source"
    source.mkdir()
    for seed, (split, rows) in enumerate((("train", 60), ("valid", 21), ("test", 8))):
        write_csv(plant(rows, 60, seed), source / f"{split}.csv")
    prepared = prepare(open_source([source], SourceOptions()), tmp_path / "prepared", DataSettings())
    settings = tiny_settings(
        reader, pretrain__enabled=True, pretrain__epochs=1, align__source="vocabulary", finetune__epochs=1
    )
    site = make_site(tmp_path, settings)
    store, told = site.open_store(), list[dict[str, float]]()
    first = make_pretrain_job(prepared, settings, "fp32", 1)
    values = run_job(JobSpec(site, first), told.append)
    assert [row["epoch"] for row in told] == [0]
    assert values["history"][0]["score"] < 0
    folder = store.folder("pretrain", first.key)
    assert not (folder / "state.pt").exists()

    norms = {}
    for name, pretrained in (("before", None), ("after", folder)):
        job = Job("reference", name, {}, {}, {"which": name})
        facts = run_job(JobSpec(replace(site, pretrained=pretrained), job), told.append)
        norms[name] = StageResult("reference", job.key, store.folder("reference", job.key), facts)
    weight = load_transformer(str(folder)).embeddings.LayerNorm.weight
    site = replace(site, pretrained=folder, reference=norms["after"])
    from l2g_ray.stages.context import read_reference

    read = {name: read_reference(one.folder, one.values) for name, one in norms.items()}
    assert torch.equal(read["after"].norm_weight, weight)
    assert not torch.equal(read["before"].norm_weight, weight)

    data = make_data(make_task(), plant(60), plant(21, seed=1))
    net = build_net(tiny_config(data, settings), data, read["after"], 0)
    (tmp_path / "net").mkdir()
    save_model(net, tmp_path / "net")
    trial = {
        "lr_embedder": 1e-9, "lr_language_model": 1e-9, "weight_decay": 0.0, "dropout": 0.0, "batch_size": 16,
        "train_layers": "none", "alpha": 0.0,
    }  # fmt: skip
    refit = Job("refit", "r", {"trial": trial, "seed": 0}, {"align:0.0": str(tmp_path / "net")}, {})
    run_job(JobSpec(site, refit), told.append)
    stored = load_model(store.folder("refit", refit.key))
    assert isinstance(stored, L2GModel)
    expected = load_transformer(str(folder)).encoder.layer[1].output.dense.weight
    assert torch.equal(stored.language_model.transformer.encoder.layer[1].output.dense.weight, expected)


def test_keys_depend_on_what_is_read_and_on_nothing_else(reader: Path) -> None:
    def key(valid: str = "v", train: str = "t", seed: int = 0, **changes: Any) -> str:
        fingerprints = {"train": train, "valid": valid}
        prepared = SimpleNamespace(task=make_task(), fingerprint=fingerprints.get, length_range=lambda: (60, 60))
        settings = tiny_settings(reader, pretrain__enabled=True, **changes).model_copy(update={"seed": seed})
        return make_pretrain_job(prepared, settings, "fp32", 1).key  # type: ignore[arg-type]

    same = {key(), key(valid="other"), key(align__epochs=9), key(finetune__trials=5), key(model__target_tokens=4)}
    assert len(same) == 1
    others = [key(train="other"), key(seed=1), key(pretrain__word_bp=4), key(model__language_model_layers=1)]
    others += [key(model__language_model_init="random"), key(pretrain__optim__lr=1e-3)]
    assert len({*others, *same}) == 7

    trials = [make_key("trial", make_pipeline(tiny_settings(), one)._finetune_parts({})) for one in (None, None)]
    results = [StageResult("pretrain", name, Path(), {}) for name in ("a", "b")]
    trials += [make_key("trial", make_pipeline(tiny_settings(), one)._finetune_parts({})) for one in results]
    assert len(set(trials)) == 3
    assert make_pipeline(tiny_settings(), results[0]).results == [results[0]], "its history and cost count"


def test_the_text_goes_through_it_unless_told_otherwise(reader: Path) -> None:
    """The reference's key, by a store in which all is found."""
    from l2g_ray.orchestrate import remote

    def key(pretrained: StageResult | None, **changes: Any) -> str:
        store = SimpleNamespace(find=lambda stage, key: StageResult(stage, key, Path(), {}))
        place: Any = SimpleNamespace(store=store)
        return remote._reference(place, tiny_settings(reader, **changes), None, pretrained).key

    plain, trained = key(None), key(StageResult("pretrain", "a", Path(), {}))
    assert plain != trained
    published = {"align__reference_weights": "pretrained"}
    assert key(StageResult("pretrain", "a", Path(), {}), **published) == key(None, **published) == plain
    place: Any = SimpleNamespace(site=SimpleNamespace(precision="fp32"))
    assert remote._pretrain(place, place, tiny_settings(reader)) is None


def test_embed_looks_at_it_as_the_model_before_finetune(reader: Path, tmp_path: Path) -> None:
    from l2g_ray.explain.embeddings import _load_language_model

    model = load(reader, layers=2)
    with torch.no_grad():
        model.model.base_model.embeddings.LayerNorm.bias.add_(0.5)
    model.save(tmp_path)
    config: Any = SimpleNamespace(language_model=str(reader), positions="none", language_model_layers=2)
    for folder, bias in ((str(tmp_path), 0.5), (None, 0.0)):
        found = _load_language_model(config, {"model": {"language_model_init": "pretrained"}}, 0, folder, print)
        assert found is not None
        assert torch.equal(found[2], torch.full((16,), bias))


def test_the_plan_has_it_where_it_is_asked_for(reader: Path) -> None:
    shape, rows = read_shape(str(reader)), Rows(160, 40, 40, 60, 60.0, 60, True, "given")
    found = {}
    for enabled in (False, True):
        settings = tiny_settings(reader, pretrain__enabled=enabled, pretrain__epochs=3, pretrain__batch_size=16)
        found[enabled] = {s.stage: s.most for s in plan_task(make_task(), settings, rows, shape).stages}
    assert "pretrain" not in found[False]
    assert found[True]["pretrain"].steps == 3 * 10
    assert {k: v for k, v in found[True].items() if k != "pretrain"} == found[False]
    # All weights but positions, types, biases and norms outside of the layers.
    real = AutoModelForMaskedLM.from_pretrained(reader)
    outside = {n: p.numel() for n, p in real.named_parameters() if "encoder.layer" not in n}
    counted = count_vocabulary(shape, 10).parameters
    left_out = ("position", "token_type", "LayerNorm", "bias")
    assert counted == sum(n for name, n in outside.items() if not any(part in name for part in left_out))
