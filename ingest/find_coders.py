"""From what a user names to coder folders: local folders, patterns over them, hub ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from glob import glob
from pathlib import Path
from typing import Final, Protocol, TypeVar

from scopelake.errors import CoderFileError
from scopelake.ingest.coders import LAYER_PARAMS, PARAMS, CoderFiles, read_coder
from scopelake.ingest.examples import EXAMPLES, Examples, read_examples
from scopelake.ingest.fetch_coders import fetch_folders
from scopelake.names import SiteLayer

_HUB_ID: Final = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?/(?P<inner>[^/]+/[^/]+)\Z"
)


def find_coders(specs: Sequence[str | Path], model_name: str | None = None) -> list[CoderFiles]:
    """Return the coders that `specs` name, sorted by layer and name, each once.

    Args:
        specs: folders of a coder, of a family or of a whole repo; shell patterns over such
            paths; hub ids ``<org>/<repo>[@<revision>]/<family>/<folder>``, the last two of which
            may be patterns.
        model_name: of the model that they are for, so that a coder of another is refused before
            its weights are fetched and hashed.

    Raises:
        CoderFileError: a spec names no coder, or two folders share a name.
        CoderMismatchError: a coder was trained on another model than `model_name`.
        HubError: the hub did not give a coder.
    """
    return _find(
        specs, is_weights, lambda path, repo: read_coder(path, repo, model_name), model_name
    )


def find_examples(specs: Sequence[str | Path]) -> list[Examples]:
    """Return the example files that `specs` name, as `find_coders` does; weights are not fetched.

    Raises:
        CoderFileError: a spec names no file of examples, or two folders share a name.
        HubError: the hub did not give a file.
    """
    return _find(specs, lambda name: name == EXAMPLES, read_examples)


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
    is_wanted: _IsWanted,
    read: Callable[[Path, str | None], _T],
    model_name: str | None = None,
) -> list[_T]:
    if not specs:
        raise CoderFileError("no SAE was asked for; name at least one folder, pattern or hub id")
    found: dict[str, _T] = {}
    for spec in specs:
        for path, repo in _folders(str(spec), is_wanted, model_name):
            coder = read(path, repo)
            earlier = found.setdefault(coder.name, coder)
            if earlier.path != coder.path:
                raise CoderFileError(
                    f"coder {coder.name} was asked for twice, from {earlier.path} and "
                    f"{coder.path}; name one of them"
                )
    return sorted(found.values(), key=lambda c: (c.sites[0].layer, c.name))


def _folders(
    spec: str, is_wanted: _IsWanted, model_name: str | None
) -> list[tuple[Path, str | None]]:
    matches = sorted(Path(m) for m in glob(spec, recursive=True))
    files = (f for m in matches if m.is_dir() for f in m.rglob("*.safetensors"))
    folders = sorted({file.parent for file in files if is_wanted(file.name)})
    if folders:
        return [(folder, None) for folder in folders]
    hub_id = _HUB_ID.match(spec)
    wanted = EXAMPLES if is_wanted(EXAMPLES) else PARAMS
    if hub_id and not matches:
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
    raise CoderFileError(
        f"SAE {spec!r} was asked for; {found}; name a folder with {wanted}, a pattern over such "
        "folders, or a hub id <org>/<repo>/<family>/<folder>"
    )
