"""Files that are whole or not there, and that no module has a way of its own to write them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from l2g_ray.atomic import replacing, write_bytes, write_json, write_text

PACKAGE = Path(__file__).parents[1] / "l2g_ray"
# Folders that are renamed as a whole, and a file that grows over many calls.
RENAMES = {
    "atomic.py",
    "data/dataset.py",
    "data/table_writer.py",
    "store/shared.py",
    "orchestrate/outcome.py",
    "store/results.py",
}


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "Ångström\n")
    assert path.read_text("utf-8") == "Ångström\n"
    write_bytes(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    write_json(path, {"a": [1]})
    assert json.loads(path.read_text()) == {"a": [1]}
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            # Hidden, beside it, and with the ending that the store removes from a work folder.
            assert temporary.parent == tmp_path
            assert (temporary.name[0], temporary.suffix) == (".", ".tmp")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    with pytest.raises(TypeError):
        write_json(path, object())
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_files_are_put_in_place_by_one_module() -> None:
    found = {
        str(p.relative_to(PACKAGE))
        for p in PACKAGE.rglob("*.py")
        if re.search(r"os\.(replace|rename)\(", p.read_text())
    }
    assert found == RENAMES
