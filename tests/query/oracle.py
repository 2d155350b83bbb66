"""A random lake as plain Python knows it: contexts, firings, decoders, and nothing of our code."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

ROLES = ("none", "user", "model", "system", "tool")
KINDS = ("content", "template", "bos", "generated")

BOS = 0
SPELT = (
    "<bos>",
    "the",
    " cat",
    "\n",
    "é",
    "日本",
    "<b>",
    " & ",
    "'q\"",
    " sat",
    "\x1b[31m",
    "",
    "🙂",
)
"""Text of each token id. 11 is the first byte of a character that 12 has the whole of."""
FIRST_BYTE = 11

N_LAKES = 8
"""Random lakes that are asked; their seeds count from 0."""

WIDTH = 8
BANDS = 32
SAES = {
    "gs-2/resid_post/layer_1_width_8": ("resid_post", (1,)),
    "gs-2/clt/width_4_affine": ("mlp_in", (1, 2)),
}
RESID, CLT = SAES
QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}
N_NEIGHBORS = 3

DENSE, ON_BOS, SILENT = 0, 1, WIDTH - 1
"""Features that fire nearly everywhere, on BOS alone, and never."""


@dataclass(frozen=True)
class Document:
    """A document, or the part of it that a context has."""

    id: str
    index: int
    part: int
    lang: str
    position: int
    """Its first token in the context."""
    chars: tuple[int, int]
    """In the document."""

    @property
    def metadata(self) -> str:
        return json.dumps({"lang": self.lang})


@dataclass(frozen=True)
class Context:
    """A context; lists are by position."""

    corpus: str
    number: int
    ids: list[int]
    texts: list[str]
    """What each token has of the text: nothing, if it is a BOS that was added."""
    roles: list[str]
    turns: list[int]
    kinds: list[str]
    documents: list[Document]

    @property
    def key(self) -> tuple[str, int]:
        return self.corpus, self.number

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def shown(self) -> list[str]:
        """The tokens as they are shown: an added BOS has a sign."""
        return [
            SPELT[BOS] if kind == "bos" and not text else text
            for text, kind in zip(self.texts, self.kinds, strict=True)
        ]

    def document(self, position: int) -> Document:
        return [d for d in self.documents if d.position <= position][-1]


@dataclass(frozen=True)
class Corpus:
    """A corpus and how it was cut."""

    name: str
    chat: bool
    packed: bool
    bos: str
    shard_contexts: int
    ends: list[int]
    contexts: list[Context]

    @cached_property
    def n_bos(self) -> int:
        return sum(c.kinds.count("bos") for c in self.contexts)

    @cached_property
    def n_tokens(self) -> int:
        """Without BOS."""
        return sum(len(c.ids) for c in self.contexts) - self.n_bos


@dataclass(frozen=True, order=True)
class Firing:
    """A firing, rounded as it is stored."""

    sae: str
    corpus: str
    context: int
    position: int
    feature: int
    activation: float


@dataclass(frozen=True)
class Statistics:
    """Statistics of some activations among some tokens, BOS left out."""

    activations: list[float]
    n_tokens: int

    @property
    def values(self) -> dict[str, object]:
        """By name; mean, max and quantiles are None without firings."""
        n = len(self.activations)
        found = {"firings": n, "n_tokens": self.n_tokens, "density": n / self.n_tokens,
                 "histogram": self.histogram, "mean": None, "max": None}  # fmt: skip
        found |= dict.fromkeys(QUANTILES)
        if n:
            ordered = np.array(sorted(self.activations))
            found |= {"mean": math.fsum(ordered) / n, "max": ordered[-1]}
            found |= {name: float(np.quantile(ordered, q)) for name, q in QUANTILES.items()}
        return found

    @property
    def histogram(self) -> list[int]:
        counts = [0] * BANDS
        for activation in self.activations:
            counts[band(activation)] += 1
        return counts


@dataclass
class World:
    """All that is in a lake."""

    corpora: dict[str, Corpus]
    firings: list[Firing]
    """Of every context, kept or not."""
    bits: int
    runs: dict[tuple[str, str], str]
    """What each (SAE, corpus) that was run kept: all, peaks or sample:<share>."""
    decoders: dict[str, np.ndarray]
    """[width, 4] of each SAE."""
    labels: list[tuple[str, int, str, str]] = field(default_factory=list)
    """sae, feature, label, source."""
    is_compacted: bool = False

    @cached_property
    def contexts(self) -> dict[tuple[str, int], Context]:
        return {c.key: c for corpus in self.corpora.values() for c in corpus.contexts}

    @cached_property
    def of_feature(self) -> dict[tuple[str, int], list[Firing]]:
        found: dict[tuple[str, int], list[Firing]] = {}
        for firing in self.firings:
            found.setdefault((firing.sae, firing.feature), []).append(firing)
        return found

    def kind(self, firing: Firing) -> str:
        return self.contexts[firing.corpus, firing.context].kinds[firing.position]

    def on(self, sae: str, corpus: str | None = None) -> list[str]:
        """Corpora that an SAE was run on, of those asked for."""
        return sorted(c for s, c in self.runs if s == sae and corpus in (None, c))

    def whole(self, sae: str, corpus: str | None = None) -> list[str]:
        """Those of them of which all firings are kept."""
        return [c for c in self.on(sae, corpus) if self.runs[sae, c] == "all"]

    def fired(
        self, sae: str, feature: int, corpus: str | None = None, *, bos: bool = False
    ) -> list[Firing]:
        """Firings of a feature, those that were not kept included."""
        return [
            f
            for f in self.of_feature.get((sae, feature), [])
            if corpus in (None, f.corpus) and (bos or self.kind(f) != "bos")
        ]

    def statistics(self, sae: str, feature: int, corpora: list[str]) -> Statistics:
        mine = [f.activation for f in self.fired(sae, feature) if f.corpus in corpora]
        return Statistics(mine, sum(self.corpora[c].n_tokens for c in corpora))

    def neighbors(self, sae: str, feature: int, other: str) -> list[tuple[int, float]]:
        """Nearest features by cosine, which is a float32; of equal ones the lower first."""
        mine = self.decoders[sae][feature]
        found = []
        for j, theirs in enumerate(self.decoders[other]):
            length = np.linalg.norm(mine) * np.linalg.norm(theirs)
            if length > 0 and (sae, feature) != (other, j):
                found.append((-float(np.float32(mine @ theirs / length)), j))
        return [(j, -cosine) for cosine, j in sorted(found)[:N_NEIGHBORS]]

    def spelling(self, token_id: int) -> str:
        """The text of a token where it stands for whole characters, U+FFFD if that is nowhere."""
        for context in self.contexts.values():
            for position, one in enumerate(context.ids):
                before = position - 1
                split = before >= 0 and not context.texts[before] and (
                    context.kinds[before] != "bos"
                )  # fmt: skip
                if one == token_id and context.shown[position] and not split:
                    return context.shown[position]
        return "\N{REPLACEMENT CHARACTER}"


def band(activation: float) -> int:
    """The power of two of an activation, 2^-8 is the lowest: 0 to 31."""
    return int(np.clip(math.floor(math.log2(activation)) + 8, 0, BANDS - 1))


def rounded(activation: float, bits: int) -> float:
    """An activation with so many mantissa bits, ties to even."""
    part, exponent = math.frexp(float(np.float32(activation)))
    # Python's round is to even; of the bits of a mantissa the first is not stored.
    return math.ldexp(round(part * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent)
