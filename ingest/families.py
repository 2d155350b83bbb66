"""Gemma Scope 2's families and folder names: what a coder is, from where it lies.

<family>/layer_<N>_width_<W>_l0_<label>[_affine|_seed_<k>]      one layer
crosscoder/layer_<a>_<b>_<c>_<d>_width_<W>_l0_<label>           several, named
clt/width_<W>_l0_<label>[_affine]                               every layer of the model
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import log2
from typing import Final

from scopelake.names import Site


@dataclass(frozen=True)
class Family:
    """A kind of coder."""

    type: str
    """What config.json calls it: ``sae``, ``transcoder``, ``crosscoder`` or ``clt``."""
    site: Site
    """What it encodes."""
    target: Site
    """What it reconstructs."""

    @property
    def is_multi_layer(self) -> bool:
        """Whether it has a file of weights for each of several layers."""
        return self.type in ("crosscoder", "clt")


FAMILIES: Final[dict[str, Family]] = {
    "resid_post": Family("sae", "resid_post", "resid_post"),
    "attn_out": Family("sae", "attn_out", "attn_out"),
    "mlp_out": Family("sae", "mlp_out", "mlp_out"),
    "transcoder": Family("transcoder", "mlp_in", "mlp_out"),
    "crosscoder": Family("crosscoder", "resid_post", "resid_post"),
    "clt": Family("clt", "mlp_in", "mlp_out"),
}


@dataclass(frozen=True)
class Layers:
    """Layers of one of Gemma 3's sizes."""

    n_layers: int
    deep_dive: tuple[int, ...]
    """Those of the families that are not ``_all``."""


LAYERS: Final = {
    "270m": Layers(18, (5, 9, 12, 15)),
    "1b": Layers(26, (7, 13, 17, 22)),
    "4b": Layers(34, (9, 17, 22, 29)),
    "12b": Layers(48, (12, 24, 31, 41)),
    "27b": Layers(62, (16, 31, 40, 53)),
}

_TOTAL_TOLERANCE: Final = 0.01
_FOLDER: Final = re.compile(
    r"(?:layer_(?P<layers>\d+(?:_\d+)*)_)?width_(?P<width>\d+[km]?)_l0_(?P<label>[a-z0-9]+?)"
    r"(?P<affine>_affine)?(?:_seed_(?P<seed>\d+))?\Z"
)


@dataclass(frozen=True)
class FolderName:
    """What the names of a coder's two folders say."""

    family: Family
    all_layers: bool
    """Whether the family is an ``_all`` one: other training runs than the deep-dive folders'."""
    layers: tuple[int, ...] | None
    """None for a CLT, whose layers are its files."""
    width_label: str
    l0_label: str
    affine: bool
    seed: int | None


def parse_folder(family: str, folder: str) -> FolderName | None:
    """Return what ``<family>/<folder>`` says, or None if it is no name of Gemma Scope 2's."""
    known = FAMILIES.get(family.removesuffix("_all"))
    match = _FOLDER.match(folder)
    if known is None or match is None:
        return None
    layers = tuple(map(int, match["layers"].split("_"))) if match["layers"] else None
    counted = {"clt": layers is None, "crosscoder": layers is not None and len(layers) > 1}
    if not counted.get(known.type, layers is not None and len(layers) == 1):
        return None
    return FolderName(
        known,
        family.endswith("_all"),
        layers,
        match["width"],
        match["label"],
        match["affine"] is not None,
        int(match["seed"]) if match["seed"] else None,
    )


def is_of_width(name: FolderName, width: int) -> bool:
    """Whether a coder of `width` features, of all layers together, fits its folder's label.

    ``16k`` is 16,384, ``1m`` 1,048,576. Over several layers the total is not exact: the 262k CLT
    of the 1b has 26 times 10,080 features, 262,080.
    """
    digits = name.width_label.rstrip("km")
    unit = {"k": 1_000, "m": 1_000_000}.get(name.width_label[len(digits) :])
    nominal = int(digits) if unit is None else 2 ** round(log2(max(1, int(digits)) * unit))
    slack = nominal * _TOTAL_TOLERANCE if name.family.is_multi_layer else 0
    return abs(width - nominal) <= slack


def is_hook_point(written: str, derived: str) -> bool:
    """Whether config.json's hook point is the one that a folder's name says.

    The modules above the layers may be called otherwise, as in the multimodal sizes.
    """
    return written.replace(" ", "").partition("layers.")[2] == derived.partition("layers.")[2]


def hook_points(family: Family, layers: tuple[int, ...]) -> tuple[str, str]:
    """Return the hook points in and out as config.json writes them."""
    inner = str(layers[0]) if not family.is_multi_layer else f"{{{','.join(map(str, layers))}}}"
    ends: dict[Site, str] = {
        "resid_post": "output",
        "attn_out": "self_attn.o_proj.input",
        "mlp_out": "post_feedforward_layernorm.output",
        "mlp_in": "pre_feedforward_layernorm.output",
    }
    base = f"model.layers.{'{all}' if family.type == 'clt' else inner}"
    return f"{base}.{ends[family.site]}", f"{base}.{ends[family.target]}"
