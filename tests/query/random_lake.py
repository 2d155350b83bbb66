"""Random lakes: what is in them, drawn from a seed, and the same written by the store's writers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from tests.query.oracle import (
    BOS,
    DENSE,
    FIRST_BYTE,
    KINDS,
    ON_BOS,
    ROLES,
    SAES,
    SILENT,
    SPELT,
    WIDTH,
    Context,
    Corpus,
    Document,
    Firing,
    World,
    rounded,
)

import scopelake
from scopelake.store.commit import Writer
from scopelake.store.firings import Firings
from scopelake.store.keeping import Keep, parse_keep
from scopelake.store.lake_store import LakeStore
from scopelake.store.parquet import write_parquet
from scopelake.store.schema import SCHEMAS, file_schema
from scopelake.store.summary import feature_statistics
from scopelake.store.tallies import read_tallies, tallied_statistics
from scopelake.store.writer import write_contexts, write_features, write_firings, write_neighbors

TIES = (0.5, 1.0, 1.5, 2.0, 2.0**-10, 0.001, 70000.0)


def draw_world(seed: int) -> World:
    """The lake of a seed; neighbouring seeds differ in how they are cut, kept and merged."""
    rng = np.random.default_rng(seed)
    # The first is as small as a lake can be.
    n = 1 if seed == 0 else int(rng.integers(4, 16))
    corpora = {
        "plain": draw_corpus(rng, "plain", n, packed=seed % 3 == 2),
        "chats": draw_corpus(rng, "chats", max(n // 2, 1), packed=False),
    }
    runs = {(sae, corpus): "all" for sae in SAES for corpus in corpora}
    if seed % 4 == 3:
        runs[list(SAES)[1], "chats"] = str(rng.choice(["peaks", "sample:0.5"]))
    if seed % 5 == 4:
        del runs[list(SAES)[1], "plain"]
    bits = int(rng.choice([7, 10, 23]))
    decoders = {sae: rng.normal(size=(WIDTH, 4)).astype(np.float32) for sae in SAES}
    for rows in decoders.values():
        rows[3], rows[SILENT] = rows[2], 0.0
    labels = [(sae, 2, f"label {i} of <{seed}>", "ab"[i % 2]) for i, sae in enumerate(SAES)]
    firings = sorted(draw_firings(rng, corpora, runs, bits))
    return World(corpora, firings, bits, runs, decoders, labels, is_compacted=seed % 5 == 3)


def draw_corpus(rng: np.random.Generator, name: str, n: int, *, packed: bool) -> Corpus:
    """Contexts of 1 to 9 tokens; with an append there is a gap in their numbers."""
    chat = name == "chats"
    bos = "each" if chat else str(rng.choice(["each", "document", "none"]))
    shard = int(rng.choice([3, 100]))
    first = int(rng.integers(1, n + 1))
    numbers, ends = list(range(first)), [first]
    if first < n:
        start = -(-first // shard) * shard
        numbers += range(start, start + n - first)
        ends.append(start + n - first)
    contexts = []
    document, part, chars = 0, 0, 0
    for number in numbers:
        tokens: list[tuple[int, str, str, int, str]] = []
        documents = []
        for i in range(int(rng.integers(1, 4)) if packed else 1):
            begins = len(tokens)
            has_bos = (bos == "each" and i == 0) or (bos == "document" and part == 0)
            if has_bos:
                tokens.append((BOS, SPELT[BOS] if chat else "", "none", -1, "bos"))
            tokens += draw_tokens(rng, chat=chat)
            length = sum(len(text) for _, text, *_ in tokens[begins:])
            documents.append(Document(f"doc-{document}", document, part, f"l{document % 3}",
                                      begins, (chars, chars + length)))  # fmt: skip
            # A packed context goes on to the next document; others may go on with theirs.
            if packed or rng.random() < 0.5:
                document, part, chars = document + 1, 0, 0
            else:
                part, chars = part + 1, chars + length
        columns = [list(column) for column in zip(*tokens, strict=True)]
        contexts.append(Context(name, number, *columns, documents))
    return Corpus(name, chat, packed, bos, shard, ends, contexts)


def draw_tokens(rng: np.random.Generator, *, chat: bool) -> list[tuple[int, str, str, int, str]]:
    """id, text, role, turn and kind of 1 to 9 tokens."""
    found = []
    for i in range(int(rng.integers(1, 9))):
        token = int(rng.integers(1, FIRST_BYTE + 1))
        role = ROLES[rng.integers(1, 4)] if chat else "none"
        kind = KINDS[rng.choice([0, 1, 3])] if chat else "content"
        turn = i // 3 if chat else -1
        # What stands for a part of a character is followed by its end.
        ids = (token, FIRST_BYTE + 1) if token == FIRST_BYTE else (token,)
        found += [(one, SPELT[one], role, turn, kind) for one in ids]
    return found


def draw_firings(
    rng: np.random.Generator,
    corpora: dict[str, Corpus],
    runs: dict[tuple[str, str], str],
    bits: int,
) -> list[Firing]:
    """Firings with many ties, of features that are dense, rare, on BOS alone, and silent."""
    share = np.full(WIDTH, 0.15)
    share[DENSE], share[SILENT], share[WIDTH - 2] = 0.8, 0.0, 0.03
    found = []
    for sae, corpus in runs:
        for context in corpora[corpus].contexts:
            for position, kind in enumerate(context.kinds):
                for feature in np.flatnonzero(rng.random(WIDTH) < share).tolist():
                    if feature == ON_BOS and kind != "bos":
                        continue
                    activation = float(rng.choice(TIES))
                    if rng.random() < 0.3:
                        activation = float(rng.exponential(2.0)) + 2.0**-9
                    found.append(Firing(sae, corpus, context.number, position, feature,
                                        rounded(activation, bits)))  # fmt: skip
    return found


def write_lake(world: World, path: Path) -> scopelake.Lake:
    """Write what is in a world through the store's writers."""
    store = LakeStore.create(path)
    with Writer(store) as writer:
        receipts = []
        for corpus in world.corpora.values():
            table = pa.Table.from_pylist(context_rows(corpus), schema=SCHEMAS["contexts"])
            receipts += write_contexts(store.root, table, corpus.name, "r")
        for (sae, corpus), keep in world.runs.items():
            receipts += firing_files(store, world, sae, corpus, parse_keep(keep))
        for sae in SAES:
            receipts += decoder_files(store, world, sae)
        writer.commit(receipts, transaction="all", reason="all", rows=catalogue(world))
        made = [statistics_file(store, world, *run) for run in world.runs]
        writer.commit(made, transaction="features", reason="features")
    lake = scopelake.open(path)
    if world.is_compacted:
        lake.compact()
    return lake


def context_rows(corpus: Corpus) -> list[dict[str, Any]]:
    rows = []
    for c in corpus.contexts:
        listed = [
            {"position": d.position, "document": d.id, "document_index": d.index, "part": d.part,
             "char_start": d.chars[0], "char_end": d.chars[1], "metadata": d.metadata}
            for d in c.documents
        ]  # fmt: skip
        own = {name: value for name, value in listed[0].items() if name != "position"}
        rows.append({
            "corpus": c.corpus, "context": c.number, "text": c.text, "n_tokens": len(c.ids),
            "token_ids": c.ids, "turns": c.turns,
            "token_starts": [len("".join(c.texts[:i])) for i in range(len(c.ids))],
            "roles": [ROLES.index(r) for r in c.roles],
            "kinds": [KINDS.index(k) for k in c.kinds],
            **(dict.fromkeys(own) if corpus.packed else own),
            "documents": listed if corpus.packed else None,
        })  # fmt: skip
    return rows


def is_kept(context: Context, keep: str) -> bool:
    """Whether the firings of a context are stored; of a packed one its first document decides."""
    share = {"all": 1.0, "peaks": 0.0}.get(keep) or float(keep.partition(":")[2] or 0)
    return xxhash.xxh3_64_intdigest(context.documents[0].id.encode()) < share * 2.0**64


def firing_files(store: LakeStore, world: World, sae: str, corpus: str, keep: Keep) -> list[Any]:
    """Write the shards of an SAE on a corpus, unrounded as far as 23 bits go."""
    of = world.corpora[corpus]
    receipts = []
    for shard in range(-(-of.ends[-1] // of.shard_contexts)):
        mine = [f for f in world.firings if (f.sae, f.corpus) == (sae, corpus)
                and f.context // of.shard_contexts == shard]  # fmt: skip
        kinds = [KINDS.index(world.kind(f)) for f in mine]
        firings = Firings(
            np.array([f.context for f in mine], np.int64),
            np.array([f.position for f in mine], np.int32),
            np.array([f.feature for f in mine], np.int32),
            np.array([f.activation for f in mine], np.float32),
            np.array(kinds, np.int8),
        )
        kept = None
        if not keep.is_all:
            there = [c.number for c in of.contexts if is_kept(c, str(keep))]
            kept = np.array(there, np.int64)
        receipts += write_firings(store.root, firings, sae=sae, corpus=corpus, shard=shard,
                                  run=f"{sae} {corpus}", bits=world.bits, kept=kept)  # fmt: skip
    return receipts


def decoder_files(store: LakeStore, world: World, sae: str) -> list[Any]:
    receipts = []
    for other in SAES:
        rows = [
            {"feature": f, "rank": rank, "other_feature": j, "cosine": cosine}
            for f in range(WIDTH)
            for rank, (j, cosine) in enumerate(world.neighbors(sae, f, other))
        ]
        table = pa.Table.from_pylist(rows, schema=file_schema("neighbors"))
        for name, value in (("sae", sae), ("other_sae", other)):
            table = table.append_column(name, pa.array([value] * len(rows), pa.string()))
        table = table.select(SCHEMAS["neighbors"].names)
        receipts.append(write_neighbors(store.root, table, sae, other, "r"))
    labels = [{"feature": f, "label": text, "source": who}
              for name, f, text, who in world.labels if name == sae]  # fmt: skip
    table = pa.Table.from_pylist(labels, schema=file_schema("labels"))
    return [*receipts, write_parquet(store.root, "labels", table, {"sae": sae}, run="r")]


def decoder_columns(world: World, sae: str) -> dict[str, list[Any]]:
    """What the statistics say of decoders, the same on every corpus."""
    norms = np.linalg.norm(world.decoders[sae], axis=1).astype(np.float32).tolist()
    tokens = [[f % len(SPELT), (f + 5) % len(SPELT)] for f in range(WIDTH)]
    logits = [[f + 1.5, f + 0.25] for f in range(WIDTH)]
    return {
        "decoder_norm": norms, "encoder_norm": [2 * n for n in norms],
        "top_tokens": tokens, "top_logits": logits,
        "bottom_tokens": [ids[::-1] for ids in tokens],
        "bottom_logits": [[-v for v in values] for values in logits],
    }  # fmt: skip


def statistics_file(store: LakeStore, world: World, sae: str, corpus: str) -> Any:  # noqa: ANN401
    is_whole = world.runs[sae, corpus] == "all"
    table = "postings" if is_whole else "tallies"
    there = store.data_files(table, store.snapshot(), sae=sae, corpus=corpus)
    files, n_tokens = [f.path for f in there], world.corpora[corpus].n_tokens
    if is_whole:
        found = feature_statistics(store.root, files, WIDTH, n_tokens)
    else:
        found = tallied_statistics(read_tallies(store.root, files), WIDTH, n_tokens)
    columns = {name: found[name] for name in found.column_names}
    columns |= decoder_columns(world, sae)
    columns |= {"sae": [sae] * WIDTH, "corpus": [corpus] * WIDTH}
    schema = SCHEMAS["features"]
    rows = pa.table({f.name: pa.array(columns[f.name], f.type) if isinstance(columns[f.name], list)
                     else columns[f.name] for f in schema}).cast(schema)  # fmt: skip
    return write_features(store.root, rows, sae, corpus, "r")


def filled(table: str, **known: Any) -> dict[str, Any]:  # noqa: ANN401
    """A catalogue row: what is known, and something of the right type for the rest."""
    row: dict[str, Any] = {}
    for column in SCHEMAS[table]:
        kinds = ((pa.types.is_integer, 0), (pa.types.is_string, "x"))
        row[column.name] = next((value for is_one, value in kinds if is_one(column.type)), None)
    return row | known


def catalogue(world: World) -> dict[str, pa.Table]:
    corpora = [
        filled("corpora", corpus=c.name, chat=c.chat, packing=c.packed, bos=c.bos, stride=None,
               shard_contexts=c.shard_contexts, context_ends=c.ends, n_contexts=len(c.contexts),
               n_documents=len({d.index for x in c.contexts for d in x.documents}),
               n_tokens=c.n_tokens + c.n_bos, n_bos=c.n_bos)
        for c in world.corpora.values()
    ]  # fmt: skip
    saes = [
        filled("saes", sae=name, site=site, layer=layers[0], layers=list(layers), width=WIDTH,
               features_per_layer=WIDTH // len(layers), affine=False, l0=1.0, type="sae")
        for name, (site, layers) in SAES.items()
    ]  # fmt: skip
    runs = [
        filled("runs", run=f"{sae} {corpus}", corpus=corpus, saes=[sae], dense=[],
               state="complete", activation_bits=world.bits, versions="{}",
               config=json.dumps({"keep": keep}))
        for (sae, corpus), keep in world.runs.items()
    ]  # fmt: skip
    rows = {"corpora": corpora, "saes": saes, "runs": runs, "models": [filled("models")]}
    return {name: pa.Table.from_pylist(found, schema=SCHEMAS[name]) for name, found in rows.items()}
