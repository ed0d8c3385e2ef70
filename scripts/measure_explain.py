"""What docs/explain.md measures: methods beside each other, and motifs of a network that was trained on shuffled labels.

python scripts/measure_explain.py methods runs/demo-fast --task enhancer_grammar --target dev --input FILE --top 50
python scripts/measure_explain.py shuffled runs/demo-fast --task enhancer_grammar --target dev --input FILE
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
import torch

from l2g_ray.explain.attribution import METHODS, Attributions, attribute, make_weights
from l2g_ray.explain.databases import match_motifs
from l2g_ray.explain.explanation import explain_output, open_request, shipped_truth
from l2g_ray.explain.request import ExplainRequest
from l2g_ray.models.embedder import EmbedderNet
from l2g_ray.run_folder import find_arm
from l2g_ray.sequence import encode


@click.group()
def main() -> None:
    """Measure."""


def _options(command: Any) -> Any:
    for decorate in (
        click.argument("run", type=click.Path(path_type=Path)),
        click.option("--task", required=True),
        click.option("--target", "output", required=True),
        click.option("--input", "sequences", required=True, type=click.Path(path_type=Path)),
        click.option("--top", type=int, default=500),
        click.option("--references", "n_references", type=int, default=20),
    ):
        command = decorate(command)
    return command


@main.command()
@_options
@click.option("--steps", type=int, default=50)
def methods(run: Path, task: str, output: str, sequences: Path, top: int, n_references: int, steps: int) -> None:
    """Completeness, agreement with the default method and time of every method, on the same sequences."""
    request = ExplainRequest(
        find_arm(run, task), output=output, sequences=sequences, top=top, n_references=n_references
    )
    opened = open_request(request)
    first = explain_output(replace(request, with_motifs=False), opened, opened.outputs[0])
    codes, lengths_bp = first.attributions.codes, first.attributions.lengths_bp
    weights = make_weights(opened.predictor.task, opened.outputs[0])
    click.echo("| method | completeness error, median | 95th percentile | cosine with the default | s a sequence |")
    click.echo("|---|---|---|---|---|")
    default: Attributions | None = None
    for method in METHODS:
        began = time.perf_counter()
        found = attribute(
            opened.predictor.model, codes, lengths_bp, weights, method=method, n_references=n_references, steps=steps
        )
        seconds = (time.perf_counter() - began) / len(codes)
        default = default or found
        errors = found.completeness_errors
        click.echo(
            f"| {method} | {np.median(errors):.1e} | {np.quantile(errors, 0.95):.1e} | "
            f"{np.median(_cosines(found, default)):.2f} | {seconds:.2f} |"
        )


@main.command()
@_options
@click.option("--epochs", type=int, default=12)
def shuffled(run: Path, task: str, output: str, sequences: Path, top: int, n_references: int, epochs: int) -> None:
    """Train the run's embedder again on rows whose labels are shuffled, and look for planted motifs with it."""
    request = ExplainRequest(
        find_arm(run, task, "embedder_only"), output, sequences, top=top, n_references=n_references
    )
    request = replace(request, pick="random")  # among the highest, motifs of middling strength are few
    opened = open_request(request)
    model = opened.predictor.model
    assert isinstance(model, EmbedderNet)
    table = pq.read_table(sequences)
    codes, lengths_bp = map(torch.from_numpy, encode(table["sequence"]))
    values = np.stack([table[name].to_numpy() for name in opened.predictor.task.labels], 1)
    labels = torch.from_numpy(np.random.default_rng(0).permutation(values)).float()
    torch.manual_seed(0)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for epoch in range(epochs):
        for rows in torch.randperm(len(labels)).split(64):
            loss = (model(codes[rows], lengths_bp[rows]) - labels[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        click.echo(
            f"epoch {epoch + 1}: loss of the last batch {float(loss.detach()):.3f}, variance {float(labels.var()):.3f}"
        )
    model.eval()
    explanation = explain_output(request, opened, opened.outputs[0])
    assert shipped_truth(opened.predictor.task) is not None
    for name, share in explanation.shares.items():
        click.echo(f"strongest tenth: {share['mass']:.3f} inside {name}, chance {share['expected']:.3f}")
    found = explanation.discovery.motifs if explanation.discovery else []
    click.echo(f"motifs: {[(motif.name, motif.consensus, motif.n_seqlets) for motif in found]}")
    planted = [target for target, _ in explanation.planted]
    for match in match_motifs([motif.ppm for motif in found], planted, q_below=0.05):
        click.echo(f"{match.target.name}: q {match.q_value:.1e}")
    click.echo(f"planted motifs found: {sum(bool(m and m.q_value < 0.05) for _, m in explanation.planted)}")


def _cosines(one: Attributions, other: Attributions) -> np.ndarray:
    a, b = one.contributions, other.contributions
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)


if __name__ == "__main__":
    main()
