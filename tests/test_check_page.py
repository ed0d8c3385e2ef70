"""The whole data check: its findings, its table and page, and real sets whose counts are known."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from check_parts import draw, make_part, make_task, needs_shared, plant, read_real
from rich.console import Console

from l2g_ray.data.check.balance import Part
from l2g_ray.data.check.splits import check_splits
from l2g_ray.errors import UserError
from l2g_ray.results.data_check import render_check, render_summary, write_check_page
from l2g_ray.results.terminal import print_fitted


def planted_parts() -> dict[str, Part]:
    texts, others = plant(70)
    generator = np.random.default_rng(0)
    labels, other_labels = (generator.integers(2, size=len(t)) for t in (texts, others))
    texts = [text.replace("T", "G", 9) if label else text for text, label in zip(texts, labels, strict=True)]
    valid = [*draw(30, 70, 50), texts[100]]
    return {
        "train": make_part(texts, labels),
        "valid": make_part(valid, np.arange(31) % 2),
        "test": make_part(others, other_labels),
    }


def texts_of(check: dict) -> str:
    return "\n".join(f"{finding['level']}: {finding['text']}" for finding in check["findings"])


def test_findings_tell_numbers_and_what_to_do() -> None:
    check = check_splits(make_task(), planted_parts())
    assert json.loads(json.dumps(check, allow_nan=False)) == check
    counts = check["duplicates"]["train_in_test"]
    told, flipped = texts_of(check), counts["reverse_complement"]
    assert f"warning: {counts['exact'] + flipped:,} of 150 (" in told
    assert f"({flipped} only as reverse complement)" in told
    assert check["duplicates"]["train_in_valid"]["exact"] == 1
    assert "The GC share alone predicts 'positive' in train" in texts_of(check)
    near = check["near"]["train_in_test"]["other_near_only"]
    assert f"warning: {near} of 140 (" in texts_of(check)
    levels = [finding["level"] for finding in check["findings"]]
    assert levels == sorted(levels, reverse=True)
    assert all(finding["text"].endswith(".") and "\n" not in finding["text"] for finding in check["findings"])


def test_clean_splits_have_no_findings() -> None:
    parts = {s: make_part(draw(n, 70, n), np.arange(n) % 2) for s, n in (("train", 400), ("valid", 90), ("test", 91))}
    check = check_splits(make_task(), parts)
    assert check["findings"] == []
    assert check["near"]["train_in_test"]["histogram"]["other_counts"] == [0] * 14


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression"])
@pytest.mark.parametrize("case", ["one row", "unknown letters", "short", "no valid"])
def test_odd_splits_pass(tmp_path: Path, kind: str, case: str) -> None:
    names = ["a", "b"] if kind == "binary" else ["a", "b", "c"]
    task = make_task(kind=kind, labels=names)
    texts = {"one row": draw(1), "unknown letters": ["N" * 70] * 3, "short": ["A", "C", "GT"], "no valid": draw(9)}[
        case
    ]
    n = len(texts)
    labels = np.arange(n) % 2 if task.is_classification else np.full((n, 3), [0.0, 1.0, np.nan], np.float32)
    splits = ("train", "test") if case == "no valid" else ("train", "valid", "test")
    check = check_splits(task, {split: make_part(texts, labels) for split in splits})
    json.dumps(check, allow_nan=False)
    assert check["duplicates"]["train_in_test"]["exact"] == n
    assert ("train_in_valid" in check["duplicates"]) == (case != "no valid")
    Console(file=io.StringIO(), width=110).print(render_check(check, "odd"))
    assert write_check_page(tmp_path, {"odd": check}).exists()


def test_near_can_be_left_out(tmp_path: Path) -> None:
    check = check_splits(make_task(), planted_parts(), near=False)
    assert check["near"] is None
    assert write_check_page(tmp_path, {"own": check}).exists()


@pytest.mark.parametrize("width", [40, 60, 80, 110])
def test_terminal_view_fits(width: int) -> None:
    check = check_splits(make_task(), planted_parts())
    console = Console(width=width, force_terminal=True, color_system=None, record=True, file=io.StringIO())
    print_fitted(console, render_check(check, "user/own"))
    print_fitted(console, render_summary({f"genomic_benchmarks/human_ensembl_regulatory_{i}": check for i in range(3)}))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "test seen in train" in text
    assert "…" not in text
    near = check["near"]["train_in_test"]
    assert len(re.findall(rf"\s{near['near_only']} / {near['other_near_only']}[\s,]", text)) == 3


def test_a_check_that_is_piped_wraps_nothing() -> None:
    check = check_splits(make_task(), planted_parts())
    console = Console(width=80, file=io.StringIO(), record=True)
    print_fitted(console, render_check(check, "user/own"))
    lines = console.export_text().splitlines()
    assert all(f"  ! {f['text']}" in lines for f in check["findings"] if f["level"] == "warning")


class Page(HTMLParser):
    VOID = ("meta", "link", "img", "br", "use", "path")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_page_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    check = check_splits(make_task(labels=["<none>", "a & b"]), planted_parts())
    path = write_check_page(tmp_path / "new", {"user/own": check, "user/<two>": check})
    text = path.read_text("utf-8")
    page = Page(text)
    assert page.open == []
    assert page.tags.count("svg") == 8
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert "script" not in page.tags
    assert "@import" not in text
    assert "<none>" not in text
    assert "user/<two>" not in text
    assert "prefers-color-scheme: dark" in text
    assert all(
        finding["text"].split(":")[0].replace("'", "&#39;").split("&#39;")[0] in text for finding in check["findings"]
    )
    assert text.index(check["findings"][0]["text"][:40]) < text.index("<svg")
    assert json.loads((tmp_path / "new" / "check.json").read_text()) == {"user/own": check, "user/<two>": check}
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"check.html", "check.json"}


def test_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_check_page(tmp_path / "file" / "folder", {})


def test_results_need_no_torch() -> None:
    code = "import sys, l2g_ray.results.data_check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- real sets -------------------------------------------------------------------------------------------------------

REAL = [("nt", "enhancers", 100, 100), ("nt", "splice_sites_all", 31, 32), ("gue", "prom_core_all", 42, 43)]


@needs_shared
@pytest.mark.parametrize(("bench", "name", "train_rows", "test_rows"), REAL)
def test_published_overlaps(bench: str, name: str, train_rows: int, test_rows: int) -> None:
    task, parts = read_real(bench, name)
    check = check_splits(task, parts, near=False)
    assert check["duplicates"]["train_in_test"] == {
        "exact": train_rows,
        "reverse_complement": 0,
        "other_exact": test_rows,
        "other_reverse_complement": 0,
    }
    texts = {split: [t for chunk in part.sequences() for t in chunk.to_pylist()] for split, part in parts.items()}
    for split, rows in texts.items():
        assert check["repeats"][split]["exact"] == len(rows) - len(set(rows))
