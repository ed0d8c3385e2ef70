"""Fill the tables of the docs from the ledger.

    python -m scripts.results_tables            # between the marks of README.md, docs/results.md and docs/ablations.md
    python -m scripts.results_tables --check    # fails where a table is not what the ledger says

A mark is `<!-- tables: PART -->`; what follows it, up to `<!-- end of tables -->`, comes from `results/PART/*.json`. `PART:tasks` has
the table of its tasks alone.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from l2g_ray.arms import ENSEMBLE
from l2g_ray.results.comparison import HEADINGS, Compared, StudyFile, _arm_cells
from l2g_ray.results.rows import best_published, format_interval, format_number, list_weights, name_arm
from l2g_ray.studies.study import correct
from l2g_ray.tasks.metrics import find_metric
from scripts.ledger import LEDGER, ROOT, read_part

PAGES = tuple(ROOT / name for name in ("README.md", "docs/results.md", "docs/ablations.md"))
MARKED = re.compile(r"(<!-- tables: (\S+) -->\n).*?(<!-- end of tables -->)", re.DOTALL)


def make_tables(part: str, ledger: Path = LEDGER) -> str:
    """Return a part's tables in Markdown: of its studies, or of its tasks where it has none."""
    part, _, only = part.partition(":")
    files = read_part(part, ledger)
    if files and only == "tasks":
        return _list_tasks(files)
    if studies := [one for one in files if "study" in one]:
        return "\n\n".join(_make_study(same) for same in _group(studies))
    if not files:
        return f"No results yet: `python -m scripts.reproduce --data-dir DIR {part}` makes them."
    return "\n\n".join([_list_tasks(files), *([_rank(files)] if len(files) > 1 else []), *map(_list_arms, files)])


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """The first `words` columns are left-aligned, the others right."""
    line = "|" + "|".join("---" if i < words else "---:" for i in range(len(headings))) + "|"
    return "\n".join([f"| {' | '.join(headings)} |", line, *(f"| {' | '.join(row)} |" for row in rows)])


def _name(one: dict[str, Any]) -> str:
    return f"{one['bench']}/{one['row']['task']}"


def _list_tasks(files: list[dict[str, Any]]) -> str:
    rows = []
    for one in files:
        row, used = one["row"], one["row"]["used"]
        best = best_published(row)
        rows.append(
            [
                _name(one),
                row["metric"],
                f"**{format_number(used['test']['mean'])}** {format_interval(used['test'])}",
                f"{format_number(best['value'])} {best['model']}" if best else "–",
                ", ".join(f"{name_arm(arm)} {share:.0%}" for arm, share in list_weights(row)),
                str(len(used["test"]["per_seed"])),
                format_number(used["oof"]["mean"]),
                f"{row['cpu_s']:,.0f}",
            ]
        )
    headings = [
        "task",
        "metric",
        "ensemble, test",
        "best published, comparable",
        "arms by weight",
        "seeds",
        "OOF",
        "CPU s",
    ]
    total = sum(one["row"]["cpu_s"] for one in files) / 3600
    return f"{_table(headings, rows, 5)}\n\n{len(files)} tasks, {total:.1f} CPU hours."


def _rank(files: list[dict[str, Any]]) -> str:
    """What the run uses and each arm: mean and mean rank on test, over the tasks that have it; rank 1 is the best."""
    scores: dict[str, list[float]] = {}
    ranks: dict[str, list[float]] = {}
    for one in files:
        row = one["row"]
        sign = 1 if find_metric(row["metric"]).higher_is_better else -1
        tested = {arm: scored["test"]["mean"] for arm, scored in row["arms"].items()}
        tested[ENSEMBLE] = row["used"]["test"]["mean"]
        known = {arm: sign * score for arm, score in tested.items() if score is not None}
        for arm, score in known.items():
            scores.setdefault(arm, []).append(tested[arm])
            same = list(known.values()).count(score)
            ranks.setdefault(arm, []).append(sum(other > score for other in known.values()) + (same + 1) / 2)
    rows = [
        [name_arm(arm), str(len(ranks[arm])), format_number(mean(scores[arm])), f"{mean(ranks[arm]):.2f}",
         str(sum(rank == 1 for rank in ranks[arm]))]
        for arm in sorted(ranks, key=lambda arm: mean(ranks[arm]))
    ]  # fmt: skip
    return _table(["arm", "tasks", "mean test score", "mean rank", "first on"], rows, 1)


def _list_arms(one: dict[str, Any]) -> str:
    row, rows = one["row"], []
    shares = dict(list_weights(row))
    for arm, found in row["arms"].items():
        adds = found["adds"] or {"mean": None}
        rows.append(
            [
                name_arm(arm),
                format_number((found["oof"] or {}).get("mean")),
                f"{format_number(found['test']['mean'])} {format_interval(found['test'])}",
                f"{shares[arm]:.0%}" if arm in shares else "0",
                f"{format_number(adds['mean'], signed=True)} {format_interval(adds)}",
            ]
        )
    headings = [f"{_name(one)}: arm", f"OOF {row['metric']}", "test", "weight", "gain on OOF"]
    return f"{_source(one)}\n\n{_table(headings, rows, 1)}"


def _source(one: dict[str, Any]) -> str:
    return f"`{one['command']}` ({one['commit'][:7]}, {one['machine']['processor']})"


def _group(studies: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    names = dict.fromkeys((one["study"]["study"], next(iter(one["study"]["arms"]))) for one in studies)
    return [[s for s in studies if (s["study"]["study"], next(iter(s["study"]["arms"]))) == name] for name in names]


def _make_study(files: list[dict[str, Any]]) -> str:
    """One table of all files of a study: its arms may have run in several parts, each beside the control."""
    merged: dict[tuple[str, str], Compared] = {}
    for one in files:
        for row in one["study"]["compared"]:
            named: Compared = row | {"task": f"{one['bench']}/{row['task']}"}
            merged.setdefault((named["task"], row["arm"]), named)
    order = sorted(merged, key=lambda key: key[0])
    first = files[0]["study"]
    arms = {arm: values for one in files for arm, values in one["study"]["arms"].items()}
    study: StudyFile = {
        "schema": first["schema"], "study": first["study"], "about": first["about"], "arms": arms,
        "preset": files[0]["preset"], "command": "", "compared": correct([merged[key] for key in order]),
    }  # fmt: skip
    rows = []
    for arm in study["compared"]:
        cells = [cell if isinstance(cell, str) else " ".join(filter(None, cell)) for cell in _arm_cells(arm, study)]
        rows.append([f"{arm['task']}, {arm['metric']}", arm["arm"], *cells])
    control = next(iter(arms))
    hours = sum(one["cpu_s"] for one in files) / 3600
    commits = ", ".join(sorted({one["commit"][:7] for one in files}))
    return (
        f"**{study['study']}**: {study['about']}\n\n{_table(HEADINGS, rows, 2)}\n\n"
        f"Differences are from `{control}` over the same test rows and seeds (95 % bootstrap); p is corrected over this table. "
        f"{hours:.1f} CPU hours, those of the control in every part. First command: {_source(files[0])}; commits: {commits}."
    )


def fill(text: str, ledger: Path = LEDGER) -> str:
    """Return a page with the tables between its marks."""
    return MARKED.sub(lambda found: f"{found[1]}\n{make_tables(found[2], ledger)}\n\n{found[3]}", text)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a table is stale")
    check = parser.parse_args().check
    stale = {page: made for page in PAGES if (made := fill(page.read_text())) != page.read_text()}
    if not check:
        for page, made in stale.items():
            page.write_text(made)
    elif stale:
        names = ", ".join(str(page.relative_to(ROOT)) for page in stale)
        sys.exit(f"{names}: not what the ledger says; run python -m scripts.results_tables")


if __name__ == "__main__":
    main()
