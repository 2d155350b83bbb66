"""From what a user names to coder folders: local folders, patterns over them, hub ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from glob import glob
from pathlib import Path
from typing import Final

from scopelake.errors import CoderFileError
from scopelake.ingest import hub
from scopelake.ingest.coders import LAYER_PARAMS, PARAMS, CoderFiles, read_coder

_HUB_ID: Final = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?/(?P<inner>[^/]+/[^/]+)\Z"
)


def find_coders(specs: Sequence[str | Path]) -> list[CoderFiles]:
    """Return the coders that `specs` name, sorted by layer and name, each once.

    Args:
        specs: folders of a coder, of a family or of a whole repo; shell patterns over such
            paths; hub ids ``<org>/<repo>[@<revision>]/<family>/<folder>``, the last two of which
            may be patterns.

    Raises:
        CoderFileError: a spec names no coder, or two folders share a name.
        HubError: the hub did not give a coder.
    """
    if not specs:
        raise CoderFileError("no SAE was asked for; name at least one folder, pattern or hub id")
    found: dict[str, CoderFiles] = {}
    for spec in specs:
        for path, repo in _folders(str(spec)):
            coder = read_coder(path, repo)
            earlier = found.setdefault(coder.name, coder)
            if earlier.path != coder.path:
                raise CoderFileError(
                    f"coder {coder.name} was asked for twice, from {earlier.path} and "
                    f"{coder.path}; name one of them"
                )
    return sorted(found.values(), key=lambda c: (c.sites[0].layer, c.name))


def is_weights(name: str) -> bool:
    """Whether a file of that name holds a coder's weights, or those of one of its layers."""
    return name == PARAMS or LAYER_PARAMS.match(name) is not None


def coder_folders(root: Path) -> list[Path]:
    """Return the folders of coders in `root`, itself or below it, sorted."""
    files = root.rglob("params*.safetensors")
    return sorted({file.parent for file in files if is_weights(file.name)})


def _folders(spec: str) -> list[tuple[Path, str | None]]:
    matches = sorted(Path(m) for m in glob(spec, recursive=True))
    folders = sorted({f for m in matches if m.is_dir() for f in coder_folders(m)})
    if folders:
        return [(folder, None) for folder in folders]
    hub_id = _HUB_ID.match(spec)
    if hub_id and not matches:
        name = hub_id["repo"].rsplit("/", 1)[-1]
        paths = _fetch(hub_id["repo"], hub_id["inner"], hub_id["revision"])
        return [(path, name) for path in paths]
    found = "the folder holds no coder" if matches else "there is no such folder"
    raise CoderFileError(
        f"SAE {spec!r} was asked for; {found}; name a folder with {PARAMS}, a pattern over such "
        "folders, or a hub id <org>/<repo>/<family>/<folder>"
    )


def _fetch(repo: str, pattern: str, revision: str | None) -> list[Path]:
    """Fetch exactly the files that encoding needs; examples.safetensors is far larger."""
    plain = not any(c in pattern for c in "*?[")
    listed = hub.list_files(repo, pattern if plain else None, revision)
    wanted = [
        file.path
        for file in listed
        if (is_weights(Path(file.path).name) or Path(file.path).name == "config.json")
        and fnmatchcase(str(Path(file.path).parent), pattern)
    ]
    weights = [path for path in wanted if is_weights(Path(path).name)]
    if not weights:
        raise CoderFileError(
            f"SAE {repo}/{pattern} was asked for; {repo} has no weights of that name; "
            f"`scopelake saes {repo}` lists what it has"
        )
    local = {path: hub.fetch_file(repo, path, revision) for path in wanted}
    return sorted({local[path].parent for path in weights})
