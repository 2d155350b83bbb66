"""What coders a repository holds, and what is missing from its grid, from names and sizes alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Final

import pyarrow as pa

from scopelake.errors import CoderFileError
from scopelake.ingest import hub
from scopelake.ingest.coders import PARAMS
from scopelake.ingest.families import LAYERS, FolderName, Layers, parse_folder
from scopelake.ingest.find_coders import is_weights
from scopelake.names import shortened

_SIZE: Final = re.compile(r"(?:.*/)?gemma-scope-2-(\w+)-(?:pt|it)\Z")
_SCHEMA = pa.schema(
    [
        ("sae", pa.string()),
        ("family", pa.string()),
        ("layers", pa.string()),
        ("width", pa.string()),
        ("l0", pa.string()),
        ("affine", pa.bool_()),
        ("seed", pa.int32()),
        ("n_bytes", pa.int64()),
        ("config", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class CoderListing:
    """The coders of one repository."""

    repo: str
    table: pa.Table
    """sae, family, layers, width, l0, affine, seed, n_bytes (of weights), config (whether there is
    a config.json); by family and layer."""
    missing: tuple[str, ...]
    """``<family>/<folder>`` of each combination of a family's layers, widths, L0 labels and affine
    that is not there; labels with seeds are left out. A family has the layers that are there and,
    in a repository whose name tells one of Gemma 3's sizes, those that were published of it."""
    incomplete: tuple[str, ...]
    """``<family>/<folder>`` of coders of several layers that lack some layer's file."""


def list_coders(repo: str | Path, pattern: str | None = None) -> CoderListing:
    """List the coders of a local folder, or of a hub repository, without reading weights.

    Args:
        repo: a folder, or ``<org>/<repo>[@<revision>]``.
        pattern: of ``<family>/<folder>``, such as ``resid_post_all/*_width_16k_l0_small``; of
            what is there and of what is missing, only that which fits.

    Raises:
        CoderFileError: it holds no coder, or none that fits.
        HubError: the hub did not list it.
    """
    path = Path(repo)
    if str(repo) and path.is_dir():
        files = [
            hub.HubFile(file.relative_to(path).as_posix(), file.stat().st_size)
            for file in path.rglob("*")
            if file.is_file()
        ]
        name = hub.repo_of_cached(path.resolve()) or path.resolve().name
    elif (
        str(repo).partition("@")[0].count("/") == 1
        and not str(repo).startswith((".", "/", "~"))
        and not hub.is_local(str(repo))
    ):
        name, _, revision = str(repo).partition("@")
        files = hub.list_files(name, revision=revision or None)
    else:
        raise CoderFileError(
            f"the SAEs of {str(repo)!r} were asked for; there is no such folder; name a folder or "
            "a hub repository such as google/gemma-scope-2-1b-it"
        )
    size = _SIZE.match(name)
    found = _listing(name, files, LAYERS.get(size[1]) if size else None)
    return found if pattern is None else _matching(found, pattern)


def list_cached_coders() -> list[CoderListing]:
    """List the coders that were fetched before, of each hub repository in the local cache.

    What was not fetched of a repository is not missing from it: layers that are not there at all
    are left out.
    """
    files = {repo: hub.list_cached_files(repo) for repo in hub.cached_repos()}
    return [
        _listing(repo, there, None)
        for repo, there in files.items()
        if any(is_weights(PurePosixPath(f.path).name) for f in there)
    ]


def _listing(repo: str, files: Iterable[hub.HubFile], known: Layers | None) -> CoderListing:
    weights: dict[str, list[hub.HubFile]] = {}
    configs = set()
    for file in files:
        path = PurePosixPath(file.path)
        folder = "/".join(path.parts[-3:-1])
        if is_weights(path.name):
            weights.setdefault(folder, []).append(file)
        elif path.name == "config.json":
            configs.add(folder)
    parsed = {f: p for f in weights if (p := parse_folder(*_split(f))) is not None}
    if not parsed:
        raise CoderFileError(
            f"the SAEs of {repo} were asked for; it holds no <family>/<folder>/{PARAMS} of Gemma "
            "Scope 2; name a folder or repository laid out like google/gemma-scope-2-1b-it"
        )
    order = sorted(parsed, key=lambda f: (f.split("/")[0], parsed[f].layers or (), f))
    rows = [
        {
            "sae": folder,
            "family": folder.split("/")[0],
            "layers": _layers_label(parsed[folder]),
            "width": parsed[folder].width_label,
            "l0": parsed[folder].l0_label,
            "affine": parsed[folder].affine,
            "seed": parsed[folder].seed,
            "n_bytes": sum(file.n_bytes for file in weights[folder]),
            "config": folder in configs,
        }
        for folder in order
    ]
    n_files = {folder: len(found) for folder, found in weights.items()}
    return CoderListing(
        repo, pa.Table.from_pylist(rows, schema=_SCHEMA), _missing(parsed, known),
        _incomplete(parsed, n_files, known),
    )  # fmt: skip


def _matching(found: CoderListing, pattern: str) -> CoderListing:
    names = found.table["sae"].to_pylist()
    keep = [fnmatchcase(name, pattern) for name in names]
    if not any(keep):
        raise CoderFileError(
            f"the SAEs {pattern!r} of {found.repo} were asked for; it has {shortened(names)}; give "
            "a pattern of <family>/<folder>, such as 'resid_post/*', or none"
        )
    missing, incomplete = (
        tuple(name for name in group if fnmatchcase(name, pattern))
        for group in (found.missing, found.incomplete)
    )
    return CoderListing(found.repo, found.table.filter(pa.array(keep)), missing, incomplete)


def _missing(parsed: dict[str, FolderName], known: Layers | None) -> tuple[str, ...]:
    by_family: dict[str, list[FolderName]] = {}
    for folder, name in parsed.items():
        if name.seed is None:
            by_family.setdefault(folder.split("/")[0], []).append(name)
    gaps = []
    for family, names in sorted(by_family.items()):
        axes = (
            sorted({n.layers or () for n in names} | _published_layers(names[0], known)),
            sorted({n.width_label for n in names}),
            sorted({n.l0_label for n in names}),
            sorted({n.affine for n in names}),
        )
        for layers, width, l0, affine in product(*axes):
            prefix = f"layer_{'_'.join(map(str, layers))}_" if layers else ""
            end = "_affine" if affine else ""
            wanted = f"{family}/{prefix}width_{width}_l0_{l0}{end}"
            gaps += [] if wanted in parsed else [wanted]
    return tuple(gaps)


def _published_layers(name: FolderName, known: Layers | None) -> set[tuple[int, ...]]:
    """Layers that the family of `name` has in the published repositories."""
    if known is None or name.family.type == "clt":
        return set()
    if name.family.is_multi_layer:
        return {known.deep_dive}
    layers = range(known.n_layers) if name.all_layers else known.deep_dive
    return {(layer,) for layer in layers}


def _incomplete(
    parsed: dict[str, FolderName], n_files: dict[str, int], known: Layers | None
) -> tuple[str, ...]:
    """A crosscoder has a file for each layer of its name, a CLT for each layer of the model.

    Where the model's layers are not known, they are the files of the fullest CLT.
    """
    clt = (
        known.n_layers
        if known
        else max((n_files[f] for f, p in parsed.items() if p.family.type == "clt"), default=0)
    )
    return tuple(
        folder
        for folder, name in sorted(parsed.items())
        if name.family.is_multi_layer and n_files[folder] < (len(name.layers or ()) or clt)
    )


def _split(folder: str) -> tuple[str, str]:
    family, _, inner = folder.partition("/")
    return family, inner


def _layers_label(name: FolderName) -> str:
    return "all" if name.layers is None else ",".join(map(str, name.layers))
