"""`l2g-ray explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from l2g_ray.cli.model import with_arm, with_device

_METHODS = ("deeplift-shap", "integrated-gradients", "gradient-shap", "deeplift", "mutagenesis")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@with_arm
@click.option(
    "--output",
    help="Class or output to explain, or how its name begins.  [default: all of up to four; of a binary task the second]",
)
@click.option(
    "--sequences",
    type=click.Path(path_type=Path),
    help="FASTA, CSV, TSV or Parquet.  [default: validation rows of the run, and training rows where these are few]",
)
@click.option("--sequence-column", help="Column of that file that holds the sequences.")
@click.option(
    "--top", type=click.IntRange(min=1), default=500, show_default=True, help="How many of them to explain, by --pick."
)
@click.option(
    "--pick",
    type=click.Choice(["highest", "random"]),
    default="highest",
    show_default=True,
    help="Those with the highest value, or any: among the highest, motifs of middling strength are few.",
)
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    default=_METHODS[0],
    show_default=True,
    help="How contributions are computed; only the default adds up. Of arms that are linear in k-mers they are exact.",
)
@click.option(
    "--references",
    "n_references",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="Dinucleotide shuffles of each sequence to compare it with.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=2),
    default=50,
    show_default=True,
    help="Of integrated-gradients: points of a path; of gradient-shap: draws a reference.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the references, and of --pick random.")
@click.option("--rc-average", is_flag=True, help="Explain the mean prediction over both strands.")
@click.option("--motifs/--no-motifs", "with_motifs", default=True, show_default=True, help="Look for motifs.")
@click.option(
    "--core-bp",
    type=click.IntRange(min=5),
    help="TF-MoDISco's window.  [default: 21, or 15 where sequences are shorter than 200 bp]",
)
@click.option("--flank-bp", type=click.IntRange(min=1), help="On either side of it.  [default: 10, or 5]")
@click.option(
    "--min-seqlets", type=click.IntRange(min=1), default=100, show_default=True, help="Of a sign, for any motif."
)
@click.option("--max-seqlets", type=click.IntRange(min=1), default=20_000, show_default=True, help="Of a sign.")
@click.option(
    "--database",
    "databases",
    multiple=True,
    help="Known motifs to name the found ones by: jaspar:GROUP or a MEME file; several allowed.  "
    "[default: jaspar:vertebrates]",
)
@click.option(
    "--known",
    help="Motifs to expect: a file with one name a line, or a shipped list (deepstarr/deepstarr:developmental).",
)
@click.option(
    "--truth", type=click.Path(path_type=Path), help="Parquet of planted sites: id, motif, start, end, strand, output."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder.  [default: explain/ARM in the task's folder]")
@with_device("Pairs of a sequence and a reference", "what takes about 1 GB")
def explain(run: Path, **options: Any) -> None:
    """What a finished RUN's model has learned: contributions, motifs, names, logos, and a page.

    For an ensemble stands its arm with the largest weight of cnn, embedder_only and l2g; where none of these has weight, of
    gapped_kmer and positional_kmer.

    \b
    Examples:
      l2g-ray explain runs/demo-fast --task splice_junction --output exon_intron
      l2g-ray explain runs/demo-fast --task enhancer_grammar --output dev --database jaspar:insects
    """
    from rich.console import Console

    from l2g_ray.explain.explanation import ExplainRequest, explain_output, open_request
    from l2g_ray.explain.explanation_files import write_files
    from l2g_ray.explain.page import write_explanations
    from l2g_ray.results.explain_page import render_explanation
    from l2g_ray.results.terminal import print_fitted

    request = ExplainRequest(run=run, **{**options, "databases": options["databases"] or None})
    console = Console(stderr=True, highlight=False)
    opened = open_request(request)
    explanations = []
    for output in opened.outputs:
        name = opened.predictor.task.labels[output]
        with _Bar(console, name) as bar:
            explanation = explain_output(request, opened, output, progress=bar.show)
        write_files(explanation, opened.out)
        explanations.append(explanation)
    arm = opened.predictor.arm
    page = write_explanations(opened.out, opened.predictor.task, arm, explanations)
    shown = Console(highlight=False)
    click.echo(f"arm {arm.describe()}, model {arm.folder}")
    for explanation in explanations:
        print_fitted(shown, render_explanation(explanation.summary()))
    click.echo(f"page: {page}")
    for explanation in explanations:
        for warning in explanation.warnings:
            click.secho(f"WARNING: {explanation.output}: {warning}", err=True, fg="red", bold=True)


class _Bar:
    """What is under way: a bar on a terminal, else a line when something begins and at each quarter."""

    def __init__(self, console: Any, title: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.console, self.title = console, title
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self.row: Any = None
        self.told: set[tuple[str, int]] = set()

    def __enter__(self) -> _Bar:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """Take a step."""
        if self.bar is not None:
            if self.row is None:
                self.row = self.bar.add_task(what, total=total)
            self.bar.update(self.row, description=f"{self.title}: {what}", completed=done, total=total)
            return
        quarter = 4 * done // max(total, 1)
        if (what, quarter) not in self.told:
            self.told.add((what, quarter))
            self.console.print(f"{self.title}: {what}, {done:,} of {total:,}" if done else f"{self.title}: {what}")
