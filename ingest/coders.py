"""Reading coders from files in Gemma Scope 2's layout.

``<repo>/<family>/<folder>/{config.json,params.safetensors}``, where the folder is
``layer_<N>_width_<W>_l0_<label>[_affine|_seed_<k>]``. The safetensors header is checked before a
tensor is read. Only safetensors are read: a pickled file is never opened.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from scopelake.errors import CoderFileError, CoderMismatchError
from scopelake.ingest.capture import site_width
from scopelake.ingest.digest import digest_files
from scopelake.ingest.model import LoadedModel
from scopelake.kernels.weights import CoderWeights
from scopelake.names import Site, SiteLayer

PARAMS: Final = "params.safetensors"
FAMILY_SITES: Final[dict[str, Site]] = {
    "resid_post": "resid_post",
    "attn_out": "attn_out",
    "mlp_out": "mlp_out",
    "transcoder": "mlp_in",
}
_FOLDER: Final = re.compile(
    r"layer_(?P<layer>\d+)_width_(?P<width>[0-9a-z]+)_l0_(?P<label>[a-z0-9]+)"
    r"(?P<affine>_affine)?(?:_seed_\d+)?\Z"
)
_TENSORS: Final = ("w_enc", "b_enc", "threshold", "w_dec", "b_dec")
_SKIP: Final = "affine_skip_connection"


@dataclass(frozen=True)
class CoderFiles:
    """A coder's identity, read from its path, config and safetensors header; no weights yet."""

    path: Path
    """The folder."""
    name: str
    """``<repo>/<family>/<folder>``"""
    repo: str
    family: str
    folder: str
    type: str
    """``sae`` or ``transcoder``"""
    site: SiteLayer
    """What it encodes."""
    width: int
    d_in: int
    d_out: int
    l0: float | None
    affine: bool
    model_name: str | None
    """The model it was trained on, as its config says; None where there is no config."""
    hook_in: str
    hook_out: str
    digest: str
    n_bytes: int


def read_coder(path: Path, repo: str | None = None) -> CoderFiles:
    """Read what the coder in folder `path` is.

    Raises:
        CoderFileError: missing files, an unknown family or folder name, wrong keys or shapes.
    """
    path = path.resolve()
    family, folder = path.parent.name, path.name
    match = _FOLDER.match(folder)
    site = FAMILY_SITES.get(family.removesuffix("_all"))
    if match is None or site is None:
        raise CoderFileError(
            f"coder {family}/{folder} was asked for; its name is not Gemma Scope 2's "
            "(<family>/layer_<N>_width_<W>_l0_<label>); keep the published folder names"
        )
    params = path / PARAMS
    if not params.is_file():
        raise CoderFileError(
            f"coder {family}/{folder} was asked for; {path} holds no {PARAMS}; fetch it (pickled "
            "weights are not read)"
        )
    config = _read_config(path)
    shapes = _check_header(params, f"{family}/{folder}")
    repo = repo or path.parent.parent.name
    layer = int(match["layer"])
    hook = _hooks(site, layer)
    return CoderFiles(
        path=path,
        name=f"{repo}/{family}/{folder}",
        repo=repo,
        family=family,
        folder=folder,
        type=str(config.get("type", "transcoder" if site == "mlp_in" else "sae")),
        site=SiteLayer(site, layer),
        width=shapes["w_enc"][1],
        d_in=shapes["w_enc"][0],
        d_out=shapes["w_dec"][1],
        l0=None if config.get("l0") is None else float(config["l0"]),
        affine=_SKIP in shapes,
        model_name=config.get("model_name"),
        hook_in=str(config.get("hf_hook_point_in", hook[0])),
        hook_out=str(config.get("hf_hook_point_out", hook[1])),
        digest=digest_files([params]),
        n_bytes=params.stat().st_size,
    )


def check_fits(coder: CoderFiles, model: LoadedModel) -> None:
    """Refuse a coder that was not made for this model or does not fit its site.

    Raises:
        CoderMismatchError: another model, a layer that is not there, or another width.
    """
    if coder.model_name is not None and _plain(coder.model_name) != _plain(model.name):
        raise CoderMismatchError(
            f"coder {coder.name} was trained on {coder.model_name}; the model given is "
            f"{model.name}; use that model, or give model_name={coder.model_name!r} if this "
            "folder is a copy of it"
        )
    width = site_width(model, coder.site)
    if coder.d_in != width:
        raise CoderMismatchError(
            f"coder {coder.name} reads {coder.d_in} values; {coder.site} of {model.name} has "
            f"{width}; use a coder of this model"
        )


def load_weights(coder: CoderFiles, device: torch.device) -> CoderWeights:
    """Load the weights of `coder` as float32 on `device`, tensor by tensor.

    Raises:
        CoderFileError: a threshold is negative or a value is not finite.
    """
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(coder.path / PARAMS, framework="pt", device=str(device)) as file:
        for key in (*_TENSORS, _SKIP) if coder.affine else _TENSORS:
            tensors[key] = file.get_tensor(key).float()
            if not bool(torch.isfinite(tensors[key]).all()):
                raise CoderFileError(
                    f"coder {coder.name} holds a {key} that is not finite; fetch the file again"
                )
    if bool((tensors["threshold"] < 0).any()):
        raise CoderFileError(
            f"coder {coder.name} has a negative threshold; a JumpReLU's is 0 or more; fetch the "
            "file again"
        )
    names = {key: tensors[key] for key in _TENSORS}
    return CoderWeights(**names, skip=tensors.get(_SKIP))


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


def _check_header(params: Path, name: str) -> dict[str, list[int]]:
    try:
        with safe_open(params, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            shapes = {key: list(s.get_shape()) for key, s in slices.items()}
            dtypes = {key: s.get_dtype() for key, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CoderFileError(
            f"coder {name} was asked for; {params.name} is not a whole safetensors file ({error}); "
            "fetch it again"
        ) from error
    missing = [key for key in _TENSORS if key not in shapes]
    if missing:
        raise CoderFileError(
            f"coder {name} was asked for; its file holds {', '.join(sorted(shapes))} and lacks "
            f"{', '.join(missing)}; use a JumpReLU coder of Gemma Scope 2"
        )
    (d_in, width), d_out = _pair(shapes["w_enc"], name), shapes["b_dec"][-1]
    expected = {
        "w_enc": [d_in, width], "b_enc": [width], "threshold": [width],
        "w_dec": [width, d_out], "b_dec": [d_out], _SKIP: [d_in, d_out],
    }  # fmt: skip
    wrong = [k for k in shapes if k in expected and shapes[k] != expected[k]]
    wrong += [k for k in shapes if k in expected and dtypes[k] not in ("F32", "BF16")]
    if wrong:
        key = wrong[0]
        raise CoderFileError(
            f"coder {name} was asked for; its {key} is {dtypes[key]} {shapes[key]}, expected "
            f"F32 {expected[key]}; fetch the file again"
        )
    return shapes


def _pair(shape: list[int], name: str) -> tuple[int, int]:
    if len(shape) != 2:
        raise CoderFileError(
            f"coder {name} was asked for; its w_enc has shape {shape}, expected [d_in, width]; "
            "use a single-layer coder"
        )
    return shape[0], shape[1]


def _hooks(site: Site, layer: int) -> tuple[str, str]:
    base = f"model.layers.{layer}"
    point = {
        "resid_post": f"{base}.output",
        "attn_out": f"{base}.self_attn.o_proj.input",
        "mlp_out": f"{base}.post_feedforward_layernorm.output",
        "mlp_in": f"{base}.pre_feedforward_layernorm.output",
    }[site]
    return point, f"{base}.post_feedforward_layernorm.output" if site == "mlp_in" else point


def _plain(model_name: str) -> str:
    """Names differ in their org, ``-v3`` for ``-3``, and 270m's absent ``-pt``."""
    name = model_name.rsplit("/", 1)[-1].lower().replace("-v3", "-3")
    return "gemma-3-270m" if name == "gemma-3-270m-pt" else name
