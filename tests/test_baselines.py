"""Baselines: features against scikit-learn, fits against known answers, storage without pickles."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from host_syncs import no_host_syncs
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import Ridge
from toys import make_data, make_task, plant, regression_table, tiny_settings
from transformers import EsmConfig, EsmModel, EsmTokenizer

from l2g_ray.arms import BASELINES
from l2g_ray.errors import UserError
from l2g_ray.models.baselines import Baseline, BaselineConfig, DeepSTARR, DeepSTARRConfig, Features
from l2g_ray.models.ensemble import AverageModel, to_predictions
from l2g_ray.models.l2g import load_model, save_model
from l2g_ray.models.language_model import load_genomic_lm
from l2g_ray.sequence import encode, reverse_complement
from l2g_ray.stages import baseline
from l2g_ray.stages.baseline import NotApplicable, fit_baseline, refuse_unfit
from l2g_ray.stages.context import predict_source
from l2g_ray.stages.deepstarr import build_deepstarr, train_deepstarr
from l2g_ray.stages.genomic_lm import LEARNING_RATES, tune_genomic_lm
from l2g_ray.stages.loop import Runtime

FORMS = [name for name, kind in BASELINES.items() if "form" in kind.options]
RUNTIME = Runtime("cpu", "fp32", lambda row: None, None)


def codes_of(sequences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    codes, lengths = encode(pa.array(sequences))
    return torch.from_numpy(codes), torch.from_numpy(np.ascontiguousarray(lengths))


@settings(deadline=None)
@given(st.lists(st.text("ACGTN", min_size=1, max_size=40), min_size=1, max_size=5), st.integers(1, 4))
def test_counts_are_those_of_scikit_learn(sequences: list[str], k: int) -> None:
    features = Features(BaselineConfig("linear", "kmer", 2, 40, k))
    counted = features(codes_of(sequences)[0]).toarray()
    vocabulary = ["".join(word) for word in itertools.product("ACGT", repeat=k)]
    vectorizer = CountVectorizer(analyzer="char", ngram_range=(k, k), lowercase=False, vocabulary=vocabulary)
    np.testing.assert_array_equal(counted, vectorizer.transform(sequences).toarray())


@settings(deadline=None)
@given(st.lists(st.text("ACGTN", min_size=1, max_size=40), min_size=1, max_size=5))
def test_canonical_counts_do_not_know_the_strand(sequences: list[str]) -> None:
    features = Features(BaselineConfig("linear", "kmer", 2, 40, 4, canonical=True))
    codes, lengths = codes_of(sequences)
    assert features.n_features == (4**4 + 4**2) // 2  # palindromes stand for themselves
    assert (features(codes) != features(reverse_complement(codes, lengths))).nnz == 0


def test_tfidf_is_that_of_scikit_learn() -> None:
    data = make_data(make_task(strand_specific=True), plant(60), plant(40, seed=1))
    model = fit_baseline("kmer_linear", data, tiny_settings(baselines__k=3), RUNTIME, 0).model
    train, other = (t["sequence"].to_pylist() for t in (plant(60), plant(20, seed=2)))
    vocabulary = ["".join(word) for word in itertools.product("ACGT", repeat=3)]
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(3, 3), lowercase=False, vocabulary=vocabulary)
    expected = vectorizer.fit(train).transform(other).toarray()
    np.testing.assert_allclose(model.features(codes_of(other)[0]).toarray(), expected, atol=1e-6)


def test_majority_is_the_frequency_of_each_class() -> None:
    table = plant(40)
    labels = pa.array([0] * 30 + [1] * 10, pa.int64())
    data = make_data(make_task(), table.set_column(1, "label", labels), plant(40, seed=1))
    fitted = fit_baseline("majority", data, tiny_settings(), RUNTIME, 0)
    probabilities, _ = predict_source(fitted.model, data.valid, data.task, RUNTIME)
    np.testing.assert_allclose(probabilities, np.tile([0.75, 0.25], (40, 1)), atol=1e-6)
    assert fitted.score == 0  # the MCC of a constant


@pytest.mark.parametrize("name", [n for n in FORMS if n != "majority"])
def test_finds_what_there_is_to_find_and_is_stored_without_pickles(name: str, tmp_path: Path) -> None:
    # GC content: each set of features can tell it.
    task = make_task("regression", strand_specific=True)
    data = make_data(task, regression_table(400), regression_table(100, seed=1))
    fitted = fit_baseline(name, data, tiny_settings(baselines__k=3), RUNTIME, 0)
    assert fitted.score > 0.6
    save_model(fitted.model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_model(tmp_path)
    before, after = (predict_source(m, data.valid, task, RUNTIME)[0] for m in (fitted.model, loaded))
    np.testing.assert_array_equal(before, after)


def test_same_seed_same_model() -> None:
    data = make_data(make_task(), plant(200), plant(60, seed=1))
    tiny = tiny_settings(baselines__k=4, baselines__max_train_rows=100)
    first, again = (fit_baseline("kmer_boosting", data, tiny, RUNTIME, 3) for _ in range(2))
    assert first.chosen == again.chosen
    assert first.chosen["train_rows"] == 100
    assert torch.equal(first.model.boosters, again.model.boosters)  # type: ignore[arg-type]


def test_classes_and_binary_boosting_give_probabilities() -> None:
    data = make_data(make_task(), plant(400), plant(100, seed=1))
    for name in ("kmer_linear", "kmer_boosting"):
        fitted = fit_baseline(name, data, tiny_settings(), RUNTIME, 0)
        probabilities, labels = predict_source(fitted.model, data.valid, data.task, RUNTIME)
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
        assert ((probabilities[:, 1] > 0.5) == labels).mean() > 0.6, name


def test_shuffled_labels_teach_nothing() -> None:
    task = make_task(strand_specific=True)
    data = make_data(task, plant(400, shuffle_labels=True), plant(400, seed=1, shuffle_labels=True))
    for name in FORMS:
        assert abs(fit_baseline(name, data, tiny_settings(), RUNTIME, 0).score) < 0.15, name


def test_missing_labels_are_left_out() -> None:
    task = make_task("regression")
    table, valid = regression_table(200), regression_table(60, seed=1)
    values = np.array(table["label"].combine_chunks().flatten()).reshape(-1, 2).copy()
    values[::2, 0] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 2)
    data = make_data(task, table.set_column(1, "label", column), valid)
    tiny = tiny_settings(baselines__k=2, data__rc_augment="off")
    model = fit_baseline("kmer_linear", data, tiny, RUNTIME, 0)
    features = model.model.features(codes_of(table["sequence"].to_pylist()[1::2])[0]).toarray()
    expected = Ridge(alpha=1 / model.chosen["C"], solver="lsqr").fit(features, values[1::2, 0])
    np.testing.assert_allclose(model.model.weight[0].numpy(), expected.coef_, rtol=1e-2, atol=1e-2)  # type: ignore[index]


def test_multilabel_with_a_class_that_never_occurs() -> None:
    labels = np.stack([np.arange(80) % 2, np.zeros(80)], 1).astype("float32")
    column = pa.FixedSizeListArray.from_arrays(pa.array(labels.ravel()), 2)
    changes = {"kind": "multilabel", "labels": ("a", "b"), "metric": "auroc"}
    task = make_task(strand_specific=True).model_copy(update=changes)
    table = plant(80).set_column(1, "label", column)
    data = make_data(task, table, table)
    for name in FORMS:
        probabilities, _ = predict_source(
            fit_baseline(name, data, tiny_settings(), RUNTIME, 0).model, data.valid, task, RUNTIME
        )
        assert (probabilities[:, 1] < 0.01).all(), name


def test_a_baseline_is_refused_where_it_is_not_made_for_the_task() -> None:
    many = {"kind": "multilabel", "labels": tuple(f"o{i}" for i in range(30)), "metric": "auroc"}
    with pytest.raises(NotApplicable, match="30 outputs"):
        refuse_unfit("kmer_boosting", tiny_settings(), make_task().model_copy(update=many))
    with pytest.raises(NotApplicable, match="strands"):
        refuse_unfit("positional_kmer", tiny_settings(), make_task())
    refuse_unfit("positional_kmer", tiny_settings(), make_task(strand_specific=True))
    refuse_unfit("kmer_boosting", tiny_settings(), make_task())


def test_only_words_at_their_place_tell_these_classes_apart() -> None:
    # The same words in the same number, in the first half or in the second.
    rng = np.random.default_rng(0)

    def make(rows: int) -> pa.Table:
        labels = np.arange(rows) % 2
        letters = rng.choice(list("ACGT"), (rows, 40))
        for row, label in enumerate(labels):
            letters[row, 5 + 18 * label : 12 + 18 * label] = list("TGACTCA")
        return pa.table({"sequence": ["".join(r) for r in letters], "label": pa.array(labels, pa.int64())})

    data = make_data(make_task(strand_specific=True), make(300), make(100))
    assert fit_baseline("positional_kmer", data, tiny_settings(), RUNTIME, 0).score > 0.95
    assert fit_baseline("gapped_kmer", data, tiny_settings(), RUNTIME, 0).score < 0.5


def test_a_training_matrix_has_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(make_task(), plant(200), plant(40, seed=1))
    features = Features(BaselineConfig("linear", "gapped", 2, 60, canonical=True))
    raw = features.count(torch.from_numpy(encode(plant(200)["sequence"])[0]))
    assert max(sum(block[i].nnz for block in raw) for i in range(200)) <= features.count_entries()
    monkeypatch.setattr(baseline, "MOST_ENTRIES", 50 * features.count_entries())
    assert fit_baseline("gapped_kmer", data, tiny_settings(), RUNTIME, 0).chosen["train_rows"] == 50


def test_deepstarr_learns_and_is_stored(tmp_path: Path) -> None:
    task = make_task("regression")
    data = make_data(task, regression_table(400), regression_table(100, seed=1))
    tiny = tiny_settings(embedder_only__epochs=4, embedder_only__optim={"optimizer": "adamw", "lr": 3e-3})
    training = train_deepstarr(data, tiny, RUNTIME, 0)
    assert training.best_score > 0.6
    net = build_deepstarr(data, 0)
    net.load_state_dict(training.best_state)
    save_model(net, tmp_path)
    before, after = (predict_source(m, data.valid, task, RUNTIME)[0] for m in (net, load_model(tmp_path)))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("length_bp", [20, 60, 97])
def test_deepstarr_pads_and_cuts_to_its_length(length_bp: int) -> None:
    net = DeepSTARR(DeepSTARRConfig(60, 3)).eval()
    codes, lengths = codes_of(["ACGTN" * 30])
    outputs = net(codes[:, :length_bp], lengths.clamp(max=length_bp))
    assert outputs.shape == (1, 3)
    if length_bp == 97:
        torch.testing.assert_close(outputs, net(codes[:, :60], lengths.clamp(max=60)))


def test_boosting_takes_the_rounds_that_it_is_given() -> None:
    pytest.importorskip("lightgbm")
    data = make_data(make_task(), plant(80), plant(40, seed=1))
    fitted = [
        fit_baseline("kmer_boosting", data, tiny_settings(baselines__boosting_rounds=n), RUNTIME, 0).model
        for n in (3, 7)
    ]
    assert [bytes(model.boosters.tolist()).count(b"Tree=") for model in fitted] == [3, 7]


@pytest.mark.parametrize("kind", ["binary", "multilabel", "regression"])
def test_an_average_is_the_mean_of_predictions_and_is_stored(kind: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    members = []
    for _ in range(2):
        model = Baseline(BaselineConfig("linear", "one_hot", 2, 30))
        model.weight.copy_(torch.randn(model.weight.shape, generator=generator))  # type: ignore[operator, union-attr]
        members.append(model)
    average = AverageModel(kind, members)
    codes, lengths = codes_of(["ACGTN" * 6, "GATTACA"])
    expected = torch.stack([to_predictions(kind, member(codes, lengths)) for member in members]).mean(0)
    torch.testing.assert_close(to_predictions(kind, average(codes, lengths)), expected)
    save_model(average, tmp_path)
    torch.testing.assert_close(load_model(tmp_path)(codes, lengths), average(codes, lengths))


@pytest.mark.parametrize("name", ["gapped_kmer", "kmer_linear", "kmer_boosting"])
def test_members_of_an_average_share_what_is_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(make_task(), plant(120), plant(40, seed=1))
    other = make_data(make_task(), plant(120, seed=2), plant(40, seed=1))
    members = [fit_baseline(name, one, tiny_settings(), RUNTIME, 0).model for one in (data, other)]
    codes, lengths = codes_of(data.valid.table["sequence"].to_pylist())
    expected = torch.stack([to_predictions("binary", member(codes, lengths)) for member in members]).mean(0)
    calls = []
    whole = Features.count
    monkeypatch.setattr(Features, "count", lambda self, codes: calls.append(1) or whole(self, codes))
    found = to_predictions("binary", AverageModel("binary", members)(codes, lengths))
    torch.testing.assert_close(found, expected)
    assert len(calls) == 1


@pytest.fixture
def genomic_model(tmp_path: Path) -> Path:
    """A tiny random ESM with a tokenizer of 3-mers, as the Nucleotide Transformer has one of 6-mers."""
    folder = tmp_path / "tiny-genomic"
    folder.mkdir()
    words = ["<unk>", "<pad>", "<mask>", "<cls>", *("".join(w) for w in itertools.product("ACGT", repeat=3)), *"ACGTN"]
    (folder / "vocab.txt").write_text("\n".join(words))
    EsmTokenizer(str(folder / "vocab.txt"), model_max_length=64, eos_token=None).save_pretrained(str(folder))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    EsmModel(
        EsmConfig(vocab_size=len(words), max_position_embeddings=66, pad_token_id=1, mask_token_id=2, **sizes)
    ).save_pretrained(folder)
    return folder


def test_a_genomic_model_reads_by_its_own_tokenizer_and_is_stored(genomic_model: Path, tmp_path: Path) -> None:
    task = make_task("regression")
    data = make_data(task, regression_table(120), regression_table(40, seed=1))
    tiny = tiny_settings(baselines__names=["genomic_lm"], baselines__genomic_model=str(genomic_model))
    tuned = tune_genomic_lm(data, tiny, RUNTIME, 0)
    assert tuned.lr in LEARNING_RATES
    codes, lengths = codes_of(["ACGACGTTT", "ACG"])
    words = [tuned.model.tokenizer.tokenize(text) for text in ("ACGACGTTT", "ACG")]
    assert words == [["ACG", "ACG", "TTT"], ["ACG"]]
    alone = tuned.model.eval()(codes[1:, :3], lengths[1:])
    torch.testing.assert_close(tuned.model(codes, lengths)[1:], alone)  # padding is masked
    (tmp_path / "stored").mkdir()
    save_model(tuned.model, tmp_path / "stored")
    before, after = (
        predict_source(m, data.valid, task, RUNTIME)[0] for m in (tuned.model, load_model(tmp_path / "stored"))
    )
    np.testing.assert_array_equal(before, after)


def test_a_step_of_a_genomic_model_reads_nothing_from_the_device(
    genomic_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tiny_settings(baselines__names=["genomic_lm"], baselines__genomic_model=str(genomic_model))
    with no_host_syncs(monkeypatch) as rows:
        tune_genomic_lm(make_data(make_task(), plant(60), plant(20, seed=1)), tiny, RUNTIME, 0)
    assert rows


def test_genomic_words_are_overlapping(genomic_model: Path) -> None:
    model = load_genomic_lm(str(genomic_model), 2, words_bp=3).eval()
    codes, lengths = codes_of(["ACGT"])
    seen: list[str] = []
    tokenizer = model.tokenizer
    model.tokenizer = lambda texts, **options: seen.extend(texts) or tokenizer(texts, **options)
    model(codes, lengths)
    assert seen == ["ACG CGT"]


def test_a_genomic_model_must_be_given() -> None:
    with pytest.raises(UserError, match="genomic_model"):
        tiny_settings(baselines__names=["genomic_lm"])
    with pytest.raises(UserError, match="no such folder"):
        load_genomic_lm("./nowhere", 2)
