"""What tests share: a tiny language model, tiny data, one Ray."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Cli, Said
from faults import command
from filelock import FileLock
from runs import Sources, execute
from servers import s3_bucket

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Ray's own is 15: beside another worker's tests, which are at 0, its processes would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# What tests measure is not what the user's own runs shall remember.
os.environ["L2G_RAY_CACHE_DIR"] = tempfile.mkdtemp(prefix="l2g-ray-cache-")
atexit.register(shutil.rmtree, os.environ["L2G_RAY_CACHE_DIR"], ignore_errors=True)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


# Files that take longest go first, so that no process is left with one of them at the end; what reads the suite that
# `test_suite` shares goes last, when it is there.
FIRST = """
test_suite test_own_data test_resume test_arms test_scale test_team test_trial_logs test_warm test_guard test_stages
test_tracking_writer test_server test_stream test_storage test_prepare
"""
LAST = ("test_report", "test_embeddings")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    first = FIRST.split()
    order = {name: i - len(first) for i, name in enumerate(first)} | dict.fromkeys(LAST, 1)
    items.sort(key=lambda item: order.get(item.path.stem, 0))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real benchmark data beside the project; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real benchmark data not found in {SHARED_DATA}")
    return SHARED_DATA


def make_tiny_language_model(folder: Path, family: str = "bert") -> Path:
    import torch
    from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel, RobertaConfig, RobertaModel

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 66,
    }
    models = {
        "bert": (BertConfig, BertModel),
        "roberta": (RobertaConfig, RobertaModel),
        "mpnet": (MPNetConfig, MPNetModel),
    }
    config, model = models[family]
    model(config(**sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight BERT of two layers, 16 wide, in a folder."""
    return make_tiny_language_model(tmp_path_factory.mktemp("tiny-lm"))


@pytest.fixture
def single_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> Sources:
    """Two folders of a user's own, 160 training and 40 test rows of 40 bp each."""
    import pyarrow as pa
    from pyarrow.csv import write_csv
    from toys import plant, regression_table

    root = tmp_path_factory.mktemp("sources")
    for name in ("planted", "composition"):
        (root / name).mkdir()
    (root / "composition" / "task.yaml").write_text("kind: regression\nlabels: [gc, a]\n")
    for seed, (split, rows) in enumerate((("train", 160), ("test", 40))):
        write_csv(plant(rows, 40, seed), root / "planted" / f"{split}.csv")
        table = regression_table(rows, 40, seed)
        values = table["label"].combine_chunks().flatten().to_numpy().reshape(-1, 2)
        columns = {"sequence": table["sequence"], "gc": values[:, 0], "a": values[:, 1]}
        write_csv(pa.table(columns), root / "composition" / f"{split}.csv")
    return Sources(root / "planted", root / "composition", tiny_lm)


@pytest.fixture(scope="session")
def suite_of_three(tmp_path_factory: pytest.TempPathFactory, sources: Sources) -> Path:
    """The --out folder of one finished suite, `three`, in which `lost` failed; see `runs.run_three`. Read only."""
    base = tmp_path_factory.getbasetemp()
    # All of pytest-xdist's processes share one, whichever is first.
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "suite" / "out"
    script = Path(__file__).with_name("runs.py")
    folders = [out, sources.planted, sources.composition, sources.language_model]
    with FileLock(out.parent.with_suffix(".lock")):
        if not (out / "log.txt").exists():
            log = execute([sys.executable, str(script), *map(str, folders)])
            (out / "log.txt").write_text(log)
    return out


@pytest.fixture(scope="session")
def undisturbed(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The --out folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    execute(command(sources, out))
    return out


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URI of an empty bucket; credentials and endpoint are in the environment, as on a cluster."""
    with s3_bucket() as found:
        yield found.uri


@pytest.fixture(scope="module")
def two_cores() -> Iterator[None]:
    """A Ray with two cores, unless there is one already."""
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    if started:
        ray.shutdown()


@pytest.fixture
def use_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Give MLflow's own functions a store. Afterwards none is set: one that stayed would win over later tests' variable."""
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield mlflow.set_tracking_uri
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # what it is before anybody sets one


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line in this process."""
    from l2g_ray.cli.main import run

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["l2g-ray", *map(str, arguments)])
        code = 0
        try:
            run()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Said(code, *capsys.readouterr())

    return call


@pytest.fixture
def watched(browser: Any) -> Iterator[tuple[Any, list[str], list[str]]]:
    """A page, what its console says, and the addresses that it asks for."""
    page = browser.new_page()
    problems: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    yield page, problems, requests
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no browser: apt-get install chromium")
    with api.sync_playwright() as play:
        # In a container root has no sandbox; the page is our own.
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()
