"""A path or a URI (`s3://`, `gs://`) as one thing, and whether the Hugging Face hub answers."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.fs as pa_fs

from l2g_ray.errors import UserError

CONNECT_TIMEOUT_S = 3.0
COPY_BYTES = 1 << 22
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")


class StorageUnavailable(UserError):
    """An object store does not answer, or does not take what it is given: the same request may succeed later."""


@dataclass(frozen=True)
class Location:
    """A file or folder. `text` is the path or URI as it was given; two locations with the same text are the same."""

    text: str

    @property
    def is_remote(self) -> bool:
        """Whether it is a URI, not a path of this machine."""
        return bool(_SCHEME.match(self.text))

    @cached_property
    def local(self) -> Path:
        """The path of a local location. Raises ValueError for a remote one."""
        if self.is_remote:
            raise ValueError(f"{self.text} is not on this machine")
        return Path(self.text)

    @property
    def name(self) -> str:
        """Last part."""
        return PurePosixPath(self._split()[0]).name if self.is_remote else self.local.name

    def __str__(self) -> str:
        return self.text

    def __fspath__(self) -> str:
        return str(self.local)

    def __truediv__(self, part: str) -> Location:
        if not self.is_remote:
            return Location(str(self.local / part))
        body, query = self._split()
        return Location(f"{body.rstrip('/')}/{part}{query}")

    def absolute(self) -> Location:
        """Return the same place whatever the working directory."""
        return self if self.is_remote else Location(str(self.local.resolve()))

    def _split(self) -> tuple[str, str]:
        body, mark, query = self.text.partition("?")
        return body, mark + query

    @property
    def filesystem(self) -> tuple[pa_fs.FileSystem, str]:
        """pyarrow's file system and the path in it. Raises UserError for an unknown scheme."""
        if not self.is_remote:
            return _local(), str(self.local)
        return _resolve(self.text)

    def info(self) -> pa_fs.FileInfo:
        """Type, size and time of change. Raises UserError where the store does not answer."""
        system, path = self.filesystem
        with self._reporting():
            return system.get_file_info(path)

    def exists(self) -> bool:
        """Return whether there is a file or folder."""
        return self.info().type != pa_fs.FileType.NotFound

    def is_dir(self) -> bool:
        """Return whether it is a folder."""
        return self.info().type == pa_fs.FileType.Directory

    def is_file(self) -> bool:
        """Return whether it is a file."""
        return self.info().type == pa_fs.FileType.File

    def children(self) -> list[Location]:
        """Return what a folder holds, sorted by name; empty for none."""
        system, path = self.filesystem
        with self._reporting():
            found = system.get_file_info(pa_fs.FileSelector(path, allow_not_found=True))
        return [self / name for name in sorted(PurePosixPath(info.path).name for info in found)]

    def open_input(self) -> pa.NativeFile:
        """Open for reading with seeks. Raises OSError as pyarrow does (FileNotFoundError for none)."""
        system, path = self.filesystem
        return system.open_input_file(path)

    def open_output(self) -> pa.NativeFile:
        """Open for writing from the beginning; a remote file appears when closed. Makes local folders."""
        system, path = self.filesystem
        if not self.is_remote:
            self.local.parent.mkdir(parents=True, exist_ok=True)
        return system.open_output_stream(path, compression=None)

    def read_text(self) -> str:
        """Return the whole file as UTF-8. Raises OSError as pyarrow does."""
        with self.open_input() as file:
            return file.read().decode()

    def write_text(self, text: str) -> None:
        """Replace the file."""
        with self.open_output() as file:
            file.write(text.encode())

    def files(self) -> list[str]:
        """Return paths of all files below a folder, relative to it, sorted; empty for none."""
        system, path = self.filesystem
        with self._reporting():
            found = system.get_file_info(pa_fs.FileSelector(path, allow_not_found=True, recursive=True))
        base = PurePosixPath(path)
        return sorted(
            str(PurePosixPath(info.path).relative_to(base)) for info in found if info.type == pa_fs.FileType.File
        )

    def upload(self, path: Path) -> None:
        """Replace the file by a copy of a local one. Raises StorageUnavailable for a store that does not take it."""
        with self._reporting(), path.open("rb") as source, self.open_output() as target:
            shutil.copyfileobj(source, target, COPY_BYTES)

    def download(self, path: Path) -> None:
        """Copy the file to a local one. Raises StorageUnavailable, or FileNotFoundError where there is none."""
        with self._reporting(), self.open_input() as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, COPY_BYTES)

    def read_if_there(self) -> str | None:
        """Return the whole file as UTF-8, None for none. Raises StorageUnavailable."""
        try:
            with self._reporting():
                return self.read_text()
        except FileNotFoundError:
            return None

    def replace_text(self, text: str) -> None:
        """As `write_text`. Raises StorageUnavailable for a store that does not take it."""
        with self._reporting():
            self.write_text(text)

    def delete(self) -> None:
        """Remove a file, or a folder with all that it holds; nothing is no error. Raises StorageUnavailable."""
        system, path = self.filesystem
        with self._reporting():
            kind = system.get_file_info(path).type
            if kind == pa_fs.FileType.Directory:
                system.delete_dir(path)
            elif kind == pa_fs.FileType.File:
                system.delete_file(path)

    def fingerprint(self) -> str:
        """sha256 of a local file's bytes; of size and time of change for a remote one, which is not fetched for it.

        Raises UserError for a file that cannot be read.
        """
        if not self.is_remote:
            try:
                with self.local.open("rb") as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise UserError(f"{self.text}: cannot be read ({reason}); check the path and its permissions") from None
        info = self.info()
        return hashlib.sha256(f"{info.size} {info.mtime_ns}".encode()).hexdigest()

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if not self.is_remote:
                raise
            raise StorageUnavailable(
                f"{self.text}: the store does not answer as it should ({' '.join(str(error).split())[:200]}); "
                "check the address, the credentials and AWS_ENDPOINT_URL"
            ) from None


def as_location(where: str | Path | Location) -> Location:
    """Return a location from whatever names one."""
    return where if isinstance(where, Location) else Location(str(where))


@lru_cache(maxsize=1)
def _local() -> Any:
    return pa_fs.LocalFileSystem(use_mmap=False)


@lru_cache(maxsize=64)
def _resolve_root(scheme: str, bucket: str, query: str, endpoint: str | None) -> tuple[Any, str]:
    if scheme != "s3" or (query and "endpoint_override" not in query):
        return pa_fs.FileSystem.from_uri(f"{scheme}://{bucket}{'?' if query else ''}{query}")
    options = {name: values[-1] for name, values in parse_qs(query).items()}
    if endpoint:
        options.setdefault("endpoint_override", endpoint)
    elif not {"region", "endpoint_override"} & set(options) and not os.environ.get("AWS_DEFAULT_REGION"):
        options["region"] = pa_fs.resolve_s3_region(bucket)
    # By default pyarrow retries for minutes; a user with a wrong address should wait seconds.
    retries = {
        "retry_strategy": pa_fs.AwsStandardS3RetryStrategy(max_attempts=3),
        "connect_timeout": CONNECT_TIMEOUT_S,
    }
    return pa_fs.S3FileSystem(**options, **retries), bucket


def _resolve(uri: str) -> tuple[Any, str]:
    body, _, query = uri.partition("?")
    scheme, _, rest = body.partition("://")
    bucket, _, key = rest.partition("/")
    try:
        system, root = _resolve_root(scheme, bucket, query, os.environ.get("AWS_ENDPOINT_URL"))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{uri}: cannot be opened ({reason}); give a local path, s3://... or gs://...") from None
    return system, f"{root.rstrip('/')}/{key}" if key else root


HUB_URL = "https://huggingface.co"
HUB_TIMEOUT_S = 2.0


def hub_answers() -> bool:
    """Return whether the hub (or the mirror of HF_ENDPOINT) takes connections; False at once where HF_HUB_OFFLINE is
    1.
    """
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return False
    endpoint = os.environ.get("HF_ENDPOINT") or HUB_URL
    # A plain connection attempt: the hub library itself retries for half a minute before it gives up.
    try:
        address = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
        port = address.port or (80 if address.scheme == "http" else 443)
        with socket.create_connection((address.hostname or "", port), timeout=HUB_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False
