"""Which SAE a call means: by name, by a unique ending of it, or by layer and site."""

from __future__ import annotations

from dataclasses import dataclass

from scopelake.errors import (
    AmbiguousSaeError,
    FeatureNotFoundError,
    LayerNotFoundError,
    SaeNotFoundError,
)
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot


@dataclass(frozen=True)
class SaeInfo:
    """An SAE of the lake."""

    name: str
    site: str
    layer: int
    width: int
    """Number of features."""


def list_saes(store: LakeStore, snapshot: Snapshot) -> list[SaeInfo]:
    """Return every SAE of the lake, by layer and name."""
    rows = store.read("saes", snapshot, ["sae", "site", "layer", "width"]).to_pylist()
    found = [SaeInfo(r["sae"], r["site"], r["layer"], r["width"]) for r in rows]
    return sorted(found, key=lambda s: (s.layer, s.name))


def resolve_sae(
    store: LakeStore,
    snapshot: Snapshot,
    *,
    sae: str | None = None,
    layer: int | None = None,
    site: str | None = None,
    feature: int | None = None,
) -> SaeInfo:
    """Return the one SAE that fits, and check that it has `feature`.

    Args:
        store: the lake.
        snapshot: what of it is read.
        sae: full name, or an ending of it that begins after a slash.
        layer: only SAEs of this layer.
        site: only SAEs of this site.
        feature: must lie in 0 to width - 1.

    Raises:
        SaeNotFoundError: none fits; the message lists those that there are.
        LayerNotFoundError: the lake has none of that layer; it lists the layers.
        AmbiguousSaeError: several fit; it lists them.
        FeatureNotFoundError: the SAE has no such feature.
    """
    there = list_saes(store, snapshot)
    fitting = [
        s
        for s in there
        if (sae is None or s.name == sae or s.name.endswith("/" + sae))
        and layer in (None, s.layer)
        and site in (None, s.site)
    ]
    layers = sorted({s.layer for s in there})
    if layer is not None and there and layer not in layers:
        raise LayerNotFoundError(
            f"layer {layer} was asked for; the lake has SAEs of layers "
            f"{', '.join(map(str, layers))}; choose one of them"
        )
    asked = _asked(sae, layer, site)
    if not fitting:
        raise SaeNotFoundError(
            f"{asked} was asked for; the lake has {_listed(there)}; choose one of them"
        )
    if len(fitting) > 1:
        raise AmbiguousSaeError(
            f"{asked} was asked for; {len(fitting)} SAEs fit: {_listed(fitting)}; name one with sae"
        )
    if feature is not None and not 0 <= feature < fitting[0].width:
        raise FeatureNotFoundError(
            f"feature {feature} of {fitting[0].name} was asked for; it has features 0 to "
            f"{fitting[0].width - 1}; choose one of them"
        )
    return fitting[0]


def _asked(sae: str | None, layer: int | None, site: str | None) -> str:
    parts = [f"{sae!r}" if sae else "", f"layer {layer}" if layer is not None else "", site or ""]
    return "SAE " + (" ".join(p for p in parts if p) or "(none named)")


def _listed(saes: list[SaeInfo]) -> str:
    return ", ".join(s.name for s in saes) or "none: ingest a corpus first"
