"""A random lake written by the store's own writers, and its firings as plain tuples."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from scopelake.query.connect import connect
from scopelake.store.commit import Writer
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.schema import SCHEMAS
from scopelake.store.writer import write_contexts, write_firings

SAE = "repo/resid_post_all/layer_2_width_32_l0_small"
OTHER = "repo/mlp_out_all/layer_4_width_32_l0_small"
KINDS = ("content", "template", "bos", "generated")
ROLES = ("none", "user", "model", "system", "tool")
SHARD = 150


@dataclass(frozen=True)
class RandomLake:
    """A lake and what it must answer from."""

    store: LakeStore
    tokens: dict  # (corpus, context) -> list of (piece, role index, kind index)
    firings: dict  # sae -> list of (corpus, context, position, feature, activation, kind index)

    def connect(self):
        return connect(self.store, self.store.snapshot())


def context_row(corpus, context, tokens):
    pieces = [piece for piece, _, _ in tokens]
    starts = np.cumsum([0, *map(len, pieces)])[:-1]
    return {
        "corpus": corpus, "context": context, "document": f"doc{context // 3}",
        "document_index": context // 3, "part": context % 3, "char_start": 0,
        "char_end": sum(map(len, pieces)), "text": "".join(pieces), "n_tokens": len(tokens),
        "token_ids": list(range(len(tokens))), "token_starts": starts.tolist(),
        "roles": [r for _, r, _ in tokens], "turns": [0] * len(tokens),
        "kinds": [k for _, _, k in tokens], "metadata": '{"label": "%s"}' % (context % 2),
    }  # fmt: skip


def corpus_row(corpus, tokens):
    row = dict.fromkeys(SCHEMAS["corpora"].names)
    n = sum(len(t) for t in tokens)
    return row | {
        "corpus": corpus, "chat": False, "context_length": 16, "shard_contexts": SHARD,
        "n_documents": 1, "n_contexts": len(tokens), "n_tokens": n, "n_bos": len(tokens),
        "created_at": datetime.now(UTC),
    }  # fmt: skip


def sae_row(name):
    row = dict.fromkeys(SCHEMAS["saes"].names)
    site, layer = ("resid_post", 2) if "resid_post" in name else ("mlp_out", 4)
    return row | {"sae": name, "site": site, "layer": layer, "width": 32}


def firings_of(rng, corpus, tokens, dense_feature):
    """Few distinct activations, so that ties are everywhere; one feature fires on every token."""
    rows = []
    for context, one in enumerate(tokens):
        for position, (_, _, kind) in enumerate(one):
            chosen = set(rng.integers(0, 31, rng.integers(0, 4)).tolist()) | {dense_feature}
            rows += [
                (corpus, context, position, feature, float(rng.integers(1, 9)), kind)
                for feature in sorted(chosen)
            ]
    return rows


def to_firings(rows):
    columns = list(zip(*((c, p, f, a, k) for _, c, p, f, a, k in rows), strict=True))
    dtypes = (np.int64, np.int32, np.int32, np.float32, np.int8)
    return Firings(*(np.array(c, dtype=d) for c, d in zip(columns, dtypes, strict=True)))


@pytest.fixture(scope="session")
def lake(tmp_path_factory):
    rng = np.random.default_rng(5)
    store = LakeStore.create(tmp_path_factory.mktemp("query") / "lake")
    pieces = ["a", " b", "\n", "é", "<x>", "'q", " wörld"]
    tokens, firings = {}, {SAE: [], OTHER: []}
    with Writer(store) as writer:
        for corpus, n_contexts in (("alpha", 400), ("beta", 40)):
            several = []
            for context in range(n_contexts):
                n = int(rng.integers(1, 17))
                body = [
                    (pieces[rng.integers(len(pieces))], int(rng.integers(0, 3)),
                     int(rng.choice([0, 1, 3])))
                    for _ in range(n - 1)
                ]  # fmt: skip
                several.append([("", 0, 2), *body])
                tokens[corpus, context] = several[-1]
            table = pa.Table.from_pylist(
                [context_row(corpus, i, t) for i, t in enumerate(several)],
                schema=SCHEMAS["contexts"],
            )
            receipts = list(write_contexts(store.root, table, corpus=corpus, run="r"))
            row = pa.Table.from_pylist([corpus_row(corpus, several)], schema=SCHEMAS["corpora"])
            rows = {"corpora": row}
            if corpus == "alpha":
                rows["saes"] = pa.Table.from_pylist(
                    [sae_row(SAE), sae_row(OTHER)], schema=SCHEMAS["saes"]
                )
            writer.commit(receipts, transaction=corpus, reason="corpus", rows=rows)
            for sae in (SAE, OTHER):
                made = firings_of(rng, corpus, several, dense_feature=30)
                firings[sae] += made
                for shard in range(-(-n_contexts // SHARD)):
                    part = [r for r in made if r[1] // SHARD == shard]
                    receipts = write_firings(
                        store.root, to_firings(part), sae=sae, corpus=corpus, shard=shard,
                        run="r", bits=10,
                    )  # fmt: skip
                    writer.commit(receipts, transaction=f"{corpus}{sae}{shard}", reason="firings")
    return RandomLake(store, tokens, firings)
