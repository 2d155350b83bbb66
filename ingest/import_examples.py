"""Import of published examples: a corpus's contexts, features' strongest firings and statistics.

With it there are top contexts for every published feature without a model. Only the strongest
firings are known: nothing is written to ``codes`` and ``postings``, which hold all firings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from scopelake.errors import (
    CoderFileError,
    CoderMismatchError,
    InvalidArgumentError,
    LakeBusyError,
)
from scopelake.ingest.digest import digest_files
from scopelake.ingest.examples import (
    EXAMPLES,
    TOKEN_COLUMNS,
    Examples,
    feature_columns,
    firing_blocks,
)
from scopelake.ingest.examples_corpus import (
    Grid,
    Progress,
    choose_corpus,
    place,
    read_grid,
    write_corpus,
)
from scopelake.ingest.rows import published_sae_table, versions
from scopelake.ingest.tokens import Tokenizer
from scopelake.names import KIND_BOS
from scopelake.store.catalog import IMPORTED, committed_shards, published_examples
from scopelake.store.commit import Writer
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.planned import Commit
from scopelake.store.receipts import Receipt
from scopelake.store.root import Root
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot
from scopelake.store.writer import discard, write_examples, write_features

_MOST_ON_PADDING: Final = 0.5


@dataclass(frozen=True)
class ImportedExamples:
    """What an import brought of one coder."""

    sae: str
    corpus: str
    n_features: int
    """Features with at least one firing that counts."""
    n_firings: int
    n_on_bos: int
    """Left out, as everywhere."""
    n_on_padding: int
    """Left out: the file places them where its corpus has no token."""
    already: bool = False
    """Whether the lake had them."""


@dataclass
class _Counts:
    n_features: int = 0
    n_firings: int = 0
    n_on_bos: int = 0
    n_on_padding: int = 0


def import_examples(
    store: LakeStore,
    examples: Sequence[Examples],
    tokenizer: Tokenizer,
    corpus: str | None = None,
    on_progress: Progress | None = None,
) -> list[ImportedExamples]:
    """Import files of examples, one commit for each; those that are there are not imported again.

    Args:
        store: the lake.
        examples: from `find_examples`.
        tokenizer: of the model that the coders were trained on.
        corpus: name for the examples' corpus; by default the one that has its tokens, or
            ``<repo>-examples``.
        on_progress: called with (corpus or coder, contexts or features done, of how many).

    Raises:
        CoderFileError: a file is malformed, or its token ids are not the tokenizer's.
        CoderMismatchError: the lake's coder of that name is another, or has other examples.
        CorpusExistsError: `corpus` names a corpus of other tokens.
        InvalidArgumentError: the lake has all of a coder's firings on that corpus already.
        LakeBusyError: other writers came first again and again.
    """
    progress = on_progress or (lambda what, done, of: None)
    with Writer(store) as writer:
        for one in examples:
            _check_coder(store, one)
        return [_import(writer, one, tokenizer, corpus, progress) for one in examples]


def _import(
    writer: Writer, examples: Examples, tokenizer: Tokenizer, corpus: str | None, progress: Progress
) -> ImportedExamples:
    """Write everything that is new, then commit it at once."""
    store, started_at = writer.store, datetime.now(UTC)
    grid = read_grid(examples, tokenizer)
    name, is_there = choose_corpus(store, examples, grid, tokenizer, corpus)
    digest = digest_files([examples.file])
    if found := _imported_before(store, examples, name, digest):
        return found
    run = xxhash.xxh3_64_hexdigest(json.dumps([examples.name, name, digest]).encode())
    counts = _Counts()
    receipts: list[Receipt] = []
    rows: dict[str, pa.Table] = {}
    replace: dict[str, tuple[str, ...]] = {}
    try:
        highest = _write_firings(store.root, examples, grid, name, run, counts, receipts, progress)
        receipts.append(_write_features(store.root, examples, name, run, highest))
        if not is_there:
            rows["corpora"] = write_corpus(
                store.root, examples, grid, tokenizer, name, receipts, progress
            )
    except BaseException:
        discard(store.root, receipts)
        raise
    row = _run_row(examples, name, run, digest, counts, receipts, started_at)
    rows["runs"] = pa.Table.from_pylist([row], schema=SCHEMAS["runs"])
    if _is_new(store, examples):
        rows["saes"] = published_sae_table(examples)
        replace["saes"] = ("sae",)
    writer.commit(
        receipts,
        transaction=f"{run}:{uuid4().hex}",
        reason=f"import examples of {examples.name}",
        run=run,
        rows=rows,
        replace=replace,
        revise=partial(_check_still_new, store, examples, name, not is_there),
    )
    return ImportedExamples(examples.name, name, **vars(counts))


def _check_still_new(
    store: LakeStore,
    examples: Examples,
    corpus: str,
    is_new_corpus: bool,
    commit: Commit,
    snapshot: Snapshot,
) -> Commit:
    """Refuse what another writer has brought since it was looked up."""
    _check_coder(store, examples)
    there = store.read("corpora", snapshot, ["corpus"], [("corpus", "=", corpus)]).num_rows
    done = {sae for sae, _ in committed_shards(store, snapshot, corpus)}
    done |= {sae for sae, name in published_examples(store, snapshot) if name == corpus}
    if (there and is_new_corpus) or examples.name in done:
        raise LakeBusyError(
            f"examples of {examples.name} were to be imported into corpus {corpus!r}; another "
            "writer has changed it meanwhile; import them again"
        )
    return commit


def _write_firings(
    root: Root,
    examples: Examples,
    grid: Grid,
    corpus: str,
    run: str,
    counts: _Counts,
    receipts: list[Receipt],
    progress: Progress,
) -> npt.NDArray[np.float32]:
    """Write peaks, a file for each block; return each feature's strongest, NaN without one."""
    highest = np.full(examples.n_features, np.nan, dtype=np.float32)
    for block in firing_blocks(examples):
        placed = place(examples, grid, block)
        kept = placed.firings.take(placed.firings.kind != KIND_BOS)
        receipts.append(_write_block(root, examples, kept, corpus, run))
        np.fmax.at(highest, kept.feature, kept.activation)
        counts.n_firings += len(kept)
        counts.n_on_bos += len(placed.firings) - len(kept)
        counts.n_on_padding += placed.n_on_padding
        progress(examples.name, block.first_feature + len(block.contexts), examples.n_features)
    counts.n_features = int(np.count_nonzero(~np.isnan(highest)))
    _check_padding(examples, counts)
    return highest


def _check_padding(examples: Examples, counts: _Counts) -> None:
    """A firing on padding is odd; many say that the file's parts do not belong together."""
    n_given = counts.n_firings + counts.n_on_bos + counts.n_on_padding
    if counts.n_on_padding > _MOST_ON_PADDING * n_given:
        raise CoderFileError(
            f"the examples in {examples.file} were to be imported; {counts.n_on_padding:,} of "
            f"their {n_given:,} firings are on padding; the file is damaged: fetch it again"
        )


def _write_block(root: Root, examples: Examples, kept: Firings, corpus: str, run: str) -> Receipt:
    try:
        return write_examples(root, kept, sae=examples.name, corpus=corpus, run=run)
    except InvalidArgumentError as error:
        raise CoderFileError(
            f"the examples in {examples.file} were to be imported; {error}; fetch the file again"
        ) from error


def _write_features(
    root: Root,
    examples: Examples,
    corpus: str,
    run: str,
    highest: npt.NDArray[np.float32],
) -> Receipt:
    """Write what the file says of each feature; what takes all firings to know is null."""
    n = examples.n_features
    given = feature_columns(examples)
    columns: dict[str, Any] = {
        "sae": pa.array([examples.name] * n),
        "corpus": pa.array([corpus] * n),
        "feature": np.arange(n, dtype=np.int32),
        "density": given["feature_frequencies"],
        "max": pa.array(highest, from_pandas=True),
    }
    columns |= {k: pa.array(list(given[k])) for k in TOKEN_COLUMNS if k in given}
    schema = SCHEMAS["features"]
    table = pa.table(
        {field.name: columns.get(field.name, pa.nulls(n, field.type)) for field in schema}
    ).cast(schema)
    return write_features(root, table, examples.name, corpus, run)


def _check_coder(store: LakeStore, examples: Examples) -> None:
    """Refuse a coder whose name stands for another in the lake."""
    rows = store.read("saes", store.snapshot(), filters=[("sae", "=", examples.name)]).to_pylist()
    for row in rows:
        digest = None if examples.weights is None else examples.weights.digest
        if None not in (digest, row["digest"]) and digest != row["digest"]:
            raise CoderMismatchError(
                f"SAE {examples.name} was given with digest {digest}; the lake's has "
                f"{row['digest']}; they must not be mixed: rename one or use another lake"
            )
        if row["width"] != examples.n_features:
            raise CoderMismatchError(
                f"examples of {examples.n_features} features of SAE {examples.name} were given; "
                f"the lake's has {row['width']}; rename one or use another lake"
            )


def _is_new(store: LakeStore, examples: Examples) -> bool:
    """Whether the lake lacks the coder's row, or has one without what is known here."""
    filters = [("sae", "=", examples.name)]
    rows = store.read("saes", store.snapshot(), ["digest"], filters).to_pylist()
    return not rows or (rows[0]["digest"] is None and examples.weights is not None)


def _imported_before(
    store: LakeStore, examples: Examples, corpus: str, digest: str
) -> ImportedExamples | None:
    """Return what an earlier import brought.

    Raises:
        CoderMismatchError: it was of another file.
        InvalidArgumentError: the lake has all firings.
    """
    snapshot = store.snapshot()
    filters = [("corpus", "=", corpus), ("state", "=", IMPORTED)]
    for row in store.read("runs", snapshot, ["saes", "config"], filters).to_pylist():
        if row["saes"] == [examples.name]:
            config = json.loads(row["config"])
            if config["digest"] == digest:
                counts = config["counts"]
                return ImportedExamples(examples.name, corpus, **counts, already=True)
            raise CoderMismatchError(
                f"examples of {examples.name} with digest {digest} were given; the lake has those "
                f"with {config['digest']} on corpus {corpus!r}; use another lake"
            )
    if any(sae == examples.name for sae, _ in committed_shards(store, snapshot, corpus)):
        raise InvalidArgumentError(
            f"examples of {examples.name} were to be imported; the lake has its own firings on "
            f"corpus {corpus!r}, which say more; name another corpus to have both"
        )
    return None


def _run_row(
    examples: Examples,
    corpus: str,
    run: str,
    digest: str,
    counts: _Counts,
    receipts: list[Receipt],
    started_at: datetime,
) -> dict[str, Any]:
    now = datetime.now(UTC)
    config = {"source": EXAMPLES, "digest": digest, "depth": examples.depth, "counts": vars(counts)}
    return {
        "run": run,
        "corpus": corpus,
        "model": examples.identity.model_name,
        "saes": [examples.name],
        "dense": [],
        "state": IMPORTED,
        "n_shards": 0,
        "activation_bits": 23,
        "relative_error": 0.0,
        "versions": json.dumps(versions()),
        "config": json.dumps(config),
        "started_at": started_at,
        "finished_at": now,
        "tokens": 0,
        "firings": counts.n_firings,
        "n_bytes": sum(r.n_bytes for r in receipts),
        "seconds": (now - started_at).total_seconds(),
    }
