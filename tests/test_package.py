"""What is shipped: files of the source distribution and the wheel, the README of an index, the container's recipe, sizes."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import packaging
import pytest

from scripts.install_sizes import find_packages, list_rows, list_unpinned, main, measure, normalise

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Of a checkout, which also holds environments and runs.
SOURCES = ("l2g_ray", "benchmarks", "docs", "jobs", "results", "scripts", "tests")
BUILD = "from setuptools import build_meta as b; import sys; print(getattr(b, sys.argv[1])(sys.argv[2]))"


def list_files(folder: Path) -> set[str]:
    """Paths of a folder's files below the repository's root, but for what Python makes."""
    return {
        str(path.relative_to(ROOT)) for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }


def build(kind: str, source: Path, out: Path) -> Path:
    """A distribution, built as pip does but with this environment's setuptools: no network."""
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD, kind, str(out)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    return out / built.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution's folder, unpacked."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "checkout"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, source / path.name)
    # What must not be shipped, though it lies in a checkout.
    for name in (
        ".venv/pyvenv.cfg",
        "runs/a/leaderboard.json",
        "l2g_ray/__pycache__/a.pyc",
        "benchmarks/results/a.json",
    ):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    with tarfile.open(build("build_sdist", source, folder / "dist")) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (found,) = (folder / "sdist").iterdir()
    return found


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> zipfile.ZipFile:
    """The wheel, built from the source distribution."""
    return zipfile.ZipFile(build("build_wheel", sdist, sdist.parents[1] / "dist"))


@pytest.fixture(scope="module")
def facts(wheel: zipfile.ZipFile) -> Message:
    """The wheel's metadata."""
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return message_from_string(wheel.read(name).decode())


def test_the_source_distribution_has_docs_changes_and_tests(sdist: Path) -> None:
    found = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file()}
    wanted = {path for name in SOURCES for path in list_files(ROOT / name)}
    wanted = {path for path in wanted if not path.startswith("benchmarks/results/")}
    assert not wanted - found
    top = {"README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "Dockerfile"}
    assert {*top, "constraints.txt", "mkdocs.yml", "pyproject.toml", "setup.py", "cluster.yaml"} <= found
    assert not [
        path
        for path in found
        if fnmatch.fnmatch(path, "*.pyc") or path.startswith((".venv", "runs", "benchmarks/results"))
    ]


def test_the_wheel_has_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    """A preset or a template that no pattern of pyproject.toml finds would be missing after `pip install`."""
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == list_files(ROOT / "l2g_ray")


def test_metadata(facts: Message) -> None:
    assert facts["Name"] == "l2g-ray"
    assert facts["Author"] == "l2g-ray developers"
    assert facts["License-Expression"] == "Apache-2.0"
    assert len(facts["Summary"]) < 120
    versions = {one.rpartition(" ")[2] for one in facts.get_all("Classifier", []) if "Python :: 3." in one}
    assert versions
    assert min(versions) == PROJECT["requires-python"].removeprefix(">=")
    assert set(facts.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])


def test_the_readme_of_an_index_has_no_link_to_a_file(facts: Message) -> None:
    text = facts.get_payload()
    assert isinstance(text, str)
    assert facts["Description-Content-Type"] == "text/markdown"
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets
    assert all(re.match(r"https?://|#", target) for target in targets), targets
    assert "Get started (`docs/get_started.md`)" in text
    assert "make demo" in text


# ---- the container ---------------------------------------------------------------------------------------------------

INSTRUCTIONS = {"ARG", "FROM", "RUN", "COPY", "ENV", "WORKDIR", "USER", "ENTRYPOINT", "CMD"}


def read_stages() -> list[list[tuple[str, str]]]:
    """Instruction and value of each line of the Dockerfile, by stage; the first has what comes before any image."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages: list[list[tuple[str, str]]] = [[]]
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, value = line.partition(" ")
        assert instruction in INSTRUCTIONS, line
        if instruction == "FROM":
            stages.append([])
        stages[-1].append((instruction, value.strip()))
    return stages


def list_copied() -> list[str]:
    """What the Dockerfile copies of the checkout."""
    copies = [shlex.split(value) for stage in read_stages() for name, value in stage if name == "COPY"]
    assert not any(word.startswith("--") for words in copies for word in words)
    return [source for *sources, _ in copies for source in sources]


def is_sent(path: str) -> bool:
    """Whether the engine gets a path, by .dockerignore: the last line that fits decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        if any(fnmatch.fnmatch(part, pattern) for part in (path, path.split("/")[0])):
            sent = line.startswith("!")
    return sent


def test_the_container_copies_what_is_there_and_sent() -> None:
    assert list_copied()
    for source in list_copied():
        assert (ROOT / source).exists(), source
        assert is_sent(source), source
    assert not any(map(is_sent, (".venv/pyvenv.cfg", "runs/a", "tests/toys.py", "docs/index.md", ".git/config")))


def test_the_container_has_what_a_build_reads() -> None:
    read = {"pyproject.toml", "setup.py", "README.md", *PROJECT["license-files"], "l2g_ray", "constraints.txt"}
    assert read <= set(list_copied())


def test_the_container_installs_packages_from_what_is_there_by_then(tmp_path: Path) -> None:
    """The layer of other packages has only a part of the sources: enough to build, with all requirements."""
    *_, last = read_stages()
    before = last[: next(i for i, (_, value) in enumerate(last) if value.endswith('".[$EXTRAS]"'))]
    for *sources, target in (shlex.split(value) for name, value in before if name == "COPY"):
        (tmp_path / "src" / target).mkdir(parents=True, exist_ok=True)
        for source in sources:
            shutil.copy(ROOT / source, tmp_path / "src" / target)
    with zipfile.ZipFile(build("build_wheel", tmp_path / "src", tmp_path / "dist")) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
        found = message_from_string(wheel.read(name).decode())
    plain = [one for one in found.get_all("Requires-Dist", []) if "extra ==" not in one]
    assert len(plain) == len(PROJECT["dependencies"])


def test_the_container_starts_the_program_as_a_user() -> None:
    *_, last = read_stages()
    assert [value for name, value in last if name == "USER"][-1] == "l2g"
    (program,) = json.loads(dict(last)["ENTRYPOINT"])
    assert program in PROJECT["scripts"]
    assert json.loads(dict(last)["CMD"]) == ["--help"]
    # Nothing is installed as that user's.
    names = [name for name, _ in last]
    assert "RUN" not in names[names.index("USER") :]


def test_the_container_installs_torch_first_and_extras_that_exist() -> None:
    *_, last = read_stages()
    installs = [value for name, value in last if name == "RUN" and value.startswith("pip install")]
    torch, package, own = installs
    assert "grep '^torch==' constraints.txt" in torch
    assert "--constraint constraints.txt" in package
    assert "--no-deps" in own
    arguments = dict(value.split("=", 1) for stage in read_stages() for name, value in stage if name == "ARG")
    assert set(arguments["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])
    # An argument before the first image is known to FROM alone; every other one is read after it.
    assert {name for name, value in read_stages()[0]} == {"ARG"}
    for stage in read_stages()[1:]:
        for i, (name, value) in enumerate(stage):
            if name == "ARG":
                assert any(f"${value.partition('=')[0]}" in later for _, later in stage[i + 1 :]), value


def test_shell_of_the_container() -> None:
    for stage in read_stages():
        for name, value in stage:
            if name == "RUN":
                subprocess.run(["sh", "-n", "-c", value], check=True)


def test_the_development_container() -> None:
    path = ROOT / ".devcontainer" / "devcontainer.json"
    given = json.loads(path.read_text())
    assert (path.parent / given["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (path.parent / given["build"]["context"]).resolve() == ROOT
    named = [value.partition(" AS ")[2] for stage in read_stages()[1:] for name, value in stage if name == "FROM"]
    assert given["build"]["target"] in named
    program, target = given["postCreateCommand"].split()
    assert program == "make"
    assert f"{target}:" in (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv")


# ---- sizes -----------------------------------------------------------------------------------------------------------


def test_sizes_count_what_an_extra_adds() -> None:
    own = {"lora": ["peft>=0.1"], "both": ["l2g-ray[lora]", "numpy"]}
    assert find_packages(["numpy"], own) == {"numpy"}
    found = find_packages(["l2g-ray[both]"], own)
    assert {"peft", "accelerate", "numpy", "torch", "jinja2", "markupsafe"} <= found
    # Of other systems and of extras that nobody asked for.
    assert not {"colorama", "black", "ruff"} & found
    project = {
        "dependencies": ["torch", "transformers"],
        "optional-dependencies": {"lora": own["lora"], "docs": ["mkdocs"]},
    }
    rows = list_rows(project)
    assert set(rows) == {"base", "lora"}
    assert {"torch", "tokenizers", "numpy"} <= rows["base"]
    assert {"peft", "accelerate"} <= rows["lora"]
    assert not rows["base"] & rows["lora"]


def test_sizes_are_those_of_files() -> None:
    folder = Path(packaging.__file__).parent
    sources = sum(path.stat().st_size for path in folder.rglob("*.py"))
    assert sources <= measure("packaging") < 5 * sources
    assert measure("no-such-package") == 0


def test_a_package_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lists = 'dependencies = ["numpy"]\n[project.optional-dependencies]\nmore = ["no-such-package>=1"]\n'
    (tmp_path / "pyproject.toml").write_text(f"[project]\n{lists}")
    main(["--pyproject", str(tmp_path / "pyproject.toml")])
    said = capsys.readouterr().out
    assert re.search(r"^\| base \| 1 \| \d+ \|$", said, re.MULTILINE)
    assert "| more | +1 | +0 |" in said
    assert said.endswith("requirements: no-such-package\n")


def test_unpinned_packages_are_named() -> None:
    chosen = [("Torch", "2.1"), ("new_thing", "3"), ("l2g-ray", "0.1.0")]
    report = {"install": [{"metadata": {"name": name, "version": version}} for name, version in chosen]}
    assert list_unpinned(report, "# torch\ntorch==2.1\n") == (2, ["new-thing==3"])


def test_every_requirement_is_pinned() -> None:
    pinned = {normalise(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    wanted = {normalise(re.split(r"[\[<>=~!;]", one, maxsplit=1)[0]) for some in lists for one in some}
    # pip's own tools are in no `pip freeze`.
    assert wanted - pinned == {"l2g-ray", "setuptools"}
