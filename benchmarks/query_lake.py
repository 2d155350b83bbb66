"""A lake of random firings with the skew of real ones, and of random chats, for query benchmarks.

Written straight through the store's writers, then compacted. 16,384 features fire on 1e-6 to 1e-1
of all tokens, about 49 at each, in bursts: most documents have none of a feature, the others many.
Words are drawn from a vocabulary with a Zipf-like law; turns of user and model alternate.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scopelake.names import KINDS, ROLES
from scopelake.store.commit import Writer
from scopelake.store.compact import compact
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.running import Running
from scopelake.store.schema import SCHEMAS, file_schema
from scopelake.store.summary import feature_statistics
from scopelake.store.writer import write_contexts, write_features, write_firings

WIDTH: Final = 16_384
L0: Final = 60
LENGTH: Final = 1_024
"""Tokens of a context, BOS among them."""

SHARD: Final = 256
"""Contexts."""

CORPUS: Final = "chats"
SAE: Final = "synthetic/resid_post/layer_12_width_16k_l0_60"
TURN: Final = 128
"""Tokens of a turn."""

_FIRINGS: Final = 48.7
"""Of a token, measured: of those drawn on one address only one is kept."""

_WORDS: Final = 8_192


def densities() -> npt.NDArray[np.float64]:
    """Return by feature the share of tokens on which it is drawn, ascending: their sum is L0."""
    u = np.linspace(0, 1, WIDTH)
    low, high = 0.1, 10.0
    for _ in range(60):
        power = (low + high) / 2
        found = 10.0 ** (-6 + 5 * u**power)
        low, high = (power, high) if found.sum() > L0 else (low, power)
    return found


def shard_firings(shard: int, n_contexts: int) -> Firings:
    """Return the firings of a shard's contexts, token-major; none is on BOS."""
    rng = np.random.default_rng([shard, 1])
    density = densities()
    inside = np.maximum(density, np.minimum(0.5, 20 * density + 0.005))
    active = rng.binomial(n_contexts, density / inside)
    feature = np.repeat(np.arange(WIDTH), active)
    context = rng.integers(0, n_contexts, len(feature))
    # One document has the feature more strongly than another.
    strength = rng.standard_gamma(4.0, len(feature)).astype(np.float32)
    n = rng.poisson(inside[feature] * LENGTH)
    strength = np.repeat(strength, n)
    token = np.repeat(context, n) * LENGTH + rng.integers(1, LENGTH, int(n.sum()))
    key, first = np.unique(token * WIDTH + np.repeat(feature, n), return_index=True)
    token, feature = key // WIDTH, (key % WIDTH).astype(np.int32)
    noise = rng.standard_gamma(2.0, len(key), dtype=np.float32)
    return Firings(
        shard * SHARD + token // LENGTH,
        (token % LENGTH).astype(np.int32),
        feature,
        strength[first] * noise + np.float32(0.5),
        np.zeros(len(key), np.int8),
    )


def vocabulary() -> list[str]:
    """Return words with a space before each, of 2 to 9 letters."""
    rng = np.random.default_rng(7)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    lengths = rng.integers(2, 10, _WORDS)
    return [" " + "".join(rng.choice(letters, length)) for length in lengths]


def shard_contexts(shard: int, n_contexts: int, words: list[str]) -> pa.Table:
    """Return the contexts of a shard, as the lake keeps them."""
    rng = np.random.default_rng([shard, 2])
    lengths = np.array([len(word) for word in words])
    ids = (_WORDS * rng.random((n_contexts, LENGTH - 1)) ** 3).astype(np.int32)
    turns = np.arange(LENGTH) // TURN
    roles = np.where(turns % 2 == 0, ROLES.index("user"), ROLES.index("model")).astype(np.int8)
    kinds = np.zeros(LENGTH, np.int8)
    kinds[0], roles[0] = KINDS.index("bos"), ROLES.index("none")
    rows: list[dict[str, Any]] = []
    for i, own in enumerate(ids):
        number = shard * SHARD + i
        ends = np.cumsum(lengths[own])
        text = "".join([words[w] for w in own])
        rows.append({
            "corpus": CORPUS, "context": number, "document": f"chat-{number}",
            "document_index": number, "part": 0, "char_start": 0, "char_end": len(text),
            "text": text, "n_tokens": LENGTH, "token_ids": np.concatenate([[2], own + 3]),
            "token_starts": np.concatenate([[0, 0], ends[:-1]]), "roles": roles, "turns": turns,
            "kinds": kinds, "metadata": f'{{"language": "{("en", "de", "fr", "it")[number % 4]}"}}',
            "documents": None,
        })  # fmt: skip
    return pa.Table.from_pylist(rows, SCHEMAS["contexts"])


def build(root: Path, n_firings: int, *, compacted: bool = True) -> LakeStore:
    """Make a lake of about so many firings."""
    store = LakeStore.create(root)
    n_contexts = max(1, round(n_firings / (_FIRINGS * LENGTH)))
    sizes = [min(SHARD, n_contexts - at) for at in range(0, n_contexts, SHARD)]
    running, words = Running(WIDTH), vocabulary()
    with Writer(store) as writer:
        for shard, size in enumerate(sizes):
            receipts = write_contexts(
                store.root, shard_contexts(shard, size, words), CORPUS, "run"
            ) + write_firings(
                store.root, shard_firings(shard, size), sae=SAE, corpus=CORPUS, shard=shard,
                run="run", bits=10, running=running,
            )  # fmt: skip
            writer.commit(receipts, transaction=f"shard-{shard}", reason="shard")
            running.accept()
        writer.commit([], transaction="catalogue", reason="start", rows=catalogue(n_contexts))
        writer.commit([_statistics(store, n_contexts)], transaction="features", reason="finish")
        if compacted:
            compact(writer)
    return store


def _statistics(store: LakeStore, n_contexts: int) -> Any:  # noqa: ANN401
    files = [f.path for f in store.data_files("postings", store.snapshot())]
    found = feature_statistics(store.root, files, WIDTH, n_contexts * (LENGTH - 1))
    schema = file_schema("features")
    missing = [f for f in schema if f.name not in found.column_names]
    for field in missing:
        found = found.append_column(field, pa.nulls(WIDTH, field.type))
    return write_features(store.root, found.select(schema.names), SAE, CORPUS, "run")


def catalogue(n_contexts: int) -> dict[str, pa.Table]:
    now = datetime.now(UTC)
    n_tokens = n_contexts * LENGTH
    rows: dict[str, dict[str, Any]] = {
        "corpora": {
            "corpus": CORPUS, "source": "synthetic", "chat": True, "tokenizer": "words",
            "context_length": LENGTH, "shard_contexts": SHARD, "n_documents": n_contexts,
            "n_split": 0, "n_contexts": n_contexts, "n_tokens": n_tokens, "n_bos": n_contexts,
            "created_at": now, "context_ends": [n_contexts],
        },
        "saes": {
            "sae": SAE, "repo": "synthetic", "family": "resid_post", "type": "sae",
            "folder": SAE.rsplit("/", 1)[1], "site": "resid_post", "layer": 12, "layers": [12],
            "features_per_layer": WIDTH, "width": WIDTH, "d_in": 1152, "d_out": 1152,
            "l0": float(L0), "affine": False, "model": "synthetic", "digest": "synthetic",
        },
        "runs": {
            "run": "run", "corpus": CORPUS, "model": "synthetic", "saes": [SAE], "dense": [],
            "state": "complete", "activation_bits": 10, "started_at": now, "finished_at": now,
        },
    }  # fmt: skip
    return {name: pa.Table.from_pylist([row], SCHEMAS[name]) for name, row in rows.items()}
