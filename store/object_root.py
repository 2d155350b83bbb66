"""A lake in an object store that speaks S3: AWS, or any by ``AWS_ENDPOINT_URL``.

The standard environment variables say where and who: ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``. Answers of
5xx and timeouts are tried again with growing pauses, ten times within three minutes. A number of
the log is taken by a conditional write (``If-None-Match: *``), which the store must know.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import urlsplit

import numpy as np
import obstore
import pyarrow as pa
import xxhash
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from scopelake.errors import InvalidArgumentError, ObjectStoreError
from scopelake.store.folder_root import FolderRoot
from scopelake.store.root import S3, Entry

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_RETRIES: Final[RetryConfig] = {"max_retries": 10, "retry_timeout": timedelta(minutes=3)}
_BLOCK: Final = 8 << 20
_MOST_TEXT: Final = 300
_PAUSES: Final = (0.1, 0.4, 1.6, 6.4)
"""Seconds between tries of a conditional write whose answer did not come."""

_THREADS: Final = 8
_TIMEOUT: Final = timedelta(seconds=60)
"""Of one request."""
_INSTANCE_METADATA: Final = "169.254.169.254"
"""Where a machine in Amazon's cloud asks for credentials of its own."""

_SECRETS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


class SmallObjects:
    """Bytes of small objects that were hashed, the latest used; data files never change.

    The catalogue is many small files that are read again and again.
    """

    MOST_BYTES: ClassVar[int] = 1 << 20
    _IN_ALL: ClassVar[int] = 64 << 20

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._n_bytes, self._lock = 0, Lock()

    def get(self, url: str, path: str) -> bytes | None:
        """Return an object's bytes, if they are kept."""
        with self._lock:
            if (url, path) in self._kept:
                self._kept.move_to_end((url, path))
            return self._kept.get((url, path))

    def put(self, url: str, path: str, data: bytes) -> None:
        """Keep an object's bytes, and let others go."""
        with self._lock:
            self._n_bytes += len(data) - len(self._kept.pop((url, path), b""))
            self._kept[url, path] = data
            while self._n_bytes > self._IN_ALL:
                self._n_bytes -= len(self._kept.popitem(last=False)[1])


_small = SmallObjects()


@dataclass(frozen=True)
class ObjectRoot:
    """The files of a lake under a prefix of a bucket."""

    url: str
    """``s3://<bucket>/<prefix>``, without a slash at the end."""

    @classmethod
    def at(cls, url: str) -> ObjectRoot:
        """Return the root at a URL.

        Raises:
            InvalidArgumentError: it has no bucket or no prefix.
        """
        bucket, _, prefix = url.removeprefix(S3).strip("/").partition("/")
        if not bucket or not prefix or {"", ".", ".."} & set(prefix.split("/")):
            raise InvalidArgumentError(
                f"a lake at {url!r} was asked for; a lake is under a prefix of a bucket, in which "
                f"no part is empty, '.' or '..'; give {S3}<bucket>/<prefix>"
            )
        check_endpoint()
        return cls(f"{S3}{bucket}/{prefix}")

    @property
    def delta_options(self) -> dict[str, str] | None:
        """How long a request may take, and whether plain HTTP is meant."""
        plain = {"AWS_ALLOW_HTTP": "true"} if plain_http() else {}
        return {"timeout": f"{_TIMEOUT.total_seconds():.0f}s", **plain}

    @property
    def is_near(self) -> bool:
        """It is not: most of the time is spent on the way."""
        return False

    def exists(self) -> bool:
        """Whether an object is under the prefix."""
        return next(self.list(""), None) is not None

    def is_empty(self) -> bool:
        """Whether no object is under the prefix."""
        return not self.exists()

    def make(self) -> None:
        """Make nothing: a prefix is there once an object is."""

    def describe(self, error: Exception) -> str:
        """Return an error's message on one line, shortened, without credentials."""
        text = " ".join(str(error).split("Debug source:")[0].split())
        for name in _SECRETS:
            if value := os.environ.get(name):
                text = text.replace(value, f"<{name}>")
        return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}..."

    def size(self, path: str) -> int | None:
        """Return the bytes of an object; None if there is none."""
        try:
            with self._asked("the size of", path):
                return int(obstore.head(self._store(), path)["size"])
        except FileNotFoundError:
            return None

    def modified(self, path: str) -> float | None:
        """Return when an object was last put; None if there is none."""
        try:
            with self._asked("the age of", path):
                return obstore.head(self._store(), path)["last_modified"].timestamp()
        except FileNotFoundError:
            return None

    def version(self, path: str) -> Hashable:
        """Return nothing: data files have names of their own, and the store keeps their bytes."""
        return None

    def read(self, path: str) -> bytes:
        """Return an object's bytes."""
        with self._asked("reading", path):
            return obstore.get(self._store(), path).bytes().to_bytes()

    def open(self, path: str) -> pa.NativeFile:
        """Open an object whose bytes are all read before."""
        data = _small.get(self.url, path)
        return pa.BufferReader(arrow_copy(self.read(path) if data is None else data))

    @contextmanager
    def fetch(self, paths: Iterable[str]) -> Iterator[FolderRoot]:
        """Download objects into a scratch folder."""
        with self.scratch() as folder, ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(lambda path: self._download(path, folder / path), paths):
                pass
            yield FolderRoot(folder)

    def checksum(self, path: str) -> str:
        """Return the checksum of an object's bytes; a small one is kept for `open`."""
        digest, kept, n_bytes = xxhash.xxh3_128(), list[bytes](), 0
        for block in self._blocks(path):
            digest.update(block)
            n_bytes += len(block)
            kept = [*kept, block] if n_bytes <= SmallObjects.MOST_BYTES else []
        if n_bytes <= SmallObjects.MOST_BYTES:
            _small.put(self.url, path, b"".join(kept))
        return f"xxh3:{digest.hexdigest()}"

    def _blocks(self, path: str) -> Iterator[bytes]:
        with self._asked("reading", path):
            for block in obstore.get(self._store(), path).stream(min_chunk_size=_BLOCK):
                yield bytes(block)

    def _download(self, path: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for block in self._blocks(path):
                file.write(block)

    def put(self, path: str, file: Path) -> None:
        """Upload a file: in parts if it is large, and visible when all of it is there."""
        try:
            with self._asked("writing", path):
                obstore.put(self._store(), path, file)
        except FileNotFoundError as error:
            raise self._no_bucket(path) from error

    def put_new(self, path: str, data: bytes) -> bool:
        """Upload an object unless one is there.

        The client does not repeat a conditional write whose answer does not come, so that is done
        here. This may then say False of an object of our own: it has to be read to know.
        """
        for pause in (*_PAUSES, None):
            try:
                with self._asked("writing", path):
                    obstore.put(self._store(), path, data, mode="create")
            except FileExistsError:
                return False
            except FileNotFoundError as error:
                raise self._no_bucket(path) from error
            except ObjectStoreError:
                if pause is None:
                    raise
                time.sleep(pause)
            else:
                break
        return True

    def delete(self, path: str) -> None:
        """Delete an object, if it is there."""
        try:
            with self._asked("deleting", path):
                obstore.delete(self._store(), path)
        except FileNotFoundError:
            pass

    def list(self, folder: str) -> Iterator[Entry]:
        """Yield every object under a prefix."""
        with self._asked("listing", folder):
            for found in obstore.list(self._store(), prefix=folder or None):
                for entry in found:
                    modified = entry["last_modified"].timestamp()
                    yield Entry(entry["path"], entry["size"], modified)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make a folder of this machine's for temporary files (``TMPDIR``)."""
        with tempfile.TemporaryDirectory(prefix="scopelake-") as folder:
            yield Path(folder)

    def zarr(self, folder: str, *, read_only: bool) -> Any:  # noqa: ANN401
        """Return the Zarr store of a prefix."""
        import zarr.storage  # slow to import, and needed for dense activations only

        return zarr.storage.ObjectStore(self._store(folder), read_only=read_only)

    def zarr_settings(self) -> dict[str, Any]:
        """Return zarr-python's own pipeline, which asks this store for what it reads."""
        return {"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}

    def _no_bucket(self, path: str) -> ObjectStoreError:
        return ObjectStoreError(
            f"writing {self.url}/{path} was asked for; there is no such bucket; create it first"
        )

    def _store(self, folder: str = "") -> S3Store:
        # Made anew: it is cheap, and the object travels to other processes without connections.
        client: ClientConfig = {"allow_http": plain_http(), "timeout": _TIMEOUT}
        url = f"{self.url}/{folder}" if folder else self.url
        with self._asked("opening", folder):
            return S3Store.from_url(url, client_options=client, retry_config=_RETRIES)

    @contextmanager
    def _asked(self, what: str, path: str) -> Iterator[None]:
        """Turn what the client raises into our errors, which show no credentials."""
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.url}/{path}") from error
        except AlreadyExistsError as error:
            raise FileExistsError(f"{self.url}/{path}") from error
        except BaseError as error:
            raise ObjectStoreError(
                f"{what} {self.url}/{path} was asked for; {self._explain(error)}"
            ) from None

    def _explain(self, error: BaseError) -> str:
        """Say what an answer means, and what to do."""
        text = str(error)
        if _INSTANCE_METADATA in text:
            return (
                "no credentials are set, and this machine is given none by its cloud; set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (profiles are not read)"
            )
        if "NoSuchBucket" in text:
            bucket = self.url.removeprefix(S3).partition("/")[0]
            return f"there is no bucket {bucket}; check its name, or create it first"
        return (
            f"the store answered: {self.describe(error)}; check the bucket, AWS_ENDPOINT_URL, "
            "AWS_REGION and the credentials"
        )


def arrow_copy(data: bytes) -> pa.Buffer:
    """Return a copy of bytes in memory that is Arrow's own.

    Arrow's threads must not hold what is Python's: they let go of it late, and one that does so
    while the interpreter ends aborts the process (1 in 9 on a busy machine; with copies none of
    900).
    """
    buffer = pa.allocate_buffer(len(data))
    np.frombuffer(buffer, np.uint8)[:] = np.frombuffer(data, np.uint8)
    return buffer


def check_endpoint() -> None:
    """Refuse an endpoint in the environment that is no URL, or that has a password in it.

    Raises:
        InvalidArgumentError: then.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if endpoint is None:
        return
    parts = urlsplit(endpoint)
    if parts.username or parts.password:
        raise InvalidArgumentError(
            "AWS_ENDPOINT_URL has a user or a password in it; give those in AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidArgumentError(
            f"AWS_ENDPOINT_URL is {endpoint!r}; it has to be http(s)://host[:port]; unset it for "
            "Amazon's own"
        )


def plain_http() -> bool:
    """Whether the endpoint in the environment is one without TLS."""
    return os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
