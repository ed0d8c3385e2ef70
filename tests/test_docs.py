"""The site builds strictly and offline, its reference is that of the code, and its pages keep to their size and words."""

from __future__ import annotations

import html
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import griffe
import pytest
import yaml

import l2g_ray
from l2g_ray.cli.main import main
from l2g_ray.cli.options import GROUPS, Command
from l2g_ray.config import known_keys
from scripts.docs_hooks import OFFERED, convert_notebook

ROOT = Path(__file__).parents[1]
# What people read, but for the generated reference and the change log.
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = re.compile(r"<!-- tables: \S+ -->.*?<!-- end of tables -->", re.DOTALL)
MOST_WORDS = 14_000
MOST_LINES_OF_THE_README = 150
# Words that a reader has to puzzle over, with what to write instead.
RETIRED = {
    r"\b(?:is|are|was|were|be) told\b": "reports, prints, logs",
    r"\btells\b": "reports, prints, shows",
    r"\bsaid so\b": "reports, warns",
    r"\bstands? (?:in|beside|under|above|there)\b": "is in, is next to, is stored under",
    r"\bparted\b": "split",
    r"\bcut off\b": "held out, removed",
    r"\bbegins? again\b": "restarts",
    r"\banew\b": "again; restarts, is recomputed",
    r"\bmade again\b": "recomputed",
    r"\bdo(?:es)? not tell\b": "does not report, does not name",
    r"\bwent on(?: from)?\b": "resumed, was trained from",
    r"\bpart (?:it|them|the (?:rows|data))\b": "split",
    r"\bgo(?:es)? on\b": "resumes, continues",
    r"\bbears? with\b": "tolerates",
    r"\bby hand\b": "manually",
    r"\bby itself\b": "automatically, alone",
    r"\bof (?:its|their) own(?=[.,;:)]|$)": "separate, or nothing",
    r"\bso many\b": "the number",
    r"\bone more than there (?:is|are)\b": "the number + 1",
    r"\bfor granted\b": "assume",
    r"\bthe rival\b": "baseline",
    r"\bthe other sides?\b": "baseline",
    r"\bthe control arm\b": "the embedder-only control",
    r"\bwho wants\b": "for X, keep Y",
    r"\bnot before\b[^.]*\bthen only\b": "after",
    r"\bpatience\b": "the condition, in seconds or epochs",
}
# Globs below the repository's root of further files without these words.
ALSO: tuple[str, ...] = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/reference/*.md",
    "docs/*.css",
    "docs/tutorials/*.ipynb",
    "jobs/*",
    "cluster*.yaml",
    "l2g_ray/**/*.py",
    "l2g_ray/**/*.yaml",
    "l2g_ray/**/*.html",
    "l2g_ray/**/*.js",
    "l2g_ray/**/*.css",
    "benchmarks/**/*.py",
    "scripts/**/*.py",
    "tests/*.py",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does: a broken link or anchor is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    return folder


class _Loads(HTMLParser):
    """What a page fetches when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag in ("script", "img", "iframe", "source", "video"):
            self.addresses.append(found.get("src", ""))
        elif tag == "link" and found.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(found.get("href", ""))


def test_the_site_needs_no_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        loads = _Loads()
        loads.feed(page.read_text())
        assert not [one for one in loads.addresses if re.match(r"(?:https?:)?//", one)], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet.name


@pytest.mark.browser
def test_search_works_from_disk(watched: tuple[Any, list[str], list[str]], site: Path) -> None:
    page, problems, requests = watched
    page.goto((site / "reference" / "python.html").as_uri())
    # A query that comes before the page's scripts listen is lost, so it is given until it is answered.
    page.wait_for_function(
        """() => {
            const input = document.querySelector("input[name=query]");
            input.focus();
            input.value = "scoring of variants";
            input.dispatchEvent(new Event("input", {bubbles: true}));
            input.dispatchEvent(new Event("keyup", {bubbles: true}));
            return document.querySelector(".md-search-result__link");
        }""",
        polling=1000,
    )
    page.wait_for_selector(".md-search-result__link")
    page.click(".md-search-result__link >> nth=0")
    page.wait_for_url(re.compile("^(?!.*python[.]html).*[.]html"))
    assert problems == []
    assert not [url for url in requests if not url.startswith("file:")]


def test_the_home_page_is_the_readme(site: Path) -> None:
    home = (site / "index.html").read_text()
    assert "Three lines" in home
    assert 'href="get_started.html"' in home
    assert 'href="docs/' not in home


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below one, with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from walk(inner, (*path, name))


COMMANDS = dict(walk(main))


def test_the_reference_has_every_command_and_option(site: Path) -> None:
    page = re.sub(r"<[^>]+>", "", (site / "reference" / "cli.html").read_text())
    for path, command in COMMANDS.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert max(parameter.opts, key=len) in page, (path, parameter.opts)


def test_the_reference_keeps_the_groups_of_a_help(site: Path) -> None:
    """A table for each group, under its name."""
    page = (site / "reference" / "cli.html").read_text()
    (section,) = re.findall(r'<h2 id="l2g-ray-run">.*?(?=<h2)', page, re.DOTALL)
    tables = dict(
        re.findall(r"<p><strong>(\w+)</strong></p>\s*(?:<div[^>]*>)?<table>(.*?)</table>", section, re.DOTALL)
    )
    run = COMMANDS["run",]
    assert isinstance(run, Command)
    groups = run.list_sections(click.Context(run, info_name="run", **run.context_settings))
    assert list(tables) == list(groups) == [*GROUPS, "Options"]
    for name, records in groups.items():
        rows = re.findall(r"<td><code>(.*?)</code></td>\s*<td>(.*?)</td>", tables[name])
        shown = [
            (html.unescape(names).replace("<wbr>", ""), html.unescape(re.sub(r"<[^>]+>", "`", meaning)))
            for names, meaning in rows
        ]
        assert shown == [(names, " ".join(meaning.split())) for names, meaning in records], name
    assert "[binary|<wbr>multiclass|<wbr>multilabel|<wbr>regression]" in html.unescape(tables["Data"])
    assert "<strong>Output</strong>" not in re.findall(r'<h2 id="l2g-ray-predict">.*?(?=<h2)', page, re.DOTALL)[0]


def test_the_reference_has_no_escapes_of_markdown(site: Path) -> None:
    for name in ("cli", "settings"):
        page = re.sub(
            r"<pre>.*?</pre>|<script.*?</script>",
            "",
            (site / "reference" / f"{name}.html").read_text(),
            flags=re.DOTALL,
        )
        assert "\\" not in page, name


def find_faults(name: str, documented: griffe.Class | griffe.Function) -> list[str]:
    """What numpydoc cannot read in a docstring, or misses: parameters, types, descriptions."""
    if documented.docstring is None:
        return [f"{name}: no docstring"]
    sections = {section.kind: section.value for section in documented.docstring.parse("numpy")}
    kinds = griffe.DocstringSectionKind
    listed = sections.get(kinds.parameters, [])
    described = [one.name.lstrip("*") for one in listed]
    signature = [one.name for one in documented.parameters if one.name != "self"]
    faults = [] if described == signature else [f"{name}: describes {described}, takes {signature}"]
    returns, raised = sections.get(kinds.returns, []), sections.get(kinds.raises, [])
    if isinstance(documented, griffe.Function) and not returns:
        faults.append(f"{name}: no Returns")
    for item in (*listed, *returns, *raised, *sections.get(kinds.attributes, [])):
        if not (item.annotation and re.match(r"[A-Z`\d\w]", item.description)):
            faults.append(f"{name}: no type or no description: {item.annotation or item.name}")
    faults += [f"{name}: raises '{one.annotation}'" for one in raised if not str(one.annotation).isidentifier()]
    return faults


def test_docstrings_of_the_reference_are_numpydoc() -> None:
    package = griffe.load("l2g_ray", search_paths=[ROOT], resolve_aliases=True)
    faults, documented = [], 0
    for name in OFFERED:
        one = package[name].final_target
        methods = [(f"{name}.{key}", member) for key, member in one.members.items() if not key.startswith("_")]
        for inner, member in [(name, one), *(methods if one.is_class else [])]:
            if isinstance(member, griffe.Class | griffe.Function):
                documented += 1
                faults += find_faults(inner, member)
    assert (documented, faults) == (12, [])


def test_faults_of_a_docstring_are_found() -> None:
    source = '''
    def run(folder: str, arm: str = "l2g") -> str:
        """Run.

        Parameters
        ----------
        folder : the folder of the run.

        Returns
        -------
        str

        Raises
        ------
        UserError : no folder.
        """
    '''
    with griffe.temporary_visited_module(inspect.cleandoc(source)) as module:
        assert find_faults("run", module["run"]) == [
            "run: describes ['folder'], takes ['folder', 'arm']",
            "run: no type or no description: the folder of the run.",
            "run: no type or no description: str",
            "run: no type or no description: UserError : no folder.",
            "run: raises 'UserError : no folder.'",
        ]


def test_the_python_reference_is_what_the_package_offers(site: Path) -> None:
    assert set(OFFERED) == set(l2g_ray.__all__) - {"__version__"}
    page = (site / "reference" / "python.html").read_text()
    for name in OFFERED:
        assert f'id="l2g_ray.{name}"' in page
    assert "open_arm" not in page
    text = re.sub(r"<[^>]+>", "", page)
    assert "arm: str = BEST," in text, "types are in the signatures"
    # Each parameter is an entry with its type as code; no backtick of a description is left.
    assert "run (str or Path or Run) – The folder of a run, of one of its tasks" in " ".join(text.split()).replace(
        "( ", "("
    )
    assert "`" not in text


def read_commands() -> Iterator[tuple[str, list[str]]]:
    """Each call of l2g-ray in a code block of a page, with the page's name."""
    for page in PAGES:
        for block in re.findall(r"^```(?:sh|console|yaml)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                call = re.sub(r"\s+#.*|\s>\s.*|\s[|]\ssource\b.*", "", line)
                if found := re.search(r"(?:^|\s)l2g-ray (.+)", call):
                    yield page.name, shlex.split(found[1])


def test_every_command_of_a_page_is_one() -> None:
    """Its command and its options exist, also where the page's commands are not run by a test."""
    commands = list(read_commands())
    assert len(commands) > 60
    for page, words in commands:
        path = ()
        for word in words:
            if (*path, word) not in COMMANDS:
                break
            path = (*path, word)
        path = (*path, "start") if path == ("server",) else path  # what it does without a subcommand
        assert path, (page, words)
        known = {name for parameter in COMMANDS[path].params for name in parameter.opts}
        given = {word.partition("=")[0] for word in words if word.startswith("-") and not re.match(r"-\d", word)}
        assert given <= known, (page, words)


def test_completion_works_as_the_page_turns_it_on() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    lines = dict(
        re.findall(r"^(.*_L2G_RAY_COMPLETE=(?:bash|zsh|fish)_source.*?)\s+# \S+?(bash|zsh|fish)", page, re.MULTILINE)
    )
    assert sorted(lines.values()) == ["bash", "fish", "zsh"]
    (line,) = (line for line, shell in lines.items() if shell == "bash")
    script = (
        f'{line}; COMP_WORDS=(l2g-ray run --preset s); COMP_CWORD=3; _l2g_ray_completion l2g-ray; echo "$COMPREPLY"'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("smoke\n", "")


def test_every_setting_of_a_page_is_one() -> None:
    known = set(known_keys())
    for page, words in read_commands():
        values = [words[i + 1] for i, word in enumerate(words) if word in ("--set", "--vary")]
        assert {value.partition("=")[0] for value in values} <= known, (page, words)


def test_every_setting_has_a_sentence_on_the_reference_page(site: Path) -> None:
    page = (site / "reference" / "settings.html").read_text()
    for key in known_keys():
        (meaning,) = re.findall(
            rf"<td><code>{re.escape(key)}</code></td>(?:\s*<td>.*?</td>){{2}}\s*<td>(.*?)</td>", page
        )
        assert re.fullmatch(r"[A-Z].*[.]", meaning), key


def test_pages_are_short() -> None:
    words = {page.name: len(GENERATED.sub("", page.read_text()).split()) for page in PAGES}
    assert sum(words.values()) <= MOST_WORDS, sorted(words.items(), key=lambda item: -item[1])
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES_OF_THE_README


def find_retired(text: str) -> list[str]:
    """What a text has of the retired words, with what to write instead."""
    flat = re.sub(r"\s+", " ", text)
    return [f"{m[0]!r}: {better}" for word, better in RETIRED.items() for m in re.finditer(word, flat, re.IGNORECASE)]


def test_retired_words_are_found() -> None:
    assert find_retired("The rows are parted; the run\n  goes on.") == [
        "'parted': split",
        "'goes on': resumes, continues",
    ]
    assert not find_retired("Departed, stands for, a departed side; tell apart.")


def read_prose(page: Path) -> str:
    """The text of a file; of a notebook that of its cells, without outputs."""
    text = page.read_text()
    if page.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def test_prose_of_a_notebook_is_its_cells(tmp_path: Path) -> None:
    output = {"output_type": "stream", "name": "stdout", "text": ["it is parted"]}
    cells = [
        {"cell_type": "markdown", "source": ["The run\n", "goes on."]},
        {"cell_type": "code", "source": "print(1)", "outputs": [output]},
    ]
    (tmp_path / "one.ipynb").write_text(json.dumps({"cells": cells}))
    assert find_retired(read_prose(tmp_path / "one.ipynb")) == ["'goes on': resumes, continues"]


@pytest.mark.parametrize("glob", ALSO)
def test_globs_find_files(glob: str) -> None:
    assert list(ROOT.glob(glob))


@pytest.mark.parametrize(
    "page",
    [*PAGES, *(path for glob in ALSO for path in sorted(ROOT.glob(glob)) if path != Path(__file__))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_files_have_no_retired_words(page: Path) -> None:
    assert not find_retired(read_prose(page))


@pytest.mark.parametrize("path", sorted(COMMANDS), ids=lambda path: " ".join(path) or "l2g-ray")
def test_help_has_no_retired_words(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    helps = [command.help or "", command.epilog or ""]
    helps += [parameter.help or "" for parameter in command.params if isinstance(parameter, click.Option)]
    assert not find_retired("\n".join(helps))


def test_a_notebook_becomes_a_page(tmp_path: Path) -> None:
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["two\n", "lines\n"]},
        {"output_type": "display_data", "data": {"image/png": "iVBO\n", "text/plain": "<Figure>"}},
        {"output_type": "execute_result", "data": {"text/html": "<style>p</style>\n<table>\n\n</table>"}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# A title\n", "Words."]},
        {"cell_type": "code", "source": "print(1)", "outputs": outputs},
    ]
    (tmp_path / "one.ipynb").write_text(json.dumps({"cells": cells}))
    page = convert_notebook(tmp_path / "one.ipynb")
    assert page.startswith("# A title\nWords.\n\n```python\nprint(1)\n```\n\n```text\ntwo\nlines\n```\n\n<img ")
    assert page.endswith('base64,iVBO">\n\n<table>\n</table>\n')


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == l2g_ray.__version__
    assert {"cff-version", "message", "title", "authors", "preferred-citation"} <= cited.keys()
