"""From what a user names to coder folders: local folders, patterns over them, hub ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import Final

from scopelake.errors import CoderFileError
from scopelake.ingest.coders import PARAMS, CoderFiles, read_coder

_HUB_ID: Final = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)/(?P<inner>[\w.-]+/[\w.-]+)\Z")


def find_coders(specs: Sequence[str | Path]) -> list[CoderFiles]:
    """Return the coders that `specs` name, sorted by layer and name, each once.

    Args:
        specs: folders of a coder, of a family or of a whole repo; shell patterns over such
            paths; or hub ids ``<org>/<repo>/<family>/<folder>``.

    Raises:
        CoderFileError: a spec names no coder, or two folders share a name.
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
    return sorted(found.values(), key=lambda c: (c.site.layer, c.name))


def _folders(spec: str) -> list[tuple[Path, str | None]]:
    matches = sorted(Path(m) for m in glob(spec, recursive=True))
    folders = sorted({p.parent for m in matches if m.is_dir() for p in m.rglob(PARAMS)})
    if folders:
        return [(folder, None) for folder in folders]
    hub = _HUB_ID.match(spec)
    if hub and not matches:
        return [(_fetch(hub["repo"], hub["inner"]), hub["repo"].rsplit("/", 1)[-1])]
    found = "the folder holds no coder" if matches else "there is no such folder"
    raise CoderFileError(
        f"SAE {spec!r} was asked for; {found}; name a folder with {PARAMS}, a pattern over such "
        "folders, or a hub id <org>/<repo>/<family>/<folder>"
    )


def _fetch(repo: str, inner: str) -> Path:
    """Fetch exactly the two files that encoding needs; examples.safetensors is far larger."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        params = hf_hub_download(repo, f"{inner}/{PARAMS}")
    except Exception as error:  # every hub failure (gated, missing, offline) becomes one line
        raise CoderFileError(
            f"SAE {repo}/{inner} was asked for; it is no local folder and the hub did not give it "
            f"({type(error).__name__}); check the name and the network, and set HF_TOKEN if the "
            "repository is gated"
        ) from error
    # Some published folders have no config; the folder's name then says what is needed.
    with suppress(EntryNotFoundError):
        hf_hub_download(repo, f"{inner}/config.json")
    return Path(params).parent
