"""Reading coders from files in Gemma Scope 2's layout: what they are, and whether they fit.

``<repo>/<family>/<folder>/`` holds ``config.json`` and ``params.safetensors``, or, in crosscoders
and CLTs, one ``params_layer_<i>.safetensors`` for each layer. Only safetensors are read: a pickled
file is never opened.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scopelake.errors import CoderFileError, CoderMismatchError, CoderWarning
from scopelake.ingest.capture import site_width
from scopelake.ingest.coder_header import Header, read_header
from scopelake.ingest.coder_identity import (
    CoderIdentity,
    check_folder,
    check_model,
    contradictions,
    read_config,
    read_identity,
)
from scopelake.ingest.digest import digest_files
from scopelake.ingest.families import FolderName, is_of_width
from scopelake.ingest.model import ModelIdentity
from scopelake.names import counted

PARAMS: Final = "params.safetensors"
LAYER_PARAMS: Final = re.compile(r"params_layer_(\d+)\.safetensors\Z")


@dataclass(frozen=True, kw_only=True)
class CoderHeaders(CoderIdentity):
    """A coder with its files, known by their safetensors headers alone."""

    path: Path
    """The folder."""
    params: tuple[Path, ...]
    """Files of weights, one for each encoder."""
    features_per_layer: int
    """Features of each encoder; feature f belongs to encoder f // features_per_layer."""
    d_in: int
    d_out: int
    n_bytes: int

    @property
    def width(self) -> int:
        """Number of features, of all encoders together."""
        return self.features_per_layer * len(self.sites)


@dataclass(frozen=True, kw_only=True)
class CoderFiles(CoderHeaders):
    """A coder whose files were read whole once, for their digest; no weights are kept."""

    digest: str


def read_coder(path: Path, repo: str | None = None, model_name: str | None = None) -> CoderFiles:
    """Read what the coder in folder `path` is, and the digest of its weights.

    Args, errors and warnings are those of `read_headers`.
    """
    found = read_headers(path, repo, model_name)
    return CoderFiles(**vars(found), digest=digest_files(found.params))


def read_headers(
    path: Path, repo: str | None = None, model_name: str | None = None
) -> CoderHeaders:
    """Read what the coder in folder `path` is, as far as names, config.json and headers tell.

    Args:
        path: its folder.
        repo: the repository's name, if the folder's grandparent is not called so.
        model_name: of the model that it is for: another's is refused before its weights are hashed.

    Raises:
        CoderFileError: missing files, an unknown family or folder name, wrong keys or shapes.
        CoderMismatchError: it was trained on another model than `model_name`.

    Warns:
        CoderWarning: nothing says which model it was trained on, or config.json gives another type,
            width or affine than the folder's name and the files.
    """
    path = path.resolve()
    name = f"{path.parent.name}/{path.name}"
    parsed = check_folder(path)
    params = _params_files(path, parsed, name)
    identity = read_identity(path, repo, parsed.layers or tuple(range(len(params))))
    if model_name is not None:
        check_model(identity, model_name)
    if identity.model_name is None:
        warnings.warn(
            f"coder {identity.name} does not say which model it was trained on: it has no "
            f"config.json that does, and {identity.repo} is not called gemma-scope-2-<model>; "
            "check that it is of the model that you use",
            CoderWarning,
            stacklevel=2,
        )
    multi_layer = parsed.family.is_multi_layer
    headers = {p.name: read_header(p, name, multi_layer=multi_layer) for p in params}
    header = check_headers(headers, parsed, name)
    if odd := contradictions(
        read_config(path), type=identity.type, affine=header.affine,
        width=header.width * len(params),
    ):  # fmt: skip
        warnings.warn(
            f"coder {identity.name} has a config.json of {'; '.join(odd)}; what its folder's name "
            "and its files say is taken; check that they belong together",
            CoderWarning,
            stacklevel=2,
        )
    return CoderHeaders(
        **vars(identity),
        path=path,
        params=params,
        features_per_layer=header.width,
        d_in=header.d_in,
        d_out=header.d_out,
        n_bytes=sum(file.stat().st_size for file in params),
    )


def check_fits(coder: CoderHeaders, model: ModelIdentity) -> None:
    """Refuse a coder that was not made for this model or does not fit its sites.

    Raises:
        CoderMismatchError: another model, layers that are not there, or another width.
    """
    check_model(coder, model.name)
    if coder.type == "clt" and len(coder.sites) != model.n_layers:
        raise CoderMismatchError(
            f"coder {coder.name} has files for {counted(len(coder.sites), 'layer')}; "
            f"{model.name} has "
            f"{model.n_layers}; fetch all of them, or use a coder of this model"
        )
    for site, width in (
        *((s, coder.d_in) for s in coder.sites),
        *((s, coder.d_out) for s in coder.targets),
    ):
        if width != site_width(model, site):
            verb = "reads" if width == coder.d_in else "writes"
            raise CoderMismatchError(
                f"coder {coder.name} {verb} {width} values; {site} of {model.name} has "
                f"{site_width(model, site)}; use a coder of this model"
            )


def _params_files(path: Path, parsed: FolderName, name: str) -> tuple[Path, ...]:
    """The weights, in the order of the layers: ``_<i>`` counts from 0 within the coder."""
    if not parsed.family.is_multi_layer:
        if not (path / PARAMS).is_file():
            raise CoderFileError(
                f"coder {name} was asked for; {path} holds no {PARAMS}; fetch it (pickled weights "
                "are not read)"
            )
        return (path / PARAMS,)
    found = {int(m[1]): file for file in path.iterdir() if (m := LAYER_PARAMS.match(file.name))}
    n_layers = len(parsed.layers) if parsed.layers else len(found)
    if not found or sorted(found) != list(range(n_layers)):
        there = ", ".join(map(str, sorted(found))) or "none"
        raise CoderFileError(
            f"coder {name} was asked for; of params_layer_<i>.safetensors, i from 0 to "
            f"{max(n_layers - 1, 0)}, {path} holds {there}; fetch the others"
        )
    return tuple(found[i] for i in range(n_layers))


def check_headers(headers: dict[str, Header], parsed: FolderName, name: str) -> Header:
    """Return the header that all files of a coder have, by the files' names.

    Raises:
        CoderFileError: they differ, or do not have one output for each layer, or are not what the
            folder's name says.
    """
    (first_file, first), *_ = headers.items()
    for file, header in headers.items():
        if header != first:
            raise CoderFileError(
                f"coder {name} was asked for; {first_file} is {first} and {file} is "
                f"{header}; fetch them again"
            )
    if first.n_out != len(headers):
        raise CoderFileError(
            f"coder {name} was asked for; its decoder writes to {counted(first.n_out, 'layer')} "
            f"and it has "
            f"files for {len(headers)}; fetch the others"
        )
    width = first.width * len(headers)
    if not is_of_width(parsed, width):
        raise CoderFileError(
            f"coder {name} was asked for; its files have {width:,} features and its folder's name "
            f"says {parsed.width_label}; fetch it again into a folder of its own"
        )
    if first.affine != parsed.affine:
        raise CoderFileError(
            f"coder {name} was asked for; its file {'has' if first.affine else 'lacks'} an affine "
            "skip connection and its folder's name says otherwise; fetch it again"
        )
    return first
