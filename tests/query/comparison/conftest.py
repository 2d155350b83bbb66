"""Small random lakes, and their tokens and firings as an oracle knows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pytest

from scopelake.names import KIND_BOS, KINDS, ROLES
from scopelake.query.compare import ComparisonConfig, compare
from scopelake.query.compared_coders import Choice
from scopelake.query.connect import connect
from scopelake.query.resolve import list_saes
from scopelake.store.commit import Writer
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.parquet import write_parquet
from scopelake.store.schema import SCHEMAS, file_schema
from scopelake.store.writer import write_contexts, write_firings

WIDTH = 6
SAES = {"r-it/resid_post/l1": ("it", 1), "r-it/resid_post/l2": ("it", 2),
        "r-pt/resid_post/l1": ("pt", 1)}  # fmt: skip
PIECES = ("the", " cat", "é", "日本", "", "\n")
LABELS = [(0, "last", "b"), (0, "<first>", "a"), (3, "third", "a")]
"""Of features of the first SAE: label and source."""
SETS = {
    "role = 'user'": lambda t: t.role == "user",
    "role <> 'user'": lambda t: t.role != "user",
    "document_index % 2 = 0": lambda t: t.document_index % 2 == 0,
    "metadata ->> 'lang' = 'b' -- odd ones": lambda t: t.document_index % 2 == 1,
    "token = ' cat' OR token = 'é'": lambda t: t.token in (" cat", "é"),
    "token NOT IN (' cat', 'é')": lambda t: t.token not in (" cat", "é"),
    "turn = 1 AND kind = 'content'": lambda t: t.turn == 1 and t.kind == "content",
    "turn = 0": lambda t: t.turn == 0,
    "document_index < 3 AND position < 4": lambda t: t.document_index < 3 and t.position < 4,
    "document_index >= 2 AND position >= 4": lambda t: t.document_index >= 2 and t.position >= 4,
    "position > 2": lambda t: t.position > 2,
}
"""Predicates, in SQL and as the oracle reads them."""


@dataclass(eq=False)
class Token:
    """A token as the oracle knows it."""

    corpus: str
    context: int
    position: int
    token: str
    role: str
    turn: int
    kind: str
    document: str
    document_index: int
    fired: dict[str, dict[int, float]] = field(default_factory=dict)
    """By SAE and feature its activation."""


@dataclass
class Small:
    """A lake and its tokens."""

    store: LakeStore
    tokens: list[Token]
    nearest: dict[tuple[str, str], list[int]]
    """By two SAEs of each feature the nearest one."""

    def compare(self, a, b, choice=None, **config):
        """What the lake answers."""
        choice = choice or Choice(("r-it/resid_post/l1",))
        return compare(
            self.connection, self.saes, a, b, choice, lambda *_: None, ComparisonConfig(**config)
        )

    def chosen(self, asked):
        """The tokens of a set."""
        where = SETS[asked.where] if asked.where else lambda t: True
        there = [t for t in self.tokens if t.kind != "bos" and where(t)]
        return [t for t in there if asked.corpus in (None, t.corpus)]

    @cached_property
    def connection(self):
        return connect(self.store, self.store.snapshot())

    @cached_property
    def saes(self):
        return list_saes(self.store, self.store.snapshot())


@pytest.fixture(scope="session")
def lakes(tmp_path_factory):
    """Lakes by seed and whether they are packed, each made once."""
    made = {}

    def lake(seed, packed=False):
        if (seed, packed) not in made:
            path = tmp_path_factory.mktemp("compare") / "lake"
            made[seed, packed] = make_lake(path, seed, packed=packed)
        return made[seed, packed]

    yield lake
    for one in made.values():
        one.connection.close()


def make_lake(path, seed, *, packed):
    """Two corpora and three SAEs; feature 5 never fires, feature 0 on most tokens."""
    rng = np.random.default_rng(seed)
    store = LakeStore.create(path)
    tokens, receipts, corpora = [], [], []
    for corpus, n in {"c": 7, "d": 5}.items():
        made, rows = make_tokens(rng, corpus, n, packed)
        tokens += made
        texts = pa.Table.from_pylist(rows, SCHEMAS["contexts"])
        receipts += write_contexts(store.root, texts, corpus, "r")
        corpora.append({"corpus": corpus, "tokenizer": "x", "tokenizer_digest": "y",
                        "n_contexts": len(rows), "shard_contexts": len(rows),
                        "context_ends": [len(rows)], "packing": packed})  # fmt: skip
        for sae in SAES:
            firings = make_firings(rng, sae, made)
            receipts += write_firings(
                store.root, firings, sae=sae, corpus=corpus, shard=0, run="r", bits=23
            )
    nearest = {}
    for one, other in (("r-it", "r-pt"), ("r-pt", "r-it")):
        pair = (f"{one}/resid_post/l1", f"{other}/resid_post/l1")
        nearest[pair] = [int(i) for i in rng.integers(0, 3, WIDTH)]
        rows = [{"feature": f, "rank": 0, "other_feature": o, "cosine": 0.5 + f / 100}
                for f, o in enumerate(nearest[pair])]  # fmt: skip
        table = pa.Table.from_pylist(rows, file_schema("neighbors"))
        of = {"sae": pair[0], "other_sae": pair[1]}
        receipts.append(write_parquet(store.root, "neighbors", table, of, run="r"))
    labels = [{"feature": f, "label": label, "source": source} for f, label, source in LABELS]
    table = pa.Table.from_pylist(labels, file_schema("labels"))
    of = {"sae": "r-it/resid_post/l1"}
    receipts.append(write_parquet(store.root, "labels", table, of, run="r"))
    saes = [sae_row(sae) for sae in SAES]
    rows = {name: pa.Table.from_pylist(of, SCHEMAS[name])
            for name, of in {"saes": saes, "corpora": corpora}.items()}  # fmt: skip
    with Writer(store) as writer:
        writer.commit(receipts, transaction="all", reason="all", rows=rows)
    return Small(store, tokens, nearest)


def sae_row(sae):
    model, layer = SAES[sae]
    repo, family, folder = sae.split("/")
    return {"sae": sae, "type": "sae", "site": "resid_post", "layer": layer, "layers": [layer],
            "width": WIDTH, "features_per_layer": WIDTH, "d_in": 4, "model": f"gemma-{model}",
            "repo": repo, "family": family, "folder": folder}  # fmt: skip


def make_tokens(rng, corpus, n_documents, packed):
    """Contexts of one document each, or packed of two; each document begins with BOS."""
    parts = [
        (index, part) for index in range(n_documents) for part in range(int(rng.integers(1, 3)))
    ]
    made, rows = [], []
    for start in range(0, len(parts), 2 if packed else 1):
        context, tokens, starts = len(rows), [], []
        for index, part in parts[start : start + (2 if packed else 1)]:
            starts.append((len(tokens), index, part))
            tokens.append(("", 0, 0, KIND_BOS, index))
            tokens += [
                (PIECES[rng.integers(0, len(PIECES))], int(rng.integers(0, 3)),
                 int(rng.integers(0, 2)), int(rng.choice([0, 1, 3])), index)
                for _ in range(rng.integers(1, 9))
            ]  # fmt: skip
        made += [
            Token(corpus, context, p, text, ROLES[role], turn, KINDS[kind], f"d{index}", index)
            for p, (text, role, turn, kind, index) in enumerate(tokens)
        ]
        rows.append(context_row(corpus, context, tokens, starts, packed))
    return made, rows


def context_row(corpus, context, tokens, starts, packed):
    ends = np.cumsum([len(t[0]) for t in tokens]).tolist()
    of = [{"position": at, "document": f"d{index}", "document_index": index, "part": part,
           "char_start": 0, "char_end": 1, "metadata": f'{{"lang": "{"ab"[index % 2]}"}}'}
          for at, index, part in starts]  # fmt: skip
    row = {
        "corpus": corpus, "context": context, "text": "".join(t[0] for t in tokens),
        "n_tokens": len(tokens), "token_ids": list(range(len(tokens))),
        "token_starts": [0, *ends[:-1]], "roles": [t[1] for t in tokens],
        "turns": [t[2] for t in tokens], "kinds": [t[3] for t in tokens],
    }  # fmt: skip
    one = {k: v for k, v in of[0].items() if k != "position"}
    return row | ({"documents": of} if packed else one)


def make_firings(rng, sae, tokens):
    rows = []
    for t in tokens:
        for feature in range(WIDTH - 1):
            if rng.random() < (0.8 if feature == 0 else 0.25 / feature):
                activation = float(rng.choice([0.5, 1.0, 2.0, 70000.0]))
                t.fired.setdefault(sae, {})[feature] = activation
                rows.append((t.context, t.position, feature, activation, KINDS.index(t.kind)))
    types = (np.int64, np.int32, np.int32, np.float32, np.int8)
    columns = zip(zip(*rows, strict=True), types, strict=True)
    return Firings(*(np.array(values, of) for values, of in columns))
