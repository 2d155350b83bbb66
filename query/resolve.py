"""Which SAE a call means: by name, by a unique ending of it, or by layer and site."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from scopelake.errors import (
    AmbiguousSaeError,
    FeatureNotFoundError,
    LayerNotFoundError,
    SaeNotFoundError,
)
from scopelake.names import shortened
from scopelake.store.catalog import published_examples
from scopelake.store.keeping import Keep, partly_kept
from scopelake.store.lake_store import LakeStore
from scopelake.store.running import PEAKS_DEPTH
from scopelake.store.snapshot import Snapshot


@dataclass(frozen=True)
class Partial:
    """What is known of an SAE's firings on a corpus, if not all."""

    depth: int
    """Most contexts of a feature in its peaks."""
    keep: Keep | None = None
    """What an ingest kept; None: the examples that its publisher gives."""

    @property
    def what(self) -> str:
        """What is known, in words."""
        if self.keep is None:
            return f"published examples only, at most {self.depth:,} firings a feature"
        text = f"peaks only, the {self.depth} strongest contexts of a feature"
        share = self.keep.share
        return f"{text}, and all firings of {share:.3g} of the documents" if share else text

    def has(self, document: str) -> bool:
        """Whether all firings of a document are known."""
        return self.keep is not None and self.keep.has(document)


@dataclass(frozen=True)
class SaeInfo:
    """An SAE of the lake."""

    name: str
    site: str
    layers: tuple[int, ...]
    """Those that its encoders read: one in all but crosscoders and CLTs."""
    width: int
    """Number of features."""
    partial: Mapping[str, Partial] = field(default_factory=dict)
    """Corpora of which not all of its firings are known, and what is."""

    def layer_of(self, feature: int) -> int:
        """Return the layer that a feature's encoder reads."""
        return self.layers[feature // (self.width // len(self.layers))]


def list_saes(store: LakeStore, snapshot: Snapshot) -> list[SaeInfo]:
    """Return every SAE of the lake, by layer and name."""
    rows = store.read("saes", snapshot, ["sae", "site", "layers", "width"]).to_pylist()
    partial: dict[str, dict[str, Partial]] = {}
    for (sae, corpus), depth in published_examples(store, snapshot).items():
        partial.setdefault(sae, {})[corpus] = Partial(depth)
    for (sae, corpus), keep in partly_kept(store, snapshot).items():
        partial.setdefault(sae, {})[corpus] = Partial(PEAKS_DEPTH, keep)
    found = [
        SaeInfo(r["sae"], r["site"], tuple(r["layers"]), r["width"], partial.get(r["sae"], {}))
        for r in rows
    ]
    return sorted(found, key=lambda s: (s.layers, s.name))


def resolve_sae(
    there: Sequence[SaeInfo],
    sae: str | None = None,
    layer: int | None = None,
    site: str | None = None,
    feature: int | None = None,
    preferred: Collection[str] = (),
) -> SaeInfo:
    """Return the one SAE that fits, and check that it has `feature`.

    Args:
        there: from `list_saes`.
        sae: full name, or any ending that only one name has.
        layer: only SAEs that read this layer.
        site: only SAEs of this site.
        feature: must lie in 0 to width - 1.
        preferred: where several fit, only those of these names.

    Raises:
        SaeNotFoundError: none fits; the message lists those that there are.
        LayerNotFoundError: none of those that fit otherwise is of that layer; it lists theirs.
        AmbiguousSaeError: several fit; it lists them.
        FeatureNotFoundError: the SAE has no such feature.
    """
    asked = _asked(sae, layer, site)
    if sae == "":
        # Every name ends in it.
        raise SaeNotFoundError(
            f"{asked} was asked for; that is no name; give one of {_listed(there)}, or a unique "
            "ending of it"
        )
    fitting = [s for s in _named(there, sae) if site in (None, s.site)]
    if not fitting:
        raise SaeNotFoundError(
            f"{asked} was asked for; the lake has {_listed(there)}; choose one of them"
        )
    layers = sorted({layer for s in fitting for layer in s.layers})
    if layer is not None and layer not in layers:
        raise LayerNotFoundError(
            f"{asked} was asked for; the lake has {_asked(sae, None, site)} at layers "
            f"{', '.join(map(str, layers))}; choose one of them"
        )
    fitting = [s for s in fitting if layer is None or layer in s.layers]
    if len(fitting) > 1:
        fitting = [s for s in fitting if s.name in preferred] or fitting
    if len(fitting) > 1:
        raise AmbiguousSaeError(
            f"{asked} was asked for; {len(fitting)} SAEs fit: {_listed(fitting)}; name one "
            "with sae=..."
        )
    found = fitting[0]
    if feature is not None and not 0 <= feature < found.width:
        raise FeatureNotFoundError(
            f"feature {feature} of {found.name} was asked for; it has features 0 to "
            f"{found.width - 1}; choose one of them"
        )
    return found


def _named(saes: Sequence[SaeInfo], name: str | None) -> list[SaeInfo]:
    """A full name means that SAE alone, also where other names end in it."""
    if name is None:
        return list(saes)
    return [s for s in saes if s.name == name] or [s for s in saes if s.name.endswith(name)]


def _asked(sae: str | None, layer: int | None, site: str | None) -> str:
    parts = ["an SAE"]
    parts += [f"named {sae!r}"] if sae is not None else []
    parts += [f"of site {site}"] if site is not None else []
    parts += [f"of layer {layer}"] if layer is not None else []
    return " ".join(parts)


def _listed(saes: Sequence[SaeInfo]) -> str:
    if not saes:
        return "none (ingest a corpus first)"
    return shortened([s.name for s in saes])
