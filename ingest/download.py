"""Large files of the hub, downloaded so that what a broken attempt has got is not sent again.

The hub's own library downloads to a temporary file of the process and deletes it on failure. Here
the bytes go to ``blobs/<sha256>.scopelake-partial`` in its cache; the next attempt, by whichever
process, asks for the rest, checks the whole against the hash by which the hub names it, and leaves
it where the library finds it.
"""

from __future__ import annotations

import hashlib
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, cast

from scopelake.errors import CoderWarning

LARGE_BYTES = 64 << 20
"""From this size on a download is resumed; smaller ones are soon made again."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_BLOCK: Final = 4 << 20
_ATTEMPTS: Final = 5
"""In a row in which not one byte came."""
_WAIT_S: Final = 0.5
_HEADER_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class _Download:
    """One file of the hub on its way into the hub's cache."""

    asked: str
    url: str
    sha256: str
    n_bytes: int
    blob: Path

    @property
    def partial(self) -> Path:
        return self.blob.with_name(f"{self.sha256}.scopelake-partial")

    @property
    def lock(self) -> Path:
        """Beside the library's own lock, which it takes itself while it looks at the blob."""
        folder = self.blob.parents[1]
        return folder.parent / ".locks" / folder.name / f"{self.sha256}.scopelake-lock"


def download_large(repo: str, path: str, revision: str | None = None) -> None:
    """Put a large file into the hub's cache, going on where an earlier attempt broke off.

    The hub's library does what remains: it finds the file there, or, where this cannot be done,
    downloads it from its beginning.

    Warns:
        CoderWarning: the download cannot be resumed if it breaks off, and why.

    Raises:
        OSError, or what the hub's library raises: the file did not come whole.
    """
    from filelock import FileLock

    wanted = _wanted(repo, path, revision)
    if wanted is None or wanted.blob.exists():
        return
    for folder in (wanted.blob.parent, wanted.lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(wanted.lock):
        if not wanted.blob.exists() and _fill(wanted):
            wanted.partial.replace(wanted.blob)


def read_start(repo: str, path: str, revision: str | None = None) -> bytes | None:
    """Return the first 64 KiB of a file; None if the hub does not give parts of it."""
    from huggingface_hub import hf_hub_url

    try:
        url = hf_hub_url(repo, path, revision=revision)
        return b"".join(_blocks(url, f"bytes=0-{_HEADER_BYTES - 1}"))
    except (_NoRangeError, http_error(), OSError):
        return None


def _wanted(repo: str, path: str, revision: str | None) -> _Download | None:
    """What is to be downloaded here; None if that is left to the library."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.constants import HF_HUB_CACHE, MAX_HTTP_DOWNLOAD_SIZE
    from huggingface_hub.file_download import repo_folder_name

    try:
        found = get_hf_file_metadata(hf_hub_url(repo, path, revision=revision))
    except (http_error(), OSError):
        return None  # The library asks the same, and knows what its cache can answer.
    if not (found.etag and found.size and found.commit_hash) or found.size < LARGE_BYTES:
        return None
    reason = None
    if not _SHA256.match(found.etag):
        reason = "the hub gives no sha256 of it by which to check its parts"
    elif found.size > MAX_HTTP_DOWNLOAD_SIZE:
        reason = "the hub sends a file of that size by Xet alone"
    if reason:
        _warn(f"{repo}/{path}", reason)
        return None
    # The commit's own address: a branch may move between two attempts.
    url = hf_hub_url(repo, path, revision=found.commit_hash)
    folder = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    return _Download(f"{repo}/{path}", url, found.etag, found.size, folder / "blobs" / found.etag)


def _warn(asked: str, reason: str) -> None:
    warnings.warn(
        f"{asked} is downloaded in one piece, because {reason}; if it breaks off, it starts again",
        CoderWarning,
        stacklevel=2,
    )


def _fill(wanted: _Download) -> bool:
    """Download what is missing; return whether the file is whole, or else left to the library."""
    from huggingface_hub.errors import HfHubHTTPError

    digest = _hash_partial(wanted)
    idle = 0
    with (
        wanted.partial.open("ab", buffering=0) as file,
        _hub_utils().tqdm(
            total=wanted.n_bytes, initial=file.tell(), unit="B", unit_scale=True, disable=None,
            desc=wanted.asked.rsplit("/", 1)[-1],
        ) as bar,
    ):  # fmt: skip
        while (start := file.tell()) < wanted.n_bytes:
            failure: Exception = OSError("the connection ended early")
            try:
                for block in _blocks(wanted.url, f"bytes={start}-"):
                    file.write(block)
                    digest.update(block)
                    bar.update(len(block))
            except _NoRangeError:
                _warn(wanted.asked, "the server sends no parts of files (HTTP Range)")
                wanted.partial.unlink()
                return False
            except http_error() as error:
                if isinstance(error, HfHubHTTPError):
                    raise
                failure = error
            idle = 0 if file.tell() > start else idle + 1
            if idle == _ATTEMPTS:
                raise failure
            time.sleep(_WAIT_S * idle)
    _check(wanted, digest.hexdigest())
    return True


class _NoRangeError(Exception):
    """The server answered with the whole file."""


def _blocks(url: str, wanted: str) -> Iterator[bytes]:
    """Yield a range of a file's bytes as they come."""
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT

    utils = _hub_utils()
    headers = utils.build_hf_headers() | {"Range": wanted, "Accept-Encoding": "identity"}
    with utils.get_session().stream(
        "GET", url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT
    ) as response:
        utils.hf_raise_for_status(response)
        if response.status_code != HTTPStatus.PARTIAL_CONTENT:
            raise _NoRangeError
        yield from response.iter_bytes()


def _hash_partial(wanted: _Download) -> Any:  # noqa: ANN401
    """The hash so far of what earlier attempts got."""
    digest = hashlib.sha256()
    if wanted.partial.exists():
        if wanted.partial.stat().st_size > wanted.n_bytes:
            wanted.partial.unlink()
            return digest
        with wanted.partial.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest


def _check(wanted: _Download, sha256: str) -> None:
    if sha256 != wanted.sha256:
        wanted.partial.unlink()
        raise OSError(
            f"its bytes have the sha256 {sha256}, the hub says {wanted.sha256}; they are deleted: "
            "fetch it again"
        )


def _hub_utils() -> Any:  # noqa: ANN401
    """The hub's library's own client, headers and bar; its module resolves them on demand."""
    from huggingface_hub import utils

    return utils


def http_error() -> type[Exception]:
    """Return the base of all errors of the hub's HTTP client, whichever that is."""
    from huggingface_hub.errors import HfHubHTTPError

    base, *_ = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    return base
