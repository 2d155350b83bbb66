"""Coders of the hub: fetched file by file, refused before their weights are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Final

from scopelake.errors import HubUnreachableError
from scopelake.ingest import hub
from scopelake.ingest.coder_header import parse_header
from scopelake.ingest.coder_identity import check_folder, check_model, identify, read_config
from scopelake.ingest.coders import check_headers

_CONFIG: Final = "config.json"


def fetch_folders(
    repo: str,
    pattern: str,
    revision: str | None,
    is_wanted: Callable[[str], bool],
    model_name: str | None = None,
) -> list[Path]:
    """Fetch exactly the files that are wanted: a folder's others may be far larger.

    Where the hub is out of reach, those that were fetched before are all there is.

    Args:
        repo: ``<org>/<repo>``.
        pattern: of ``<family>/<folder>``.
        revision: of the repository.
        is_wanted: whether a file of that name is.
        model_name: of the model that the coders are for, if their weights are wanted.

    Returns:
        The folders, of those that have such files.

    Raises:
        CoderMismatchError: a coder of another model than `model_name`; no weights were fetched.
        CoderFileError: weights that are not a coder's, or not the one of their folder's name.
        HubError: the hub did not give a file.
    """
    listed = {
        path: file
        for file in _list(repo, pattern, revision)
        if fnmatchcase(str((path := PurePosixPath(file.path)).parent), pattern)
    }
    wanted = [path for path in listed if is_wanted(path.name)]
    folders = sorted({path.parent for path in wanted})
    configs = [folder / _CONFIG for folder in folders if folder / _CONFIG in listed]
    local = {path: hub.fetch_file(repo, listed[path], revision) for path in configs}
    if model_name is not None:
        for folder in folders:
            config = local.get(folder / _CONFIG)
            params = [listed[path] for path in wanted if path.parent == folder]
            _check(repo, folder, params, revision, config and config.parent, model_name)
    local |= {path: hub.fetch_file(repo, listed[path], revision) for path in wanted}
    return sorted({local[path].parent for path in wanted})


def _list(repo: str, pattern: str, revision: str | None) -> Iterable[hub.HubFile]:
    folder = None if any(c in pattern for c in "*?[") else pattern
    try:
        return hub.list_files(repo, folder, revision)
    except HubUnreachableError:
        if not (files := hub.list_cached_files(repo, folder, revision)):
            raise
        return files


def _check(
    repo: str,
    folder: PurePosixPath,
    params: list[hub.HubFile],
    revision: str | None,
    local: Path | None,
    model_name: str,
) -> None:
    """Refuse, as of local files, what config.json, the names and the headers tell apart."""
    parsed = check_folder(folder)
    config = {} if local is None else read_config(local)
    layers = parsed.layers or tuple(range(len(params)))
    check_model(identify(folder, repo.rsplit("/", 1)[-1], config, layers), model_name)
    name, headers = str(folder), {}
    for file in params:
        start = hub.read_start(repo, file, revision)
        header = start and parse_header(
            start, PurePosixPath(file.path).name, name, multi_layer=parsed.family.is_multi_layer
        )
        if not header:
            return  # The file itself is read when it is here.
        headers[PurePosixPath(file.path).name] = header
    check_headers(headers, parsed, name)
