"""Make the pictures of docs/pictures from a finished demo: `python scripts/make_pictures.py runs/demo-fast`.

Needs the extras `dev` and `explain`, and Chromium. The run's folder gets what `mutate`, `embed`, `explain` and `report` leave
there; the arm of vanilla fine-tuning becomes a run beside it, RUN-vanilla.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from l2g_ray.explain.request import find_prepared

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
DEMO = Path(__file__).parents[1] / "l2g_ray" / "data" / "demo"
EMBEDDED, MUTATED = "splice_junction", "enhancer_grammar"


def make_pictures(run: Path, target: Path) -> list[Path]:
    """Run the commands, take the pictures; returns their paths."""
    target.mkdir(parents=True, exist_ok=True)
    name, sequence = choose_sequence(run / MUTATED)
    command = [sys.executable, "-m", "l2g_ray.cli.main"]
    place = run / MUTATED / "mutagenesis" / "l2g" / name
    options = ["--arm", "l2g", "--sequence", sequence, "--target", "developmental", "--out", str(place)]
    subprocess.run([*command, "mutate", str(run), "--task", MUTATED, *options], check=True)
    vanilla = run.parent / f"{run.name}-vanilla"
    options = ["--out", str(vanilla.parent), "--name", vanilla.name]
    subprocess.run([*command, "baseline", "vanilla", f"demo/{EMBEDDED}", *options], check=True)
    subprocess.run(
        [*command, "embed", str(run), "--task", EMBEDDED, "--arm", "l2g", "--vanilla", str(vanilla)], check=True
    )
    explained = run / MUTATED / "explain" / "pictures"
    rows = ["--top", "1200", "--pick", "random", "--references", "10", "--database", "jaspar:insects"]
    options = ["--arm", "embedder_only", "--target", "developmental", *rows, "--out", str(explained)]
    subprocess.run([*command, "explain", str(run), "--task", MUTATED, *options], check=True)
    junctions = run / EMBEDDED / "explain" / "pictures"
    rows = ["--input", str(DEMO / EMBEDDED / "valid.parquet"), "--top", "60", "--references", "10", "--no-motifs"]
    for output in ("exon_intron", "intron_exon"):
        options = ["--arm", "l2g", "--target", output, *rows, "--out", str(junctions / output)]
        subprocess.run([*command, "explain", str(run), "--task", EMBEDDED, *options], check=True)
    subprocess.run([*command, "report", str(run), "--no-mlflow"], check=True)
    stored = {
        "heatmap.png": place / "heatmap.png",
        "logo.png": place / "logo.png",
        "embeddings.png": run / EMBEDDED / "embeddings" / "l2g" / "embeddings.png",
        "donor.png": junctions / "exon_intron" / "exon_intron" / "figures" / "positions.png",
        "acceptor.png": junctions / "intron_exon" / "intron_exon" / "figures" / "positions.png",
    }
    made = [Path(shutil.copy(path, target / file)) for file, path in stored.items()]
    return made + photograph(run / "report.html", explained / "explain.html", target)


def choose_sequence(task_folder: Path) -> tuple[str, str]:
    """The validation sequence with the highest label: something for the model to read."""
    prepared = find_prepared(task_folder, "run the demo again")
    table = prepared.table("valid")
    labels = table["label"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)[:, 0]
    row = int(labels.argmax())
    return table["id"][row].as_py(), table["sequence"][row].as_py()


def photograph(report: Path, explained: Path, target: Path) -> list[Path]:
    """The report on a desktop, light and dark, and on a phone; the page of an explanation, as far as its motifs go."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no browser: apt-get install chromium")
    made = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, shown, width, height, scheme in (
            ("report.png", report, 1100, 860, "light"),
            ("report_dark.png", report, 1100, 860, "dark"),
            ("report_phone.png", report, 390, 860, "light"),
            ("motifs.png", explained, 1100, 1000, "light"),
        ):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(shown.resolve().as_uri())
            page.screenshot(path=target / name)
            made.append(target / name)
        browser.close()
    return made


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python scripts/make_pictures.py RUN")
    try:
        made = make_pictures(Path(sys.argv[1]), PICTURES)
    except subprocess.CalledProcessError as error:
        # The command has said what was wrong.
        raise SystemExit(error.returncode) from None
    print(*made, sep="\n")
