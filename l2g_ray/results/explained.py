"""What `explain`, `mutate` and `embed` left in a task's folder, read for the report. Files that do not fit are named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2g_ray.errors import UserError
from l2g_ray.results.comparison import Compared, StudyFile, judge_arm
from l2g_ray.results.report_tables import Table, make_table
from l2g_ray.results.rows import format_interval, format_number

MAX_MUTATED = 4  # pictures of single sequences in a report
MAX_LOGOS = 12
# Figures of an explained output, by their names in `figures/`.
_CAPTIONS = {
    "positions": "Where contributions stand: means over the sequences, by position.",
    "known": "Known and found motifs.",
}


@dataclass(frozen=True)
class Shown:
    """A stored picture (`svg` is the file's text) with its caption, and the table behind it."""

    caption: str
    svg: str
    table: Table | None = None


@dataclass(frozen=True)
class Part:
    """A heading with text, tables (caption, table) and pictures."""

    title: str
    text: Sequence[str] = ()
    warnings: Sequence[str] = ()
    tables: Sequence[tuple[str, Table]] = ()
    pictures: Sequence[Shown] = field(default=())


def read_explained(task_folder: Path) -> list[Part]:
    """Return everything there is, in the order motifs, embeddings, mutagenesis; nothing where nothing was made."""
    parts = []
    for path in sorted(task_folder.glob("explain/*/explain.json")):
        parts += _read(path, _list_motifs)
    for path in sorted(task_folder.glob("embeddings/**/embeddings.json")):
        parts += _read(path, _embeddings)
    mutated = sorted(task_folder.glob("mutagenesis/**/mutagenesis.json"))
    for path in mutated[:MAX_MUTATED]:
        parts += _read(path, _mutagenesis)
    if len(mutated) > MAX_MUTATED:
        parts.append(
            Part("Further mutagenesis", [f"{len(mutated) - MAX_MUTATED} more in {task_folder / 'mutagenesis'}"])
        )
    return parts


def read_study(folder: Path) -> Part:
    """Return an ablation (after the paper's Fig. 5): its arms with intervals, and differences from the first, in pairs.

    Raises UserError where the folder holds no study, or one that cannot be read.
    """
    path = folder / "study.json"
    try:
        told = json.loads(path.read_text("utf-8"))
        lines = [
            [
                one["task"],
                one["metric"],
                one["arm"],
                f"{format_number(one['test']['mean'])} {format_interval(one['test'])}",
                _describe_difference(one, told),
            ]
            for one in told["compared"]
        ]
        table = make_table(["Task", "Metric", "Arm", "Test", "Difference from the first arm"], lines)
        picture = Shown(f"Arms of the study '{told['study']}'.", _text(folder / "study.svg"), table)
        return Part(f"Study: {told['study']}", [told["about"], told.get("command", "")], pictures=[picture])
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; give the folder of a finished study") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {error}); run the study again") from None


def _describe_difference(one: Compared, study: StudyFile) -> str:
    difference = one.get("difference")
    if not difference:
        return "–"
    return f"{format_number(difference['mean'], signed=True)} {format_interval(difference)} {judge_arm(one, study)}"


def _read(path: Path, make: Callable[[dict[str, Any], Path], list[Part]]) -> list[Part]:
    try:
        return make(json.loads(path.read_text("utf-8")), path.parent)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"{path} could not be read ({type(error).__name__}: {error}); make it again with this version"
        return [Part(path.parent.name, warnings=[told])]


def _list_motifs(told: Mapping[str, Any], folder: Path) -> list[Part]:
    """Return a part for each explained output of a model; `folder` is named after the model (l2g, embedder_only)."""
    return [_motifs(summary, folder, _name_arm(told)) for summary in told["outputs"]]


def _name_arm(told: Mapping[str, Any]) -> str:
    """Return the arm that was read, with what it is to the run's ensemble."""
    return f"{told['arm']} ({told['role']})" if told.get("role") else str(told.get("arm", "not named"))


def _motifs(told: Mapping[str, Any], folder: Path, arm: str) -> Part:
    errors = told["completeness"]
    text = [
        f"Arm: {arm}. Contributions to {told['explained']} by {told['method']}. Completeness error (how far they are from adding up, "
        f"relative): median {errors['median']:.1e}, largest {errors['max']:.1e}.",
        *told["notes"],
    ]
    lines = [
        [
            motif["motif"],
            motif["seqlets"],
            motif["mean_contribution"],
            motif["consensus"],
            motif["match"] or None,
            None if motif["q_value"] is None else f"{motif['q_value']:.1e}",
        ]
        for motif in told["motifs"]
    ]
    table = make_table(["Motif", "Seqlets", "Mean contribution", "Consensus", "Best match", "q"], lines)
    own = folder / told["folder"]
    pictures = [(own / "figures" / f"{name}.svg", caption) for name, caption in _CAPTIONS.items()]
    pictures += [
        (
            own / "logos" / f"{motif['motif']}_contribution.svg",
            f"Motif {motif['motif']}: {motif['match'] or 'no match'}.",
        )
        for motif in told["motifs"][:MAX_LOGOS]
    ]
    return Part(
        f"What {told['output']} is read from ({folder.name})",
        text,
        told["warnings"],
        [(f"Motifs of {told['output']}", table)] if lines else [],
        [Shown(caption, _text(path)) for path, caption in pictures if path.exists()],
    )


def _embeddings(told: Mapping[str, Any], folder: Path) -> list[Part]:
    layers = {"backbone": "CNN features", "tokens": "tokens", "language_model": "language model"}
    lines = [
        [
            entry["point"],
            layers.get(entry["layer"], entry["layer"]),
            entry["silhouette"],
            f"{sum(entry['variance']):.0%}",
        ]
        for entry in told["embeddings"]
    ]
    table = make_table(["When", "Layer", "Silhouette", "Variance in the picture"], lines)
    rows = f"{told['rows']:,} of {told['rows_of_split']:,} rows of the {told['split']} split"
    caption = f"First two principal components, {rows}; silhouette with {told['metric']} distance."
    text = ["The test split was opened for this picture only."] if told["split"] == "test" else []
    if "arm" in told:
        text.append(f"Of the arm {_name_arm(told)}, which predicts from: {', '.join(told['predicts_from'])}.")
    text += [f"Note: {note}" for note in told.get("notes") or []]
    picture = Shown(caption, _text(folder / "embeddings.svg"), table)
    return [Part("Embeddings", text, pictures=[picture])]


def _mutagenesis(told: Mapping[str, Any], folder: Path) -> list[Part]:
    lines = [
        [change["position"], f"{change['from']} to {change['to']}", change["difference"]]
        for change in told["strongest"]
    ]
    table = make_table(["Position", "Change", f"Change in {told['quantity']}"], lines)
    about = f"{told['id']}, {told['output']}"
    text = [f"Of the arm {told['arm']}."] if "arm" in told else []  # of an earlier version
    pictures = [
        Shown(
            f"Every single-base change of {about}: change in {told['quantity']}.", _text(folder / "heatmap.svg"), table
        ),
        Shown(f"Mean effect of losing each base of {about}.", _text(folder / "logo.svg")),
    ]
    return [Part(f"Mutagenesis of {about}", text, pictures=pictures)]


def _text(path: Path) -> str:
    return path.read_text("utf-8")
