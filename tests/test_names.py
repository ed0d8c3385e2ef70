"""Names of outputs that differ in signs only: folders, fields, metrics and arms stay different, and safe ones unchanged."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from commands import Cli
from explained import write_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l2g_ray.data.infer import make_name
from l2g_ray.names import MOST_CHARACTERS, safe_name, safe_names
from l2g_ray.studies.study import vary
from l2g_ray.tasks.schema import NAME_PATTERN, Task
from l2g_ray.tracking.runs import Tracker

LABELS = ("<1h", ">1h", "α", "β")
SEQUENCE = "ACGTACGTACGTACGT"
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ANY = st.one_of(st.text(max_size=6), st.sampled_from(["..", ".", "a", "A", "a_2", "a b", "a/b", "x" * 300]))


@FUZZ
@given(st.lists(ANY, unique=True, max_size=12))
def test_any_names(names: list[str]) -> None:
    found = safe_names(names)
    assert len(set(found)) == len(names)
    assert found == safe_names(names)
    assert safe_names(found) == found
    changed = [name for name, before in zip(found, names, strict=True) if name != before]
    assert len({name.casefold() for name in changed}) == len(changed)
    for name, before in zip(found, names, strict=True):
        assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name)
        if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", before) and len(before) <= MOST_CHARACTERS:
            assert name == before


@FUZZ
@given(st.lists(ANY, unique=True, max_size=12))
def test_any_name_alone(names: list[str]) -> None:
    found = [safe_name(name) for name in names]
    assert len(set(found)) == len(names)
    for name, before in zip(found, names, strict=True):
        assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name)
        assert safe_name(name) == name
        assert len(name) <= MOST_CHARACTERS
        assert name == before or re.search(r"-[0-9a-f]{6}$", name)


@FUZZ
@given(st.text())
def test_any_name_of_a_task(text: str) -> None:
    assert NAME_PATTERN.fullmatch(make_name(text))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = {"bench": "toy", "name": "stable", "kind": "regression", "labels": LABELS, "label_columns": LABELS}
    return write_model(tmp_path_factory.mktemp("run") / "stable", Task.model_validate(fields))


def test_explain_writes_each_output_into_a_folder_of_its_own(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "new.fa").write_text(f">s\n{SEQUENCE}\n>t\n{SEQUENCE[::-1]}\n")
    said = cli("explain", run, "--input", tmp_path / "new.fa", "--no-motifs", "--out", tmp_path / "out")
    assert said.code == 0, said.err
    outputs = json.loads((tmp_path / "out" / "explain.json").read_text())["outputs"]
    folders = {one["output"]: one["folder"] for one in outputs}
    assert folders == dict(zip(LABELS, ("1h", "1h_2", "output", "output_2"), strict=True))
    page = (tmp_path / "out" / "explain.html").read_text("utf-8")
    assert all(html.escape(label) in page for label in LABELS)
    assert {path.parent.name for path in tmp_path.glob("out/*/sequences.csv")} == set(folders.values())


def test_mutate_keeps_outputs_and_sequences_apart(cli: Cli, run: Path, tmp_path: Path) -> None:
    pytest.importorskip("logomaker")
    (tmp_path / "new.fa").write_text(f">a/b\n{SEQUENCE}\n>a:b\n{SEQUENCE[::-1]}\n")
    expected = [("a/b", "<1h"), ("a/b", ">1h"), ("a:b", "<1h")]
    for name, label in expected:
        options = ["--id", name, "--target", label, "--region", "1-2"]
        said = cli("mutate", run, "--input", tmp_path / "new.fa", *options)
        assert said.code == 0, said.err
    found = [json.loads(path.read_text()) for path in run.glob("mutagenesis/*/*/*/mutagenesis.json")]
    assert sorted((one["id"], one["output"]) for one in found) == expected


def test_fields_of_a_vcf_differ(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(f">chr1\n{SEQUENCE * 10}\n")
    (tmp_path / "v.vcf").write_text("chr1\t50\t.\tC\tT\n")
    command = ["variants", run, "--input", tmp_path / "v.vcf", "--genome", tmp_path / "g.fa"]
    said = cli(*command, "--output", tmp_path / "o.vcf", "--output", tmp_path / "o.tsv")
    assert said.code == 0, said.err
    lines = (tmp_path / "o.vcf").read_text().splitlines()
    heads = [re.match(r'##INFO=<ID=(\w[\w.]*),.*Description="(.*?): ', line) for line in lines]
    described = {head[1]: head[2] for head in heads if head and head[1].startswith("L2G_DIFF")}
    assert sorted(described.values()) == sorted(LABELS)
    values = dict(item.split("=") for item in lines[-1].split("\t")[7].split(";"))
    columns, row = (line.split("\t") for line in (tmp_path / "o.tsv").read_text().splitlines())
    scores = dict(zip((column.strip('"') for column in columns), row, strict=True))
    for field, label in described.items():
        assert float(values[field]) == pytest.approx(float(scores[f"diff_{label}"]), rel=1e-4, abs=1e-6)


def test_metrics_differ_in_mlflow(tmp_path: Path) -> None:
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "names", tmp_path)
    run_id = tracker.start("run", "run")
    tracker.log_metrics("run", {f"pearson[{label}]": i / 8 for i, label in enumerate(LABELS)})
    metrics = tracker._client.get_run(run_id).data.metrics
    assert sorted(metrics.values()) == [i / 8 for i in range(len(LABELS))]
    assert sum(name.startswith("pearson.") for name in metrics) == len(LABELS)


def test_arms_of_values_that_differ_in_signs() -> None:
    arms = vary("align.alphas", [[-1], [1], "<1", ">1"]).arms
    assert [next(iter(setting.values())) for setting in arms.values()] == [[-1], [1], "<1", ">1"]
    assert len(arms) == 4
