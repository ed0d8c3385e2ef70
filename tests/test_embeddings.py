"""Embeddings at each point of training, their silhouette, and the command on a real small run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Cli
from explained import write_arms
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import plant, tiny_reference, tiny_settings, toy_data

from l2g_ray.explain.embeddings import (
    ARM_POINTS,
    WITH_TOKENS,
    Point,
    _untrained,
    embed,
    load_points,
    measure_silhouette,
    project,
    sample_rows,
)
from l2g_ray.models.l2g import load_model
from l2g_ray.models.language_model import LanguageModel, load_transformer
from l2g_ray.run_folder import choose_member, find_arm
from l2g_ray.stages.context import build_net, make_embedder_config


def double_loop(values: np.ndarray, classes: np.ndarray) -> float:
    found = []
    for i in range(len(values)):
        distances = np.sqrt(((values - values[i]) ** 2).sum(1))
        own = (classes == classes[i]) & (np.arange(len(values)) != i)
        if not own.any():
            found.append(0.0)
            continue
        a = distances[own].mean()
        b = min(distances[classes == other].mean() for other in set(classes) - {classes[i]})
        found.append((b - a) / max(a, b))
    return float(np.mean(found))


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(5, 40), n_groups=st.integers(2, 4))
@settings(deadline=None, max_examples=30)
def test_e2_silhouette_equals_its_definition(seed: int, n: int, n_groups: int) -> None:
    rng = np.random.default_rng(seed)
    classes = np.concatenate([np.arange(n_groups), rng.integers(0, n_groups, n - n_groups)])
    values = rng.normal(size=(n, 6)) + classes[:, None]
    assert measure_silhouette(values, classes) == pytest.approx(double_loop(values, classes), abs=1e-6)


def test_e2_silhouette_equals_a_double_loop() -> None:
    rng = np.random.default_rng(0)
    classes = np.array(["a", "b", "c"])[rng.integers(0, 3, 80)]
    classes[0] = "alone"
    values = rng.normal(size=(80, 5)) + (classes == "a")[:, None]
    assert measure_silhouette(values, classes) == pytest.approx(double_loop(values, classes), abs=1e-9)
    assert measure_silhouette(values, np.full(80, "one")) is None


def test_a_sample_keeps_the_shares_and_its_seed() -> None:
    classes = np.array(["many"] * 900 + ["few"] * 95 + ["rare"] * 5)
    rows = sample_rows(classes, 100, 1)
    kinds, counts = np.unique(classes[rows], return_counts=True)
    assert dict(zip(kinds, counts, strict=True)) == {"many": 90, "few": 10, "rare": 2}
    assert (rows == sample_rows(classes, 100, 1)).all()
    assert (rows != sample_rows(classes, 100, 2)).any()
    assert (sample_rows(classes, 1000, 1) == np.arange(1000)).all()


def test_components_are_those_of_the_covariance() -> None:
    values = np.random.default_rng(0).normal(size=(50, 4)) * [5, 2, 1, 0.1]
    places, shares = project(values)
    eigenvalues = np.linalg.eigvalsh(np.cov(values.T))[::-1]
    np.testing.assert_allclose(places.var(0, ddof=1), eigenvalues[:2])
    np.testing.assert_allclose(shares, eigenvalues[:2] / eigenvalues.sum())


def test_padding_does_not_change_an_embedding_and_the_untrained_net_is_the_one_that_align_starts_from(
    tiny_lm: Path,
) -> None:
    data = toy_data()
    config = make_embedder_config(tiny_settings(tiny_lm), data, tiny_reference(), "resnet")
    language_model = LanguageModel(load_transformer(str(tiny_lm))).eval()
    reference = tiny_reference()
    started = build_net(config, data, reference, 5)
    net = _untrained(config, (language_model, reference.norm_weight, reference.norm_bias), 5)
    for name, tensor in started.embedder.state_dict().items():
        assert torch.equal(tensor, net.embedder.state_dict()[name]), name
    table = plant(6)
    point = Point("x", net, language_model)
    alone = embed(point, table["sequence"].slice(0, 1))
    import pyarrow as pa

    longer = pa.chunked_array([pa.array([table["sequence"][0].as_py()[:30], table["sequence"][1].as_py()])])
    short = embed(point, longer.slice(0, 1))
    among = embed(point, longer)
    for layer in ("backbone", "tokens", "language_model"):
        assert alone[layer].shape == (1, net.embedder.backbone.out_channels if layer == "backbone" else 16)
        np.testing.assert_allclose(among[layer][0], short[layer][0], atol=1e-5)


def test_an_arm_shows_its_own_points(tiny_lm: Path, tmp_path: Path) -> None:
    task = write_arms(tmp_path / "planted", tiny_lm)
    deployed = {"seed": 0, "align": str(task / "embedder_only")}
    (task / "stages.json").write_text(json.dumps({"deployed": deployed}))
    before, aligned, finetuned, alone = "before training", "after align", "after finetune", "embedder only"
    for arm, shown, used in (
        ("l2g", [before, aligned, finetuned, alone], (finetuned,)),
        ("embedder_only", [before, alone], (alone,)),
        ("average", [before, aligned, finetuned, alone], (finetuned, alone)),
    ):
        points = {point.name: point for point in load_points(task, {}, arm)}
        assert list(points) == shown
        assert ARM_POINTS[arm][1] == used
        for name in used:
            member = load_model(task / {finetuned: "model", alone: "embedder_only"}[name])
            for key, value in getattr(member, "net", member).state_dict().items():
                assert torch.equal(points[name].net.state_dict()[key], value)


def test_command_on_a_run(cli: Cli, suite_of_three: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(suite_of_three, out, ignore=shutil.ignore_patterns("mlartifacts", "tune"))
    run = out / "three"
    said = cli("embed", run, "--task", "planted", "--arm", "l2g")
    assert said.code == 0, said.err
    assert "all 16 rows of the valid split; silhouette: euclidean" in said.out
    summary = json.loads((run / "planted" / "embeddings" / "l2g" / "embeddings.json").read_text())
    assert json.loads(cli("embed", run, "--task", "planted", "--arm", "l2g", "--json").out) == summary
    found = {(e["point"], e["layer"]) for e in summary["embeddings"]}
    points = ("before training", "after align", "after finetune")
    assert found == {(p, la) for p in points for la in ("backbone", "tokens", "language_model")} | {
        ("embedder only", "backbone"),
        ("embedder only", "tokens"),
    }
    stored = np.load(run / "planted" / "embeddings" / "l2g" / "embeddings.npz")
    for entry in summary["embeddings"]:
        expected = double_loop(stored[f"{entry['point']}/{entry['layer']}"].astype(float), stored["labels"])
        assert entry["silhouette"] == pytest.approx(expected, abs=1e-6)
    assert not np.allclose(stored["before training/tokens"], stored["after align/tokens"])
    assert not np.allclose(stored["after align/tokens"], stored["after finetune/tokens"])
    assert (run / "planted" / "embeddings" / "l2g" / "embeddings.png").stat().st_size > 5000

    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "embeddings.json").symlink_to(run / "planted" / "task.json")
    refused = cli("embed", run, "--task", "planted", "--out", tmp_path / "linked")
    assert (refused.code, "would overwrite" in refused.err) == (2, True)

    for options in ([], ["--arm", "embedder_only"]):
        arm = options[1] if options else choose_member(find_arm(run, "planted"), (WITH_TOKENS,), "embeddings").name
        said = cli("embed", run, "--task", "planted", *options)
        assert said.out.startswith(f"arm {arm}"), said
        told = json.loads((run / "planted" / "embeddings" / arm / "embeddings.json").read_text())
        assert (told["arm"], tuple(told["predicts_from"])) == (arm, ARM_POINTS[arm][1])
        lines = [line for line in said.out.splitlines() if line.startswith("* ")]
        starred = {point for point in ARM_POINTS[arm][0] if any(point in line for line in lines)}
        assert starred == set(ARM_POINTS[arm][1])
    test = cli("embed", run, "--task", "planted", "--split", "test", "--max-rows", 10, "--out", tmp_path / "test")
    assert "a sample (seed 0) of 10 of the 40 rows of the TEST split, opened for this picture only" in test.out
    values = cli("embed", run, "--task", "composition", "--target", "a")
    assert values.code == 0, values.err
    assert "–" in values.out
    assert "no such output" in cli("embed", run, "--task", "composition", "--target", "b").err

    # An arm of vanilla fine-tuning: in another run, in this one, or of other rows.
    assert "no arm of vanilla fine-tuning" in said.out
    assert summary["vanilla"] is None
    shutil.copytree(run / "planted", tmp_path / "study" / "planted--vanilla")
    said = cli("embed", run, "--task", "planted", "--vanilla", tmp_path / "study")
    assert said.code == 0, said.err
    assert "vanilla fine-tuning language model" in said.out
    assert "no arm" not in said.out
    refused = cli("embed", run, "--task", "planted", "--vanilla", run / "composition")
    assert refused.code == 2
    assert "was trained on other rows" in refused.err
    refused = cli("embed", run, "--task", "composition", "--vanilla", tmp_path / "study")
    assert "no finished task 'composition--vanilla'" in refused.err
    shutil.move(tmp_path / "study" / "planted--vanilla", run)
    said = cli("embed", run, "--task", "planted")
    assert "vanilla fine-tuning tokens" in said.out

    # A stage's result that was deleted, and rows that are gone.
    aligned = json.loads((run / "planted" / "stages.json").read_text())["deployed"]["align"]
    assert (run / "planted" / aligned).resolve().parent == (out / "stages" / "align").resolve()
    stages = json.loads((run / "planted" / "stages.json").read_text())
    stages["deployed"]["align"] = str(out / "stages" / "align" / "gone")
    stages["deployed"]["prepared"] = str(out / "gone")
    (run / "planted" / "stages.json").write_text(json.dumps(stages))
    said = cli("embed", run, "--task", "planted", "--arm", "l2g")
    assert "align/gone: the result of stage 'align' is not there any more" in said.out
    assert "after align" not in said.out.split("note:")[0]
    shutil.rmtree(out / "prepared")
    said = cli("embed", run, "--task", "planted")
    assert said.code == 2
    assert "the rows of this run are not there any more" in said.err
