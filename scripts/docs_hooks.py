"""Pages of the site that are made from other files: mkdocs calls these functions (`hooks` in mkdocs.yml).

The home page is the README, `contributing` and `changelog` are the files of those names, the references are made from the code,
so they cannot drift, and each notebook of docs/tutorials becomes a page of the section "Tutorials", which is there only then.
"""

from __future__ import annotations

import html
import inspect
import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
# Pages that are a file of the repository's root.
WHOLE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
PRESETS = ("fast", "paper")
# Pages and files that live elsewhere in the site than in the repository.
MOVED = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
# What `import l2g_ray` offers, in the order of the Python reference.
OFFERED = ("run", "suite", "Run", "load", "Predictor", "UserError")


def on_config(config: Any) -> Any:
    """Put the tutorials behind "Install"."""
    if pages := [{_title(path): _tutorial_uri(path)} for path in _list_notebooks()]:
        config.nav.insert(3, {"Tutorials": pages})
    return config


def on_files(files: Any, *, config: Any) -> Any:
    """Add a page for each notebook."""
    from mkdocs.structure.files import File

    for path in _list_notebooks():
        files.append(File.generated(config, _tutorial_uri(path), content=convert_notebook(path)))
    return files


def _list_notebooks() -> list[Path]:
    return sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


def _tutorial_uri(path: Path) -> str:
    return f"tutorials/{path.stem}.md"


def _title(path: Path) -> str:
    found = re.search(r"^# (.+)$", convert_notebook(path), re.MULTILINE)
    return found[1] if found else path.stem


def convert_notebook(path: Path) -> str:
    """Return a notebook as Markdown: its text, its code, and the stored outputs (text, tables as HTML, pictures inline)."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source:
            parts.append(f"```python\n{source}\n```")
            parts += [shown for output in cell["outputs"] if (shown := _show_output(output))]
    return "\n\n".join(parts) + "\n"


def _show_output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="Output of the cell above" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    if "text/html" in data:
        kept = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
        return "\n".join(line for line in kept.splitlines() if line.strip())
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return f"```text\n{text}\n```" if text else ""


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the page's Markdown, with what is made from other files put in."""
    name = page.file.src_uri
    if name in WHOLE:
        return adapt_links((ROOT / WHOLE[name]).read_text())
    if name == "reference/cli.md":
        return markdown.replace("<!-- commands -->", list_commands())
    if name == "reference/settings.md":
        return markdown.replace("<!-- settings -->", list_settings())
    if name == "reference/python.md":
        return markdown.replace("<!-- offered -->", list_offered())
    if name == "ablations.md":
        return markdown.replace("<!-- studies -->", list_studies())
    if name == "baselines.md":
        return markdown.replace("<!-- baselines -->", list_baselines())
    return markdown


def adapt_links(text: str) -> str:
    """Return a root file's Markdown with its links as seen from the site's first page; a file outside of it stays as a name."""

    def replace(found: re.Match[str]) -> str:
        label, target = found[1], found[2]
        if target.startswith("docs/"):
            return f"[{label}]({target.removeprefix('docs/')})"
        if target in MOVED:
            return f"[{label}]({MOVED[target]})"
        return label if re.fullmatch(r"[\w./-]+", target) else found[0]

    return re.sub(r"\[([^\[\]]*)\]\(([^()\s]+)\)", replace, text)


def list_commands() -> str:
    """Return a section for each command, as its `--help` has it."""
    import click

    from l2g_ray.cli.main import main
    from l2g_ray.cli.options import Command

    def describe(command: click.Command, context: click.Context) -> str:
        words = context.command_path
        parts = [f"{'#' * (words.count(' ') + 1)} {words}" if " " in words else ""]
        parts.append(f"```text\n{words} {' '.join(command.collect_usage_pieces(context))}\n```")
        parts.append(_format_help(command.help or ""))
        if isinstance(command, Command):
            sections = command.list_sections(context)
        else:
            records = [record for one in command.get_params(context) if (record := one.get_help_record(context))]
            sections = {"Options": records}
        for title, records in sections.items():
            # A list of choices may wrap after each bar, not within a word.
            rows = [
                f"| <code>{html.escape(names).replace('|', '&#124;<wbr>')}</code> | {_escape(text)} |"
                for names, text in records
            ]
            parts += [f"**{title}**"] if len(sections) > 1 else []
            parts.append("\n".join(["| option | meaning |", "|---|---|", *rows]))
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                if inner is not None and not inner.hidden:
                    parts.append(describe(inner, click.Context(inner, info_name=name, parent=context)))
        return "\n\n".join(part for part in parts if part)

    return describe(main, click.Context(main, info_name="l2g-ray", **main.context_settings))


def _format_help(text: str) -> str:
    """Return a command's help as Markdown: paragraphs, and what click keeps as it is (after a backspace) as code."""
    parts = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        kept = paragraph.removeprefix("\b\n")
        if kept == paragraph:
            parts.append(_escape(" ".join(paragraph.split())))
            continue
        title, _, rest = kept.partition("\n")
        if rest and title.endswith(":"):
            parts.append(f"{_escape(title)}\n\n```text\n{inspect.cleandoc(rest)}\n```")
        else:
            parts.append(f"```text\n{kept}\n```")
    return "\n\n".join(parts)


def _escape(text: str) -> str:
    """Return text of a help in which Markdown finds no table cell, tag or emphasis, but code in backticks."""
    pieces = " ".join(text.split()).split("`")
    # Markdown has no backslash for `<`.
    plain = (re.sub(r"([|>*_\[\]])", r"\\\1", one).replace("<", "&lt;") for one in pieces)
    return "`".join(pieces[i] if i % 2 else one for i, one in enumerate(plain))


def list_settings() -> str:
    """Return a table for each section of the settings: key, its values in the presets, and its description."""
    from l2g_ray.config import Settings
    from l2g_ray.presets import resolve

    presets = {name: _flatten(resolve(name).model_dump(mode="json")) for name in PRESETS}
    described = describe_settings(Settings)
    parts = []
    for section in ("", *(key for key in described if "." not in key and key not in presets[PRESETS[0]])):
        about = described.get(section, "The run as a whole.")
        parts.append(f"## {section or 'run'}\n\n{about}\n")
        parts.append(f"| key | {' | '.join(PRESETS)} | meaning |\n|---|{'---|' * len(PRESETS)}---|")
        for key, values in ((key, [presets[name][key] for name in PRESETS]) for key in presets[PRESETS[0]]):
            if key.rpartition(".")[0].partition(".")[0] == section:
                parts.append(f"| `{key}` | {' | '.join(map(_show, values))} | {_escape(described[key])} |")
        parts.append("")
    return "\n".join(parts)


def describe_settings(section: Any, prefix: str = "") -> dict[str, str]:
    """Return the description of each setting and section below a section's class, by dotted key."""
    found = {}
    for name, field in section.model_fields.items():
        found[f"{prefix}{name}"] = field.description or ""
        if hasattr(field.annotation, "model_fields"):
            found |= describe_settings(field.annotation, f"{prefix}{name}.")
    return found


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if value == "":
        return "(empty)"
    if isinstance(value, list):
        return "[" + ", ".join(_show(one) for one in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def list_offered() -> str:
    """Return a block of mkdocstrings for each name that `import l2g_ray` offers."""
    return "\n\n".join(f"::: l2g_ray.{name}" for name in OFFERED)


def list_studies() -> str:
    """Return the table of the shipped ablations, as `l2g-ray ablate --list` prints them."""
    rows = [
        f"| `{name}` | {', '.join(study['arms'])} | {study['about']} |"
        for name, study in _read_arms()["studies"].items()
    ]
    return "\n".join(["| study | arms, the first is the control | about |", "|---|---|---|", *rows])


def list_baselines() -> str:
    """Return the table of all baselines, as `l2g-ray baseline --list` prints them."""
    from l2g_ray.arms import BASELINES

    about = {name: kind.about for name, kind in BASELINES.items()}
    about |= {name: arm["about"] for name, arm in _read_arms()["baselines"].items()}
    return "\n".join(["| name | model |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in about.items())])


def _read_arms() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "l2g_ray" / "studies" / "arms.yaml").read_text())
    return found
