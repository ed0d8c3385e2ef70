from __future__ import annotations

import pytest
import yaml

from l2g_ray.errors import UserError
from l2g_ray.presets import list_presets, resolve
from l2g_ray.tasks.catalogue import find_tasks, list_benches, load_bench, parse_bench, parse_task, published_scores

ALL_TASKS = [task for bench in list_benches() for task in find_tasks(bench)]
COUNTS = {"demo": 2, "nt": 18, "nt_revised": 18, "gue": 28, "genomic_benchmarks": 9, "deepstarr": 1, "deepsea": 2,
          "uci": 1, "mpra": 1}  # fmt: skip
BENCH = """
name: own
title: Own
defaults: {all: {seeds: 2}, fast: {model.language_model: minilm, seeds: 3}}
tasks:
  one: {kind: binary, labels: [off_target, on_target], overrides: {fast: {seeds: 4}}}
"""


def test_d9_every_bench_fits_the_schema() -> None:
    assert {bench: len(load_bench(bench).tasks) for bench in list_benches()} == COUNTS
    for task in ALL_TASKS:
        assert task.folder
        assert task.title


@pytest.mark.parametrize("preset", list_presets())
def test_d9_overrides_resolve_under_every_preset(preset: str) -> None:
    for task in ALL_TASKS:
        assert resolve(preset, task.overrides).preset == preset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("    metrik: mcc", "metrik.*metric"),
        ("    labels: [one]", "two labels"),
        ("    labels: [yes, 'True']", "labels"),
        ("    labels: [no, yes]", "quotes"),
        ("    kind: binarry", "kind"),
        ("    name: ../up", r"\.\./up"),
    ],
)
def test_d9_what_does_not_fit_is_refused(change: str, message: str) -> None:
    key = change.split(":")[0].strip()
    fields = {"kind": "binary", "labels": ["a", "b"], key: yaml.safe_load(change)[key]}
    raw = {"name": "own", "title": "Own", "tasks": {"one": fields}}
    with pytest.raises(UserError, match=rf"own.yaml, task 'one'.*{message}"):
        parse_bench(raw, "own.yaml")


def test_d9_unknown_bench_key_and_unknown_setting() -> None:
    task = {"kind": "binary", "labels": ["a", "b"]}
    with pytest.raises(UserError, match=r"unknown key 'titel'.*title"):
        parse_bench({"name": "own", "title": "Own", "titel": "", "tasks": {"one": task}}, "own.yaml")
    with pytest.raises(UserError, match=r"finetune\.trails.*finetune.trials"):
        resolve(
            "fast",
            parse_task(
                {**task, "bench": "b", "name": "n", "overrides": {"all": {"finetune.trails": 3}}}, "x"
            ).overrides,
        )


def test_task_overrides_win_over_bench_defaults() -> None:
    task = parse_bench(yaml.safe_load(BENCH), "own.yaml").tasks["one"]
    assert task.overrides == {"all": {"seeds": 2}, "fast": {"model.language_model": "minilm", "seeds": 4}}
    assert resolve("fast", task.overrides).seeds == 4
    assert resolve("paper", task.overrides).seeds == 2


def test_names_are_found_or_the_nearest_is_named() -> None:
    assert [task.name for task in find_tasks("nt", ["enhancers", "H3", "H3"])] == ["H3", "enhancers"]
    with pytest.raises(UserError, match="did you mean 'enhancers'"):
        find_tasks("nt", ["enhancer"])
    with pytest.raises(UserError, match="unknown bench 'gu'"):
        load_bench("gu")


def test_paper_values_of_the_nt_table() -> None:
    def settings(name: str):
        return resolve("paper", find_tasks("nt", [name])[0].overrides)

    assert settings("H3").model.target_tokens == 512
    assert settings("H3").align.optim.weight_decay == pytest.approx(5e-6)
    assert settings("H4ac").align.alphas == (0.01,)
    assert settings("H3K4me2").align.optim.momentum == pytest.approx(0.9)
    assert settings("enhancers").search.enabled is False
    assert settings("enhancers").finetune.batch_size == (128,)
    assert settings("promoter_tata").align.task_only_epochs == 50
    assert settings("splice_sites_donors").align.optim.optimizer == "adam"
    # The official H4 never aligns; that is not copied.
    assert settings("H4").align.task_only_epochs < settings("H4").align.epochs


def test_published_scores_are_comparable_only_on_the_same_split() -> None:
    assert all(not score.comparable for score in published_scores("nt", "H3"))
    assert all(score.comparable and score.metric == "mcc" for score in published_scores("gue", "mouse_2"))
    tata = published_scores("nt", "promoter_tata")
    assert {score.metric for score in tata if score.comparable} == {"mcc"}
    assert {score.metric for score in tata if not score.comparable} == {"f1"}
    best = max(score.value for score in tata if score.comparable)
    assert best == pytest.approx(0.7943)
    assert published_scores("user", "anything") == []


def test_published_scores_are_fractions_with_a_source() -> None:
    for task in ALL_TASKS:
        for score in published_scores(task.bench, task.name):
            assert 0 < score.value < 1
            assert score.source
            assert score.metric
    deepstarr = {(s.model, s.metric): s.value for s in published_scores("deepstarr", "deepstarr")}
    assert deepstarr["L2G", "pearson_mean"] == pytest.approx(0.71)
    assert ("DeepSTARR", "pearson_mean") not in deepstarr


def test_predictors_read_by_position_where_the_label_belongs_to_one_strand() -> None:
    expected = {"smoke": ("by_position", "mean_max"), "fast": ("by_position", "mean_max"), "paper": ("mean", "mean")}
    for preset, poolings in expected.items():
        settings = resolve(preset)
        assert tuple(settings.for_task(strand_specific).model.pooling for strand_specific in (True, False)) == poolings
    reads_features = resolve("fast", None, {"model.predictor_reads": "backbone"})
    assert reads_features.for_task(True).model.pooling == "mean_max"


def test_the_embedder_s_epochs_are_a_number_or_a_range() -> None:
    assert resolve("fast", None, {"embedder_only.epochs": 40}).embedder_only.count_epochs(100) == 40
    for wrong in ([12, 8], 0, [0, 3]):
        with pytest.raises(UserError, match=r"key 'embedder_only"):
            resolve("fast", None, {"embedder_only.epochs": wrong})


def test_a_strand_specific_task_is_not_shifted_unless_told_to() -> None:
    splice = find_tasks("demo", ["splice_junction"])[0]
    grammar = find_tasks("demo", ["enhancer_grammar"])[0]
    for preset, of_splice, of_grammar in (("fast", 0, 3), ("paper", 0, 3)):
        assert resolve(preset, splice.overrides).for_task(splice.strand_specific).data.shift_bp == of_splice
        assert resolve(preset, grammar.overrides).for_task(grammar.strand_specific).data.shift_bp == of_grammar
    told = resolve("fast", splice.overrides, {"data.shift_bp": 2}).for_task(strand_specific=True)
    assert told.data.shift_bp == 2
    with pytest.raises(UserError, match=r"key 'data\.shift_bp'"):
        resolve("fast", None, {"data.shift_bp": -1})
