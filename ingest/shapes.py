"""Shapes of models, coders and corpora: all that an estimate needs, and no weights.

Where a shape comes from is said in words (`source`): the files' headers, or the published grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scopelake.ingest.coders import CoderHeaders
from scopelake.ingest.model import ModelFiles, floats_of_layer, read_config
from scopelake.names import SiteLayer


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a Gemma 3's text decoder."""

    name: str
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn: int
    """Width of the gated MLP."""
    vocab: int
    windows: tuple[int | None, ...]
    """By layer, how many tokens it attends to; None: to all before it."""
    source: str

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.windows)

    @property
    def attention_width(self) -> int:
        """Heads times head_dim, the width of ``attn_out``."""
        return self.n_heads * self.head_dim

    def width(self, site: SiteLayer) -> int:
        """Width of a site's tensor."""
        return self.attention_width if site.site == "attn_out" else self.d_model

    @property
    def layer_floats(self) -> int:
        """Numbers that a layer holds of each token while it runs."""
        return floats_of_layer(self.ffn, self.d_model, self.attention_width)

    @property
    def layer_params(self) -> int:
        """Weights of one decoder layer that are multiplied with: projections and the MLP."""
        attention = self.d_model * self.head_dim * 2 * (self.n_heads + self.n_kv_heads)
        return attention + 3 * self.d_model * self.ffn

    @property
    def n_params(self) -> int:
        """All weights of the text decoder; its unembedding is its embedding."""
        norms = self.n_layers * (4 * self.d_model + 2 * self.head_dim) + self.d_model
        return self.vocab * self.d_model + self.n_layers * self.layer_params + norms


@dataclass(frozen=True, kw_only=True)
class CoderShape:
    """The sizes of a coder."""

    name: str
    sites: tuple[SiteLayer, ...]
    """What its encoders read, one each."""
    d_in: int
    features_per_layer: int
    l0: float
    """Firings a token, of all encoders together."""
    l0_basis: str
    """``stated`` by its config.json, by the published ``grid``, or ``guessed`` from its label."""
    has_readout: bool
    """Whether its features promote tokens, which is computed once."""

    @property
    def width(self) -> int:
        """Number of features, of all encoders together."""
        return self.features_per_layer * len(self.sites)

    @property
    def encoder_bytes(self) -> int:
        """Bytes of its encoders as they are loaded, in float32."""
        return 4 * len(self.sites) * self.features_per_layer * (self.d_in + 2)


_LABELS = {"small": 15.0, "medium": 45.0, "big": 120.0}
"""The middle of what the labels stand for; used where nothing states an L0."""


def guess_l0(folder: str) -> float:
    """Return the L0 that a folder's label stands for, of a coder of which none is stated."""
    return next((l0 for label, l0 in _LABELS.items() if f"_l0_{label}" in folder), 60.0)


def coder_shape(coder: CoderHeaders) -> CoderShape:
    """Return the shape of a coder whose headers were read."""
    is_stated = coder.l0 is not None
    return CoderShape(
        name=coder.name,
        sites=coder.sites,
        d_in=coder.d_in,
        features_per_layer=coder.features_per_layer,
        l0=coder.l0 if coder.l0 is not None else guess_l0(coder.folder),
        l0_basis="stated" if is_stated else "guessed",
        has_readout=coder.targets[0].site != "attn_out",
    )


def model_shape(files: ModelFiles) -> ModelShape:
    """Return a model's shape from its config.json.

    Raises:
        ModelError: it is missing, or not a Gemma 3's.
    """
    from transformers import AutoConfig  # heavy: only when a model's files are read

    read_config(files)
    text = AutoConfig.from_pretrained(str(files.path)).get_text_config()
    sliding = int(text.sliding_window)
    return ModelShape(
        name=files.name,
        d_model=int(text.hidden_size),
        n_heads=int(text.num_attention_heads),
        n_kv_heads=int(text.num_key_value_heads),
        head_dim=int(text.head_dim),
        ffn=int(text.intermediate_size),
        vocab=int(text.vocab_size),
        windows=tuple(sliding if kind == "sliding_attention" else None
                      for kind in text.layer_types),
        source="config.json",
    )  # fmt: skip


@dataclass(frozen=True)
class Shards:
    """Shards of a corpus with work left: how many contexts and tokens each has."""

    contexts: tuple[int, ...]
    tokens: tuple[int, ...]
    contexts_before: int = 0
    """Contexts of the corpus that the lake has already, of the same coder."""

    def __len__(self) -> int:
        return len(self.contexts)

    @property
    def n_tokens(self) -> int:
        """Tokens of all of them, BOS included."""
        return sum(self.tokens)

    @property
    def n_contexts(self) -> int:
        """Contexts of all of them."""
        return sum(self.contexts)

    @property
    def largest(self) -> int:
        """Tokens of the largest."""
        return max(self.tokens, default=0)


@dataclass(frozen=True)
class CorpusShape:
    """How a corpus is cut; what is not known of a corpus that is not there yet is assumed."""

    name: str
    context_length: int
    shard_contexts: int
    lengths: npt.NDArray[np.int64]
    """Lengths of contexts that occur, [n]."""
    counts: npt.NDArray[np.int64]
    """How many contexts have each, [n]."""
    is_stored: bool
    """Whether its contexts are in the lake already."""

    @property
    def n_contexts(self) -> int:
        """Contexts with work left."""
        return int(self.counts.sum())

    @property
    def n_tokens(self) -> int:
        """Tokens of these, BOS included."""
        return int((self.lengths * self.counts).sum())


def corpus_of_tokens(n_tokens: int, context_length: int, shard_contexts: int) -> CorpusShape:
    """Return a corpus of so many tokens in full contexts, and a last one with the rest."""
    full, rest = divmod(n_tokens, context_length)
    sizes = [(context_length, full), (rest, 1 if rest else 0)]
    kept = [(length, count) for length, count in sizes if count]
    lengths, counts = (np.array(column, np.int64) for column in zip(*kept, strict=True))
    return CorpusShape("", context_length, shard_contexts, lengths, counts, False)


def shards_of(contexts: Sequence[int], shard_contexts: int) -> Shards:
    """Return the shards of contexts of such lengths, in order."""
    parts = [contexts[i : i + shard_contexts] for i in range(0, len(contexts), shard_contexts)]
    return Shards(tuple(len(p) for p in parts), tuple(sum(p) for p in parts))


def shards_of_tokens(corpus: CorpusShape) -> Shards:
    """Return the shards of a corpus from `corpus_of_tokens`."""
    per_shard = corpus.shard_contexts * corpus.context_length
    full, rest = divmod(corpus.n_tokens, per_shard)
    contexts = [corpus.shard_contexts] * full
    contexts += [-(-rest // corpus.context_length)] if rest else []
    return Shards(tuple(contexts), (*[per_shard] * full, *([rest] if rest else [])))
