"""delphi as a peer: its cache, made by its own writer, and read by its own loader.

To be imported where the package eai-delphi is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from delphi.config import CacheConfig, ConstructorConfig, SamplerConfig
from delphi.latents import LatentCache, LatentDataset
from delphi.latents.cache import InMemoryCache
from peer_files import K, Top, around, parts
from query_lake import LENGTH, WIDTH, vocabulary

from scopelake.store.lake_store import LakeStore

_MODULE: Final = "layers.12"
_SPLITS: Final = 5
"""delphi's default."""


class _Words:
    """What delphi needs of a tokenizer, by a list: decoding costs next to nothing."""

    def __init__(self) -> None:
        self._words = ["<pad>", "<eos>", "<bos>", *vocabulary()]

    def batch_decode(self, ids: Any) -> list[str]:  # noqa: ANN401
        return [self._words[i] for i in ids.tolist()]


class Delphi:
    """delphi's loader: one feature to its strongest contexts.

    Features are renumbered at random, so that its ranges of features hold like shares of the
    firings, as they do of a coder whose features are not sorted by density. It is spared what it
    would do beyond the question: examples that do not activate, those for tests, quantiles.
    """

    name = "delphi 0.1.3"
    slow = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = _numbers()
        self._tokenizer = _Words()

    def top(self, feature: int) -> Top:
        """The strongest contexts."""
        data = LatentDataset(
            self._folder,
            SamplerConfig(n_examples_train=K, n_examples_test=0, train_type="top"),
            ConstructorConfig(example_ctx_len=LENGTH, min_examples=1, n_non_activating=0),
            tokenizer=self._tokenizer,
            modules=[_MODULE],
            latents={_MODULE: torch.tensor([self._number[feature]])},
        )
        found: Top = []
        for example in [e for record in data for e in record.train]:
            window = around(int(example.activations.argmax()))
            _ = example.activations[window].tolist()
            found.append((example.max_activation, example.str_tokens[window]))
        return found


def _numbers() -> npt.NDArray[np.int64]:
    """The number that each feature has there."""
    return np.random.default_rng(4).permutation(WIDTH).astype(np.int64)


def write_cache(folder: Path, store: LakeStore) -> None:
    """Write all firings by delphi's own writer, as it holds them after its last batch."""
    number = _numbers()
    pieces = []
    for rows in parts(store, "codes", ["context", "position", "feature", "activation"]):
        context, position, feature, activation = (rows[c].to_numpy() for c in rows.column_names)
        feature = number[feature]
        order = np.argsort((context * LENGTH + position) * WIDTH + feature)
        found = np.stack([context, position.astype(np.int64), feature], axis=1)[order]
        pieces.append((torch.from_numpy(found), torch.from_numpy(activation[order])))
    pieces.sort(key=lambda piece: int(piece[0][0, 0]))  # files are not in the order of contexts
    contexts = pa.concat_tables(parts(store, "contexts", ["context", "token_ids"]))
    ids = contexts.sort_by("context")["token_ids"].combine_chunks().flatten().to_numpy()
    memory = InMemoryCache()
    memory.latent_locations[_MODULE] = torch.cat([found for found, _ in pieces])
    memory.latent_activations[_MODULE] = torch.cat([piece for _, piece in pieces])
    memory.tokens[_MODULE] = torch.from_numpy(ids.astype(np.int64).reshape(-1, LENGTH))
    del pieces
    cache = LatentCache.__new__(LatentCache)  # its constructor wants a model
    cache.cache, cache.width = memory, WIDTH
    cache.save_splits(_SPLITS, folder)
    cache.save_config(folder, CacheConfig(cache_ctx_len=LENGTH), "synthetic")
