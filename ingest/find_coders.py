"""From what a user names to coder folders: local folders, patterns over them, hub ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Final, Protocol, TypeVar

from scopelake.errors import CoderFileError
from scopelake.ingest import hub
from scopelake.ingest.coders import (
    LAYER_PARAMS,
    PARAMS,
    CoderFiles,
    CoderHeaders,
    read_coder,
    read_headers,
)
from scopelake.ingest.examples import EXAMPLES, Examples, read_examples
from scopelake.ingest.fetch_coders import fetch_folders
from scopelake.names import SiteLayer, shortened

_HUB_ID: Final = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?/(?P<inner>[^/]+/[^/]+)\Z"
)


def find_coders(
    specs: Sequence[str | Path],
    model_name: str | None = None,
    bundled: Mapping[str, Path] | None = None,
) -> list[CoderFiles]:
    """Return the coders that `specs` name, sorted by layer and name, each once.

    Args:
        specs: folders of a coder, of a family or of a whole repo; shell patterns over such
            paths; hub ids ``<org>/<repo>[@<revision>]/<family>/<folder>``, the last two of which
            may be patterns.
        model_name: of the model that they are for, so that a coder of another is refused before
            its weights are fetched and hashed.
        bundled: folders of repositories by the names that they go by in `specs`.

    Raises:
        CoderFileError: a spec names no coder, or two folders share a name.
        CoderMismatchError: a coder was trained on another model than `model_name`.
        HubError: the hub did not give a coder.
    """
    return _find(
        specs,
        bundled or {},
        is_weights,
        lambda path, repo: read_coder(path, repo, model_name),
        model_name,
    )


def find_examples(
    specs: Sequence[str | Path], bundled: Mapping[str, Path] | None = None
) -> list[Examples]:
    """Return the example files that `specs` name, as `find_coders` does; weights are not fetched.

    Raises:
        CoderFileError: a spec names no file of examples, or two folders share a name.
        HubError: the hub did not give a file.
    """
    return _find(specs, bundled or {}, lambda name: name == EXAMPLES, read_examples)


def find_headers(
    specs: Sequence[str | Path],
    model_name: str | None = None,
    bundled: Mapping[str, Path] | None = None,
) -> list[CoderHeaders]:
    """Return the coders that `specs` name, as `find_coders` does, with only their headers read.

    Nothing is fetched: those of the hub have to be here.

    Raises:
        CoderFileError, CoderMismatchError: as in `find_coders`.
    """
    return _find(
        specs,
        bundled or {},
        is_weights,
        lambda path, repo: read_headers(path, repo, model_name),
        may_fetch=False,
    )


def is_weights(name: str) -> bool:
    """Whether a file of that name holds a coder's weights, or those of one of its layers."""
    return name == PARAMS or LAYER_PARAMS.match(name) is not None


_IsWanted = Callable[[str], bool]
"""Whether a file of that name makes a folder one that is looked for."""


class _Found(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def sites(self) -> tuple[SiteLayer, ...]: ...


_T = TypeVar("_T", bound=_Found)


def _find(
    specs: Sequence[str | Path],
    bundled: Mapping[str, Path],
    is_wanted: _IsWanted,
    read: Callable[[Path, str | None], _T],
    model_name: str | None = None,
    *,
    may_fetch: bool = True,
) -> list[_T]:
    if not specs:
        raise CoderFileError("no SAE was asked for; name at least one folder, pattern or hub id")
    found: dict[str, _T] = {}
    for spec in specs:
        for path, repo in _folders(str(spec), bundled, is_wanted, model_name, may_fetch=may_fetch):
            coder = read(path, repo)
            earlier = found.setdefault(coder.name, coder)
            if earlier.path != coder.path:
                raise CoderFileError(
                    f"coder {coder.name} was asked for twice, from {earlier.path} and "
                    f"{coder.path}; name one of them"
                )
    return sorted(found.values(), key=lambda c: (c.sites[0].layer, c.name))


def _folders(
    spec: str,
    bundled: Mapping[str, Path],
    is_wanted: _IsWanted,
    model_name: str | None,
    *,
    may_fetch: bool,
) -> list[tuple[Path, str | None]]:
    head, _, rest = spec.partition("/")
    path = str(bundled[head] / rest) if head in bundled else spec
    matches = sorted(Path(m) for m in glob(path, recursive=True))
    files = (f for m in matches if m.is_dir() for f in m.rglob("*.safetensors"))
    folders = sorted({file.parent for file in files if is_wanted(file.name)})
    if folders:
        return [(folder, None) for folder in folders]
    hub_id = _HUB_ID.match(spec)
    wanted = EXAMPLES if is_wanted(EXAMPLES) else PARAMS
    if hub_id and not matches and head not in bundled and not hub.is_local(spec):
        if not may_fetch:
            raise CoderFileError(
                f"SAE {spec} was asked for; its headers are to be read, it is not here and nothing "
                "is fetched for that; name a folder, or one that Gemma Scope 2 publishes"
            )
        name = hub_id["repo"].rsplit("/", 1)[-1]
        paths = fetch_folders(
            hub_id["repo"], hub_id["inner"], hub_id["revision"], is_wanted, model_name
        )
        if not paths:
            raise CoderFileError(
                f"SAE {spec} was asked for; {hub_id['repo']} has no {wanted} of that name; "
                f"`scopelake saes {hub_id['repo']}` lists what it has"
            )
        return [(path, name) for path in paths]
    found = f"the folder holds no {wanted}" if matches else "there is no such folder"
    if there := _there(path, is_wanted):
        raise CoderFileError(
            f"SAE {spec!r} was asked for; {found}; {there[0]} has "
            f"{shortened(there[1:])}; choose among these"
        )
    raise CoderFileError(
        f"SAE {spec!r} was asked for; {found}; name a folder with {wanted}, a pattern over such "
        "folders, or a hub id <org>/<repo>/<family>/<folder>"
    )


def _there(path: str, is_wanted: _IsWanted) -> list[str]:
    """Return the nearest folder above `path` that holds coders, then what it holds."""
    for parent in [*Path(path).parents][:3]:
        if parent in (Path(), Path(parent.anchor)) or not parent.is_dir():
            continue
        files = [*parent.glob("*/*.safetensors"), *parent.glob("*/*/*.safetensors")]
        folders = {f.parent.relative_to(parent).as_posix() for f in files if is_wanted(f.name)}
        if folders:
            return [parent.name, *sorted(folders)]
    return []
