"""The Hugging Face hub: listing a repository, and fetching single files of it by exact name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scopelake.errors import HubError, HubUnreachableError
from scopelake.ingest import download


@dataclass(frozen=True)
class HubFile:
    """A file in a repository."""

    path: str
    n_bytes: int


def list_files(repo: str, folder: str | None = None, revision: str | None = None) -> list[HubFile]:
    """Return the files of a repository, or of one folder of it, sorted by path.

    Raises:
        HubError: the repository or folder is missing, gated or out of reach.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _one_line(repo if folder is None else f"{repo}/{folder}"):
        tree = HfApi().list_repo_tree(repo, folder, recursive=True, revision=revision)
        return sorted(
            (HubFile(f.path, int(f.size)) for f in tree if isinstance(f, RepoFile)),
            key=lambda f: f.path,
        )


def list_cached_files(
    repo: str, folder: str | None = None, revision: str | None = None
) -> list[HubFile]:
    """Return those files of a repository that were fetched before, sorted by path."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        root = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return []
    files = (f for f in (root / (folder or "")).rglob("*") if f.is_file())
    return sorted(
        (HubFile(f.relative_to(root).as_posix(), f.stat().st_size) for f in files),
        key=lambda f: f.path,
    )


def cached_repos() -> list[str]:
    """Return the repositories of which something was fetched before."""
    from huggingface_hub.constants import HF_HUB_CACHE

    names = (repo_of_cached(Path(folder.name)) for folder in Path(HF_HUB_CACHE).glob("models--*"))
    return sorted(name for name in names if name is not None)


def repo_of_cached(path: Path) -> str | None:
    """Return ``<org>/<name>`` if `path` lies in the hub's cache, else None.

    Folders there are ``models--<org>--<name>/snapshots/<revision>``.
    """
    for part in path.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/", 1)
    return None


def is_local(name: str) -> bool:
    """Whether `name`, which is no hub id's then, begins with a folder that is here."""
    return Path(name.partition("/")[0]).is_dir()


def fetch_file(repo: str, file: HubFile, revision: str | None = None) -> Path:
    """Return the local copy of one file, downloading it if it is not there yet.

    Args:
        repo: the repository.
        file: one of its files, as listed: a large one is resumed where an earlier attempt ended.
        revision: of the repository.

    Raises:
        HubError: the file is missing, gated or out of reach.
    """
    from huggingface_hub import hf_hub_download

    with _one_line(f"{repo}/{file.path}"):
        if file.n_bytes >= download.LARGE_BYTES:
            download.download_large(repo, file.path, revision)
        return Path(hf_hub_download(repo, file.path, revision=revision))


def read_start(repo: str, file: HubFile, revision: str | None = None) -> bytes | None:
    """Return the first bytes of a large file, more than a header has; None if they do not come.

    A small file is soon fetched whole: of one None is returned, too.
    """
    if file.n_bytes < download.LARGE_BYTES:
        return None
    return download.read_start(repo, file.path, revision)


def fetch_snapshot(repo: str, patterns: list[str], revision: str | None = None) -> Path:
    """Return a local folder with those files of a repository that match `patterns`.

    Raises:
        HubError: the repository is missing, gated or out of reach.
    """
    from huggingface_hub import snapshot_download

    with _one_line(repo):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))


@contextmanager
def _one_line(asked: str) -> Iterator[None]:
    """Say of each of the hub's refusals what to do about it."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    # Its retries are nobody's business: what comes of them is said below.
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    repo = "/".join(asked.split("/")[:2])
    try:
        logger.setLevel(logging.CRITICAL)
        yield
    except GatedRepoError as error:
        found = "it is gated"
        advice = f"accept its licence at https://huggingface.co/{repo} and set HF_TOKEN"
        raise HubError(f"{asked} was asked for; {found}; {advice}") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"{asked} was asked for; the hub has no repository {repo} that this user may see; "
            "check the name, and set HF_TOKEN if it is private or gated"
        ) from error
    except LocalEntryNotFoundError as error:
        raise HubUnreachableError(
            f"{asked} was asked for; it is not in the local cache and the hub cannot be reached; "
            "check the network, or name a local folder"
        ) from error
    except EntryNotFoundError as error:
        raise HubError(
            f"{asked} was asked for; {repo} has no such file or folder; `scopelake saes {repo}` "
            "lists what it has"
        ) from error
    except (download.http_error(), HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, (HfHubHTTPError, HFValidationError)):
            raise HubError(
                f"{asked} was asked for; the hub did not give it ({reason}); check the name"
            ) from error
        raise HubUnreachableError(
            f"{asked} was asked for; the hub did not give it ({reason}); check the network, or "
            "name a local folder"
        ) from error
    finally:
        logger.setLevel(level)
