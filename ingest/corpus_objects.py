"""Corpus files in an object store that speaks S3, found by key, prefix or pattern.

The environment says where and who, as for lakes (`store/object_root.py`). Each object is downloaded
into a scratch file while it is read.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from scopelake.errors import CorpusSourceError, InvalidArgumentError
from scopelake.ingest.corpus_files import KNOWN_SUFFIXES, check_named, is_known
from scopelake.store.object_root import ObjectRoot, check_endpoint
from scopelake.store.root import S3

_PATTERN: Final = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class ObjectFile:
    """An object of a bucket."""

    bucket: ObjectRoot
    key: str

    @property
    def where(self) -> str:
        """Its URL."""
        return f"{self.bucket.url}/{self.key}"

    @property
    def path(self) -> PurePosixPath:
        """Its bucket and key."""
        return PurePosixPath(self.where.removeprefix(S3))

    @contextmanager
    def local(self) -> Iterator[Path]:
        """Download it for as long as it is needed."""
        try:
            with self.bucket.fetch([self.key]) as folder:
                yield folder.path / self.key
        except FileNotFoundError as error:
            raise CorpusSourceError(
                f"{self.where} was asked for; it is gone; list the bucket again"
            ) from error


def find_objects(url: str) -> list[ObjectFile]:
    """Return the objects that a URL names: one, those under a prefix, or those that fit a pattern.

    Raises:
        CorpusSourceError: there is none of a known kind.
        InvalidArgumentError: the URL has no bucket and key.
        ObjectStoreError: the store refuses or does not answer.
    """
    name, _, key = url.removeprefix(S3).partition("/")
    if not name or not key.strip("/"):
        raise InvalidArgumentError(
            f"{url} was asked for; it names no object of a bucket; give "
            f"{S3}<bucket>/<key, prefix or pattern>"
        )
    check_endpoint()
    bucket = ObjectRoot(f"{S3}{name}")
    if special := _PATTERN.search(key):
        folder = key[: special.start()].rpartition("/")[0]
        keys = [k for k in _keys(bucket, folder) if _fits(k, key)]
    elif not key.endswith("/") and bucket.size(key) is not None:
        check_named(PurePosixPath(key), url)
        return [ObjectFile(bucket, key)]
    else:
        keys = [k for k in _keys(bucket, key.strip("/")) if is_known(PurePosixPath(k))]
    if not keys:
        raise CorpusSourceError(
            f"{url} was asked for; the bucket has no {', '.join(KNOWN_SUFFIXES)} object there; "
            "check the key, or name others"
        )
    files = [ObjectFile(bucket, k) for k in keys]
    for file in files:
        check_named(file.path, file.where)
        if {"", ".", ".."} & set(file.key.split("/")):
            raise CorpusSourceError(
                f"{file.where} was asked for; a part of its key is empty, '.' or '..', which no "
                "file here can be called; rename it"
            )
    return files


def _keys(bucket: ObjectRoot, folder: str) -> list[str]:
    # An object of no name ends with a slash: some tools make one for a folder.
    return sorted(e.path for e in bucket.list(folder) if not e.path.endswith("/"))


def _fits(key: str, pattern: str) -> bool:
    """Whether a key fits, part by part, as paths do: ``**`` stands for any number of parts."""
    return _parts_fit(key.split("/"), pattern.split("/"))


def _parts_fit(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_parts_fit(parts[n:], patterns[1:]) for n in range(len(parts) + 1))
    if not parts or not fnmatch.fnmatchcase(parts[0], patterns[0]):
        return False
    return _parts_fit(parts[1:], patterns[1:])
