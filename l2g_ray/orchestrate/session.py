"""Where a local Ray keeps its sockets."""

from __future__ import annotations

import atexit
import contextlib
import os
import tempfile
import uuid
from pathlib import Path

from l2g_ray.errors import UserError

# Longest path of a socket in Linux (sockaddr_un, without the final zero), and Ray's names below its temporary folder.
SOCKET_BYTES = 107
_BELOW = len("/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store_1")
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_LINK = "l2g-ray-session-"


def find_session_folder() -> str:
    """The folder of a local Ray's sessions: `ray` in RAY_TMPDIR or TMPDIR, or in the system's where these cannot be used.

    Where its path is too long for a socket, a short link to it; the link is removed when this process ends.

    Raises
    ------
    UserError : Ray's session can be written nowhere.
    """
    named = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR")
    places = [Path(named).absolute() / "ray"] if named and Path(named).is_dir() else []
    shared = Path(tempfile.gettempdir()).absolute()
    places += [shared / "ray", shared / f"ray-{os.getuid()}"]  # the first may be another user's
    for folder in places:
        if _is_writable(folder):
            return str(folder) if len(os.fsencode(folder)) + _BELOW <= SOCKET_BYTES else _link(folder)
    raise UserError(f"{shared}: Ray's session cannot be written there; set TMPDIR to a folder that can be written")


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _link(folder: Path) -> str:
    for short in map(Path, _SHORT_FOLDERS):
        link = short / f"{_LINK}{uuid.uuid4().hex[:8]}"
        try:
            link.symlink_to(folder, target_is_directory=True)
        except OSError:
            continue
        _remove_dangling(short)
        atexit.register(_end, link)
        return str(link)
    raise UserError(
        f"{folder}: is too long a path for Ray's sockets ({SOCKET_BYTES} bytes), and no link to it can be made in /tmp; "
        "set RAY_TMPDIR to a folder with a short path"
    )


def _remove_dangling(short: Path) -> None:
    """Links of processes that were killed, once what they led to is gone."""
    for link in short.glob(f"{_LINK}*"):
        with contextlib.suppress(OSError):
            if link.is_symlink() and link.lstat().st_uid == os.getuid() and not link.exists():
                link.unlink()


def _end(link: Path) -> None:
    import ray

    ray.shutdown()  # it ends its processes through the sockets
    link.unlink(missing_ok=True)
