"""Reading coders from files in Gemma Scope 2's layout: what they are, and whether they fit.

``<repo>/<family>/<folder>/`` holds ``config.json`` and ``params.safetensors``, or, in crosscoders
and CLTs, one ``params_layer_<i>.safetensors`` for each layer. Only safetensors are read: a pickled
file is never opened.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scopelake.errors import CoderFileError, CoderMismatchError
from scopelake.ingest.capture import site_width
from scopelake.ingest.coder_header import Header, read_header
from scopelake.ingest.digest import digest_files
from scopelake.ingest.families import FolderName, hook_points, parse_folder
from scopelake.ingest.model import LoadedModel
from scopelake.names import SiteLayer

PARAMS: Final = "params.safetensors"
LAYER_PARAMS: Final = re.compile(r"params_layer_(\d+)\.safetensors\Z")
_REPO: Final = re.compile(r"gemma-scope-2-(?P<model>\w+-(?:pt|it))\Z")


@dataclass(frozen=True)
class CoderFiles:
    """A coder's identity, read from its path, config and safetensors headers; no weights yet."""

    path: Path
    """The folder."""
    params: tuple[Path, ...]
    """Files of weights, one for each encoder."""
    name: str
    """``<repo>/<family>/<folder>``"""
    repo: str
    family: str
    folder: str
    type: str
    """``sae``, ``transcoder``, ``crosscoder`` or ``clt``"""
    sites: tuple[SiteLayer, ...]
    """What its encoders read, one each, by layer."""
    targets: tuple[SiteLayer, ...]
    """What it reconstructs."""
    features_per_layer: int
    """Features of each encoder; feature f belongs to encoder f // features_per_layer."""
    d_in: int
    d_out: int
    l0: float | None
    affine: bool
    model_name: str | None
    """The model it was trained on, as config.json or else the repo's name says."""
    hook_in: str
    hook_out: str
    digest: str
    n_bytes: int

    @property
    def width(self) -> int:
        """Number of features, of all encoders together."""
        return self.features_per_layer * len(self.sites)


def read_coder(path: Path, repo: str | None = None) -> CoderFiles:
    """Read what the coder in folder `path` is.

    Raises:
        CoderFileError: missing files, an unknown family or folder name, wrong keys or shapes.
    """
    path = path.resolve()
    family, folder = path.parent.name, path.name
    name = f"{family}/{folder}"
    parsed = parse_folder(family, folder)
    if parsed is None:
        raise CoderFileError(
            f"coder {name} was asked for; its name is not Gemma Scope 2's "
            "(<family>/layer_<N>_width_<W>_l0_<label>); keep the published folder names"
        )
    params = _params_files(path, parsed, name)
    layers = parsed.layers or tuple(range(len(params)))
    header = _check_headers(params, parsed, name)
    config = _read_config(path)
    repo = repo or path.parent.parent.name
    hook_in, hook_out = hook_points(parsed.family, layers)
    return CoderFiles(
        path=path,
        params=params,
        name=f"{repo}/{name}",
        repo=repo,
        family=family,
        folder=folder,
        type=str(config.get("type", parsed.family.type)),
        sites=tuple(SiteLayer(parsed.family.site, layer) for layer in layers),
        targets=tuple(SiteLayer(parsed.family.target, layer) for layer in layers),
        features_per_layer=header.width,
        d_in=header.d_in,
        d_out=header.d_out,
        l0=None if config.get("l0") is None else float(config["l0"]),
        affine=header.affine,
        model_name=config.get("model_name") or _model_of_repo(repo),
        hook_in=str(config.get("hf_hook_point_in", hook_in)),
        hook_out=str(config.get("hf_hook_point_out", hook_out)),
        digest=digest_files(params),
        n_bytes=sum(file.stat().st_size for file in params),
    )


def check_fits(coder: CoderFiles, model: LoadedModel) -> None:
    """Refuse a coder that was not made for this model or does not fit its sites.

    Raises:
        CoderMismatchError: another model, layers that are not there, or another width.
    """
    if coder.model_name is not None and plain_model(coder.model_name) != plain_model(model.name):
        raise CoderMismatchError(
            f"coder {coder.name} was trained on {coder.model_name}; the model given is "
            f"{model.name}; use that model, or give model_name={coder.model_name!r} if this "
            "folder is a copy of it"
        )
    if coder.type == "clt" and len(coder.sites) != model.n_layers:
        raise CoderMismatchError(
            f"coder {coder.name} has files for {len(coder.sites)} layers; {model.name} has "
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


def plain_model(name: str) -> str:
    """Return a model's name without its org, ``-v3`` for ``-3``, and 270m's absent ``-pt``."""
    plain = name.rsplit("/", 1)[-1].lower().replace("-v3", "-3")
    return "gemma-3-270m" if plain == "gemma-3-270m-pt" else plain


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


def _check_headers(params: tuple[Path, ...], parsed: FolderName, name: str) -> Header:
    """The headers of a coder's files must be the same, with one output for each layer."""
    headers = [read_header(p, name, multi_layer=parsed.family.is_multi_layer) for p in params]
    first = headers[0]
    for file, header in zip(params, headers, strict=True):
        if header != first:
            raise CoderFileError(
                f"coder {name} was asked for; {params[0].name} is {first} and {file.name} is "
                f"{header}; fetch them again"
            )
    if first.n_out != len(params):
        raise CoderFileError(
            f"coder {name} was asked for; its decoder writes to {first.n_out} layers and it has "
            f"files for {len(params)}; fetch the others"
        )
    if first.affine != parsed.affine:
        raise CoderFileError(
            f"coder {name} was asked for; its file {'has' if first.affine else 'lacks'} an affine "
            "skip connection and its folder's name says otherwise; fetch it again"
        )
    return first


def _read_config(path: Path) -> dict[str, Any]:
    """Some published folders lack config.json; its facts then come from the folder's name."""
    file = path / "config.json"
    if not file.exists():
        return {}
    try:
        config: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CoderFileError(f"{file} was read; it is not JSON; fetch it again") from error
    return config


def _model_of_repo(repo: str) -> str | None:
    match = _REPO.match(repo)
    return f"gemma-3-{match['model']}" if match else None
