"""Files that are whole or not there: written beside their place, then put into it.

Folders that appear whole (a result of the store, a task of a run, shards) are renamed where they are made.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def temporary_beside(path: Path) -> Path:
    """Return a hidden name in the folder of `path`, another one in each process."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a file to write, which replaces `path` at the end of the block; it is removed where the block raises."""
    temporary = temporary_beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file by UTF-8 text. Raises OSError."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file by bytes. Raises OSError."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Replace a file by JSON. Raises OSError, and TypeError or ValueError for what JSON has no form for."""
    write_text(path, json.dumps(content, indent=indent))
