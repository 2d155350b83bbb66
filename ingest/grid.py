"""The published sizes of Gemma 3 and the grid of Gemma Scope 2, by names alone.

So that a plan can be made before anything is downloaded. The sizes are those of
convert_gemma3_weights.py in transformers; the L0s of the coders' config.json follow one rule, which
holds for all 8,784 single-layer coders that SAELens lists (sae-lens 6.54.12, pretrained_saes.yaml).
What a repository really has, `scopelake saes` lists: some of the grid was never uploaded.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from itertools import product
from typing import Final

from scopelake.errors import CoderFileError, CoderMismatchError
from scopelake.ingest.coder_identity import plain_model
from scopelake.ingest.families import FAMILIES, LAYERS, parse_folder
from scopelake.ingest.shapes import CoderShape, ModelShape
from scopelake.names import SiteLayer

_MODEL: Final = re.compile(r"(?:google/)?gemma-3-(270m|1b|4b|12b|27b)(?:-(?:pt|it))?(?:@.*)?\Z")
_SAES: Final = re.compile(
    r"(?:google/)?(gemma-scope-2-(270m|1b|4b|12b|27b)-(?:pt|it))(?:@[\w.-]+)?/(.+)\Z"
)

_SIZES: Final = {
    # d_model, heads, kv heads, head_dim, ffn, vocab, window
    "270m": (640, 4, 1, 256, 2_048, 262_144, 512),
    "1b": (1_152, 4, 1, 256, 6_912, 262_144, 512),
    "4b": (2_560, 8, 4, 256, 10_240, 262_208, 1_024),
    "12b": (3_840, 16, 8, 256, 15_360, 262_208, 1_024),
    "27b": (5_376, 32, 16, 128, 21_504, 262_208, 1_024),
}
PUBLISHED: Final = tuple(
    f"google/gemma-3-{size}-{kind}" for size in _SIZES for kind in ("pt", "it")
)
"""Models whose shapes are known by name."""

_FULL_EVERY: Final = 6
"""Every sixth layer attends to all tokens."""

_L0: Final = {"small": (10, 20), "medium": (30, 60), "big": (60, 150)}
_L0_BIG_ALL: Final = (60, 120)
_WIDTHS: Final = {"16k": 2**14, "65k": 2**16, "262k": 2**18, "1m": 2**20}


def published_model(name: str) -> ModelShape | None:
    """Return the shape of one of the published sizes by its hub id; None for another name."""
    match = _MODEL.match(name)
    if match is None:
        return None
    d_model, heads, kv_heads, head_dim, ffn, vocab, window = _SIZES[match[1]]
    windows = tuple(
        None if (layer + 1) % _FULL_EVERY == 0 else window
        for layer in range(LAYERS[match[1]].n_layers)
    )
    return ModelShape(
        name=name.partition("@")[0], d_model=d_model, n_heads=heads, n_kv_heads=kv_heads,
        head_dim=head_dim, ffn=ffn, vocab=vocab, windows=windows, source="the published sizes",
    )  # fmt: skip


def published_coders(spec: str, model_name: str) -> list[CoderShape] | None:
    """Return the shapes of published single-layer coders by hub id or pattern, by layer and name.

    None if it names no repository of Gemma Scope 2.

    Args:
        spec: ``google/gemma-scope-2-<size>/<family>/<folder>``, the last two perhaps patterns.
        model_name: of the model that they are to encode.

    Raises:
        CoderFileError: no single-layer coder of the grid has such a name.
        CoderMismatchError: they were trained on another model.
    """
    match = _SAES.match(spec)
    if match is None:
        return None
    repo, size, pattern = match.groups()
    trained_on = repo.replace("gemma-scope-2", "gemma-3")
    if plain_model(trained_on) != plain_model(model_name):
        raise CoderMismatchError(
            f"SAE {spec} was asked for; it was trained on {trained_on} and the model given is "
            f"{model_name}; use that model"
        )
    found = [_coder(repo, size, path) for path in _grid(size) if fnmatchcase(path, pattern)]
    if not found:
        raise CoderFileError(
            f"a plan with SAE {spec} was asked for; the published grid has no single-layer coder "
            "of that name; fetch it and name its folder, or see scopelake saes"
        )
    return sorted(found, key=lambda c: (c.sites[0].layer, c.name))


def grid_l0(label: str, layer: int, n_layers: int, *, all_layers: bool) -> int:
    """Return the L0 that a published coder's config.json states: a ramp over a third of depth."""
    start, end = _L0_BIG_ALL if all_layers and label == "big" else _L0[label]
    return int(start + (end - start) * min(1.0, 3 * layer / n_layers))


def _grid(size: str) -> list[str]:
    single = [f for f, family in FAMILIES.items() if not family.is_multi_layer]
    paths = []
    for family in single:
        affine = ("", "_affine") if family == "transcoder" else ("",)
        widths = ["16k", "65k", "262k", *(["1m"] if family == "resid_post" else [])]
        axes = product(LAYERS[size].deep_dive, widths, _L0, affine)
        paths += [f"{family}/layer_{n}_width_{w}_l0_{label}{a}" for n, w, label, a in axes]
        axes = product(range(LAYERS[size].n_layers), ("16k", "262k"), ("small", "big"), affine)
        paths += [f"{family}_all/layer_{n}_width_{w}_l0_{label}{a}" for n, w, label, a in axes]
    return paths


def _coder(repo: str, size: str, path: str) -> CoderShape:
    family, _, folder = path.partition("/")
    parsed = parse_folder(family, folder)
    model = published_model(f"google/gemma-3-{size}-it")
    if parsed is None or parsed.layers is None or model is None:
        raise CoderFileError(f"{path} is of no published grid; name another; see scopelake saes")
    site = SiteLayer(parsed.family.site, parsed.layers[0])
    return CoderShape(
        name=f"{repo}/{path}",
        sites=(site,),
        d_in=model.width(site),
        features_per_layer=_WIDTHS[parsed.width_label],
        l0=grid_l0(parsed.l0_label, site.layer, model.n_layers, all_layers=parsed.all_layers),
        l0_basis="grid",
        has_readout=parsed.family.target != "attn_out",
    )
