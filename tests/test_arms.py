"""Arms of ablations and baselines: what the settings mean, how arms are compared, one study end to end."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import Cli
from runs import SETTINGS, Sources, execute, stage_folders
from toys import make_pipeline, make_task, tiny_config, tiny_reference, tiny_settings, toy_data

from l2g_ray.counts import Candidate
from l2g_ray.errors import UserError
from l2g_ray.models.corpus import Corpus, find_corpus
from l2g_ray.models.embedder import EmbedderNet
from l2g_ray.presets import list_presets, resolve
from l2g_ray.results.comparison import Compared
from l2g_ray.results.intervals import PairedDifference, Summary
from l2g_ray.results.rows import judge
from l2g_ray.stages.align import train_aligned
from l2g_ray.stages.context import build_net
from l2g_ray.stages.distances import coral
from l2g_ray.stages.finetune import FinetuneTrial, finetune
from l2g_ray.stages.loop import Runtime
from l2g_ray.stages.reference import draw_gaussian, sample_sentences, shuffle_words
from l2g_ray.storage import Location
from l2g_ray.store.results import StageResult, make_key
from l2g_ray.studies.study import (
    JOINT,
    compare_arms,
    correct,
    find_study,
    read_baseline_arms,
    read_studies,
    vary,
)

RUNTIME = Runtime("cpu", "fp32", lambda row: None, None)


# ---- what the arms are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", list_presets())
@pytest.mark.parametrize("study", [*read_studies(), "baselines"])
def test_every_arm_is_settings_of_its_own(study: str, preset: str) -> None:
    arms = {"l2g": {}} | {n: a["set"] for n, a in read_baseline_arms().items()} if study == "baselines" else None
    arms = arms or dict(find_study(study).arms)
    resolved = [resolve(preset, None, assignments).model_dump_json() for assignments in arms.values()]
    # The paper's preset is joint alignment already, and so on: at most one arm may be what the preset says.
    assert len(set(resolved)) == len(resolved), list(arms)


def keys_of(reference: str = "r", norm: str = "n", **changes: Any) -> dict[str, str]:
    """The keys of the stages up to alignment with alpha 1, for settings and a text."""
    pipeline = make_pipeline(tiny_settings(**changes), reference=reference, norm=norm)
    shape = Candidate("resnet", "resnet", [])
    warm = pipeline._warmup(shape, 0)
    result = StageResult("warmup", warm.key, Path(), {})
    return {
        "search": make_key("search", pipeline._parts("search")),
        "embedder_only": pipeline._embedder_only(shape, 0, pipeline.folds[0]).key,
        "warmup": warm.key,
        "align": pipeline._align(shape, 1.0, 0, result).key,
        "trial": make_key("trial", pipeline._finetune_parts({})),
    }


@pytest.mark.parametrize(
    ("other", "differ"),
    [
        ({"align__alphas": [1.0, 0.1]}, set()),
        ({"align__distance": "coral"}, {"align"}),
        ({"align__source": "vocabulary", "align__per_class": 9, "reference": "s"}, {"align", "trial"}),
        ({"norm": "m"}, {"search", "embedder_only", "warmup", "align", "trial"}),
        ({"align__beta": 0.5}, {"warmup", "align"}),
        ({"align__optim__lr": 1e-5}, {"warmup", "align"}),
    ],
    ids=lambda v: ",".join(sorted(v)) or "nothing",
)
def test_arms_share_each_stage_that_does_not_depend_on_what_they_differ_in(
    other: dict[str, Any], differ: set[str]
) -> None:
    one, two = keys_of(), keys_of(**other)
    assert {stage for stage in one if one[stage] != two[stage]} == differ


def test_an_unknown_study_names_the_nearest() -> None:
    with pytest.raises(UserError, match="weights"):
        find_study("weight")


def test_vary_makes_an_arm_a_value() -> None:
    study = vary("model.target_tokens", [8, 16])
    assert study.arms == {"8": {"model.target_tokens": 8}, "16": {"model.target_tokens": 16}}
    assert study.control == "8"
    assert list(vary("select.backbones", [["resnet"], ["resnet", "unet"]]).arms) == ["resnet", "resnet-unet"]
    assert list(vary("model.language_model", ["minilm", "../some/folder"]).arms) == ["minilm", "some_folder"]
    with pytest.raises(UserError, match="two different values"):
        vary("model.target_tokens", [8, 8])


# ---- settings that arms are made of ----------------------------------------------------------------------------------


def test_without_a_language_model_the_search_trains_the_embedder() -> None:
    data, settings = toy_data(), tiny_settings(model__combine="embedder")
    config = tiny_config(data, settings)
    state = build_net(config, data, tiny_reference(), 5).state_dict()
    trial = FinetuneTrial(1e-3, 1e-3, 1e-4, 0.1, 16, "all", 0.0)
    result = finetune(
        data, settings, tiny_reference(), RUNTIME, config=config, embedder_state=state, trial=trial, seed=0
    )
    net = EmbedderNet(config)
    net.load_state_dict(result.best_state)  # the embedder and its predictor, and nothing else
    assert len(result.history) == settings.finetune.epochs


def test_mmd_only_keeps_the_last_epoch_and_leaves_the_predictor_as_it_was() -> None:
    data = toy_data()
    settings = tiny_settings(align__beta=0.0, align__task_only_epochs=0, align__alphas=[1.0], align__epochs=3)
    config = tiny_config(data, settings)
    # Weight decay would change parameters without a gradient.
    settings = settings.model_copy(
        update={
            "align": settings.align.model_copy(
                update={"optim": settings.align.optim.model_copy(update={"weight_decay": 0.0})}
            )
        }
    )
    result = train_aligned(data, settings, tiny_reference(), RUNTIME, config=config, alpha=1.0, seed=0)
    begun = build_net(config, data, tiny_reference(), 0).state_dict()
    assert result.best_epoch == 2
    assert torch.equal(begun["predictor.linear.weight"], result.best_state["predictor.linear.weight"])
    moved = [name for name in begun if not torch.equal(begun[name], result.best_state[name])]
    assert any(name.startswith("embedder") for name in moved)


def test_coral_is_the_distance_of_covariances() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 6)), rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6))
    expected = ((np.cov(a.T) - np.cov(b.T)) ** 2).sum() / (4 * 36)
    assert float(coral(torch.tensor(a), torch.tensor(b))) == pytest.approx(expected, rel=1e-5)
    assert float(coral(torch.tensor(a), torch.tensor(a) + 3)) == pytest.approx(0, abs=1e-8)
    with pytest.raises(ValueError, match="two rows"):
        coral(torch.tensor(a), torch.tensor(b)[:1])


def test_gaussian_noise_has_the_mean_and_covariance_of_the_text() -> None:
    features = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0)) @ torch.randn(4, 4) + 5
    noise = draw_gaussian(features, 1)
    assert noise.shape == features.shape
    scale = features.std(0).max()
    torch.testing.assert_close(noise.mean(0), features.mean(0), atol=0.1 * float(scale), rtol=0)
    torch.testing.assert_close(torch.cov(noise.T), torch.cov(features.T), atol=0.12 * float(scale) ** 2, rtol=0)
    assert torch.equal(noise, draw_gaussian(features, 1))


def test_shuffled_text_has_the_same_words_in_other_places() -> None:
    corpus = Corpus([list("abcdefgh"), list("ijklm")], None, "letters")
    shuffled = shuffle_words(corpus, 0)
    assert [len(s) for s in shuffled.words] == [8, 5]
    assert sorted(itertools.chain(*shuffled.words)) == sorted(itertools.chain(*corpus.words))
    assert shuffled.words != corpus.words


def test_sentence_means_are_means_over_real_tokens() -> None:
    class Words:
        """A tokenizer that knows letters, with one special token before and padding after."""

        def __call__(self, words: list[list[str]], **options: Any) -> Any:
            longest = max(map(len, words)) + 1
            ids = [[1, *(ord(w) - 90 for w in s), *[0] * (longest - 1 - len(s))] for s in words]
            kept = [[None, *range(len(s)), *[None] * (longest - 1 - len(s))] for s in words]
            return type(
                "Coded",
                (dict,),
                {"word_ids": lambda self, i: kept[i]},
            )(input_ids=torch.tensor(ids))

    class Model(torch.nn.Module):
        def embeddings(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids[..., None].float()

    means = sample_sentences(Model(), Words(), Corpus([["a"], ["a", "c"], ["z"]], None, "x"), 3, 0)
    assert sorted(means[:, 0].tolist()) == [7.0, 8.0, 32.0]


def test_each_form_of_text_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    text = tmp_path / "some.txt"
    text.write_text("a b c\nd e f\n")
    marks = set()
    for source in ("text", "sentences", "shuffled", "gaussian"):
        corpus, described = find_corpus(source, str(text), None)
        assert corpus is not None
        assert "some.txt" in described
        marks.add(corpus.fingerprint())
    assert len(marks) == 4


# ---- comparisons -----------------------------------------------------------------------------------------------------


def predictions(folder: Path, wrong: int, rows: int = 200) -> Path:
    folder.mkdir(parents=True)
    labels = np.array(["absent", "present"])[np.arange(rows) % 2]
    predicted = labels.copy()
    predicted[:wrong] = np.where(labels[:wrong] == "absent", "present", "absent")
    probability = (predicted == "present").astype(float)
    frame = pd.DataFrame(
        {
            "id": np.arange(rows).astype(str),
            "arm": "l2g",
            "seed": 0,
            "label": labels,
            "prediction": predicted,
            "probability_absent": 1 - probability,
            "probability_present": probability,
        }
    )
    alone = frame.assign(arm="embedder_only")
    pd.concat([frame, alone]).to_parquet(folder / "predictions.parquet")
    return folder


def test_arms_are_compared_with_the_first_over_the_same_rows(tmp_path: Path) -> None:
    folders = {"good": predictions(tmp_path / "good", 4), "bad": predictions(tmp_path / "bad", 60)}
    rows = {name: {"validation": {"mean": 0.5}, "cpu_s": 1.0} for name in folders}
    task = make_task(metric="accuracy")
    compared = {one["arm"]: one for one in compare_arms(task, folders, rows, tiny_settings())}
    assert list(compared) == ["good", "bad", "embedder_only"]
    assert compared["good"]["difference"] is None
    difference = compared["bad"]["difference"]
    assert difference is not None
    assert difference["mean"] == pytest.approx(-56 / 200)
    assert judge(difference["ci95"], task.metric, 3) == "worse"
    same = compared["embedder_only"]["difference"]  # the very same predictions
    assert same is not None
    assert judge(same["ci95"], task.metric, 3) == "unclear"


def test_the_ensemble_is_compared_where_an_arm_has_no_l2g(tmp_path: Path) -> None:
    folders = {"with": predictions(tmp_path / "with", 30), "without": predictions(tmp_path / "without", 30)}
    for name, wrong in (("with", 4), ("without", 60)):
        path = folders[name] / "predictions.parquet"
        frame = pd.read_parquet(path)
        other = pd.read_parquet(predictions(tmp_path / f"{name}_ensemble", wrong) / "predictions.parquet")
        kept = frame if name == "with" else frame[frame["arm"] != "l2g"]
        pd.concat([kept, other[other["arm"] == "l2g"].assign(arm="ensemble")]).to_parquet(path)
    used = {"oof": {"mean": 0.9}}
    rows = {name: {"validation": {"mean": 0.5}, "used": used, "cpu_s": 1.0} for name in folders}
    compared = {one["arm"]: one for one in compare_arms(make_task(metric="accuracy"), folders, rows, tiny_settings())}
    assert list(compared) == ["with", "without", "l2g", "embedder_only"]
    assert [compared[name]["test"]["mean"] for name in ("with", "without", "l2g")] == pytest.approx([0.98, 0.7, 0.85])
    assert compared["with"]["validation"] == 0.9  # the ensemble's


def test_an_arm_that_failed_is_left_out(tmp_path: Path) -> None:
    folders = {"good": tmp_path / "never", "bad": predictions(tmp_path / "bad", 60)}
    rows = {"bad": {"validation": {"mean": 0.5}, "cpu_s": 1.0}}
    (one,) = compare_arms(make_task(metric="accuracy"), folders, rows, tiny_settings())
    assert one["arm"] == "bad"
    assert one["difference"] is None


def holm(values: list[float]) -> list[float]:
    """By the definition: the largest of what is at most as large, times how many are not smaller."""
    ordered = sorted(values)
    return [min(1.0, max(p * (len(values) - rank) for rank, p in enumerate(ordered) if p <= value)) for value in values]


def make_compared(arm: str, difference: PairedDifference | None) -> Compared:
    test: Summary = {"mean": 0.1, "ci95": [0, 1], "per_seed": [0.1], "dropped_resamples": 0}
    return Compared(task="t", arm=arm, metric="mcc", test=test, validation=None, difference=difference, cpu_s=0.0)


def test_holm_is_that_of_the_definition() -> None:
    values = [0.01, 0.4, 0.03, 0.005, 0.9]
    compared = [
        make_compared(str(i), {"mean": 0.1, "ci95": [0, 1], "p": p / 2, "dropped_resamples": 0})
        for i, p in enumerate(values)
    ]
    compared.insert(2, make_compared("control", None))
    found = [one["difference"]["p_holm"] for one in correct(compared) if one["difference"]]
    assert found == pytest.approx(holm(values))


# ---- commands --------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_sentence(cli: Cli, tmp_path: Path) -> None:
    for arguments, expected in (
        (["ablate", "demo/splice_junction"], "--study"),
        (["ablate", "--study", "loss"], "at least one task"),
        (["ablate", "demo/splice_junction", "--study", "los"], "loss"),
        (["ablate", "demo/splice_junction", "--study", "loss", "--arms", "joint"], "at least two arms"),
        (["ablate", "demo/splice_junction", "--study", "loss", "--arms", "joint,nothing"], "no arm 'nothing'"),
        (["ablate", "demo/splice_junction", "--vary", "model.tokens=1;2"], "model.target_tokens"),
        (["baseline"], "kmer_linear"),
        (["baseline", "kmer_linar", "demo/splice_junction"], "kmer_linear"),
        (["baseline", "simple"], "at least one task"),
    ):
        said = cli(*arguments, "--out", tmp_path / "out")
        assert said.code == 2, arguments
        assert expected in said.err, said.err
    assert not (tmp_path / "out").exists()


def test_simple_baselines_without_ray(cli: Cli, tmp_path: Path, sources: Sources) -> None:
    arguments = ["baseline", "simple", sources.planted, "--out", tmp_path, "--name", "simple", "--preset", "smoke"]
    said = cli(*arguments)
    assert said.code == 0, said.err
    study = json.loads((tmp_path / "simple" / "study.json").read_text())
    scores = {one["arm"]: one["test"]["mean"] for one in study["compared"]}
    assert list(scores) == [
        *("majority", "kmer_linear", "one_hot_linear", "gapped_kmer", "kmer_boosting", "cnn", "deepstarr")
    ]  # without places, since either strand may be given
    assert scores["majority"] == 0
    frame = pd.read_parquet(tmp_path / "simple" / "planted" / "predictions.parquet")
    assert (frame.groupby("arm").size() == 40).all()
    before = stage_folders(tmp_path)
    assert cli(*arguments).code == 0
    assert stage_folders(tmp_path) == before


def test_simple_baselines_in_an_object_store(
    cli: Cli, bucket: str, tmp_path: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        "baseline",
        "majority",
        sources.planted,
        "--out",
        f"{bucket}/simple",
        "--name",
        "b",
        "--preset",
        "smoke",
    ]
    for machine in ("one", "two"):  # the second takes the first one's results
        monkeypatch.setenv("L2G_RAY_WORK_DIR", str(tmp_path / machine))
        said = cli(*arguments)
        assert said.code == 0, said.err
        there = Location(f"{bucket}/simple/b").files()
        assert {"study.json", "study.csv", "planted/predictions.parquet"} <= set(there)
    one, two = (next((tmp_path / name).glob("*/stages/baseline/*/result.json")) for name in ("one", "two"))
    assert one.read_text() == two.read_text()


@pytest.mark.slow
def test_a_study_end_to_end(tmp_path: Path, sources: Sources) -> None:
    own = SETTINGS | {
        "search.enabled": False,
        "align.source": "vocabulary",
        "align.alphas": [1.0],
        "finetune.trials": 1,
        "baselines.names": ["majority"],
    }
    command = [sys.executable, "-m", "l2g_ray.cli.main", "ablate", str(sources.planted), "--study", "embedder"]
    command += ["--arms", "dash,orca,cnn_only", "--preset", "smoke", "--language-model", str(sources.language_model)]
    command += ["--out", str(tmp_path), "--cpus", "2", "--name", "study"]
    for key, value in own.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    said = execute(command)
    assert "Difference = arm minus 'dash'" in said
    study = json.loads((tmp_path / "study" / "study.json").read_text())
    arms = {one["arm"]: one for one in study["compared"]}
    assert set(arms) == {"dash", "orca", "cnn_only", "embedder_only", "ensemble", "majority"}
    assert arms["majority"]["test"]["mean"] == 0
    for name in ("orca", "cnn_only"):
        assert arms[name]["difference"]["p_holm"] is not None
        assert (tmp_path / "study" / f"planted{JOINT}{name}" / "predictions.parquet").exists()
    assert json.loads((tmp_path / "study" / "suite.json").read_text())["state"] == "finished"
    for kind in ("csv", "md", "png", "svg"):
        assert (tmp_path / "study" / f"study.{kind}").stat().st_size > 100
    done = stage_folders(tmp_path)
    kinds = [name.split("/")[0] for name in done]
    # dash and cnn_only share the embedder-only control; the text reference and the baseline are of all three.
    assert kinds.count("embedder_only") == 2
    assert kinds.count("reference") == 1
    assert kinds.count("baseline") == 1
