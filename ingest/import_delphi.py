"""Import of a delphi cache: its tokens become a corpus, its firings those of a coder on it.

All firings are in a cache, so what is imported answers all that an ingest would, but for what takes
the coder's weights: promoted tokens, norms, nearest features.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import uuid4

import numpy as np
import pyarrow as pa

from scopelake.errors import (
    CoderFileError,
    CoderMismatchError,
    CorpusExistsError,
    InvalidArgumentError,
    LakeBusyError,
)
from scopelake.ingest.delphi_cache import Block, DelphiCache, tokens_digest
from scopelake.ingest.delphi_corpus import CacheCorpus, Progress, is_in_lake
from scopelake.ingest.rows import versions
from scopelake.ingest.tokens import Tokenizer
from scopelake.names import SiteLayer, check_name, counted
from scopelake.store.catalog import committed_shards
from scopelake.store.commit import Writer
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.planned import Commit
from scopelake.store.receipts import Receipt
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot
from scopelake.store.summary import feature_statistics
from scopelake.store.writer import discard, write_features, write_firings

_BITS: Final = 23
_FIRING: Final = np.dtype(
    [("row", np.int64), ("position", np.int32), ("feature", np.int32), ("activation", np.float32)]
)


@dataclass(frozen=True)
class CoderName:
    """How the lake calls the coder of a cache, which does not say."""

    sae: str
    place: SiteLayer
    model: str | None

    def row(self, width: int) -> dict[str, Any]:
        """Return it as a row of the saes table; what only the weights tell is null."""
        repo, family, folder = self.sae.split("/")
        return {
            "sae": self.sae,
            "repo": repo,
            "family": family,
            "folder": folder,
            "type": "sae",
            "site": self.place.site,
            "layer": self.place.layer,
            "layers": [self.place.layer],
            "features_per_layer": width,
            "width": width,
            "model": self.model,
        }


@dataclass(frozen=True)
class ImportedCache:
    """What an import brought."""

    snapshot: int
    sae: str
    corpus: str
    width: int
    n_contexts: int
    n_tokens: int
    n_firings: int
    n_zero: int
    """Firings that are 0 in the cache; left out."""
    n_on_padding: int
    """Firings where the cache has padding; left out."""

    def to_text(self) -> str:
        """Return it as a line."""
        left = [(self.n_zero, "of activation 0"), (self.n_on_padding, "on padding")]
        said = "".join(f", {n:,} {what} left out" for n, what in left if n)
        return (
            f"{self.sae} on corpus {self.corpus}: {counted(self.n_firings, 'firing')} of "
            f"{counted(self.width, 'feature')}{said}, {counted(self.n_contexts, 'context')}, "
            f"{counted(self.n_tokens, 'token')} (snapshot {self.snapshot})"
        )

    def __str__(self) -> str:
        return self.to_text()


def check_coder_name(sae: str) -> str:
    """Return the name if it has the three parts that all coders' have.

    Raises:
        InvalidArgumentError: it has not.
    """
    parts = sae.split("/")
    if len(parts) != 3 or not all(parts):
        raise InvalidArgumentError(
            f"the SAE was to be called {sae!r}; names are <repo>/<family>/<folder>; give such a "
            "name, for example my-saes/resid_post/layer_12_width_16k"
        )
    return sae


def import_delphi(
    store: LakeStore,
    cache: DelphiCache,
    tokenizer: Tokenizer,
    coder: CoderName,
    corpus: str,
    on_progress: Progress | None = None,
) -> ImportedCache:
    """Import a cache in one commit.

    Args:
        store: the lake.
        cache: from `read_cache`.
        tokenizer: the one that made its token ids.
        coder: what the lake shall call its coder.
        corpus: name of the corpus: a new one, or one that came from a cache with these tokens.
        on_progress: called with (contexts, firings or shards, done, of how many).

    Raises:
        CoderFileError: the cache has what no lake can hold: values that are negative or not
            finite, addresses outside its tokens, a firing twice, ids that are not the tokenizer's.
        CoderMismatchError: the lake has another coder of that name.
        CorpusExistsError: the lake has another corpus of that name.
        InvalidArgumentError: the lake has firings of the coder on that corpus already.
        LakeBusyError: another writer came first.
    """
    progress = on_progress or (lambda what, done, of: None)
    check_name("corpus", corpus)
    with Writer(store) as writer, TemporaryDirectory(prefix="scopelake-") as folder:
        job = _Job(writer, cache, tokenizer, coder, progress, Path(folder))
        return job.run(corpus)


class _Job:
    """One import: everything is written, then committed at once."""

    def __init__(
        self,
        writer: Writer,
        cache: DelphiCache,
        tokenizer: Tokenizer,
        coder: CoderName,
        progress: Progress,
        folder: Path,
    ) -> None:
        self._writer, self._store = writer, writer.store
        self._cache, self._tokenizer, self._coder = cache, tokenizer, coder
        self._progress, self._folder = progress, folder
        self._started = datetime.now(UTC)
        self._run = f"delphi-{uuid4().hex}"
        self._n_zero = self._n_on_padding = self._n_firings = 0

    def run(self, name: str) -> ImportedCache:
        digest = tokens_digest(self._cache)
        is_there = is_in_lake(self._store, self._store.snapshot(), name, digest, self._tokenizer)
        _check_new(self._store, self._store.snapshot(), self._coder, self._cache, name)
        receipts: list[Receipt] = []
        try:
            corpus = CacheCorpus(name, digest, self._cache, self._tokenizer, self._folder)
            corpus.read(None if is_there else self._store.root, receipts, self._progress)
            self._sort_by_shard(corpus)
            self._write_shards(corpus, receipts)
            row = corpus.row(self._started)
            receipts.append(self._statistics(receipts, row))
        except BaseException:
            discard(self._store.root, receipts)
            raise
        rows = {"runs": [self._run_row(name, receipts, corpus.n_shards)],
                "saes": [self._coder.row(self._cache.width)]}  # fmt: skip
        rows |= {} if is_there else {"corpora": [row]}
        snapshot = self._commit(receipts, rows, name, digest, is_there)
        return ImportedCache(
            snapshot.id, self._coder.sae, name, self._cache.width, row["n_contexts"],
            row["n_tokens"], self._n_firings, self._n_zero, self._n_on_padding,
        )  # fmt: skip

    def _commit(
        self,
        receipts: list[Receipt],
        rows: dict[str, list[dict[str, Any]]],
        name: str,
        digest: str,
        is_there: bool,
    ) -> Snapshot:
        def revise(commit: Commit, snapshot: Snapshot) -> Commit:
            _check_new(self._store, snapshot, self._coder, self._cache, name)
            if is_there != is_in_lake(self._store, snapshot, name, digest, self._tokenizer):
                raise LakeBusyError(
                    f"a cache was to be imported into corpus {name!r}; another writer has made it "
                    "meanwhile; import it again"
                )
            # A row that is there stays, whoever wrote it: an ingest's says more than a cache does.
            known = self._store.read("saes", snapshot, ["sae"])["sae"].to_pylist()
            kept = {
                t: r for t, r in commit.rows.items() if t != "saes" or self._coder.sae not in known
            }
            return replace(commit, rows=kept)

        tables = {t: pa.Table.from_pylist(r, schema=SCHEMAS[t]) for t, r in rows.items()}
        try:
            return self._writer.commit(
                receipts,
                transaction=self._run,
                reason=f"import delphi's cache of {self._coder.sae}",
                run=self._run,
                rows=tables,
                revise=revise,
            )
        except (LakeBusyError, CoderMismatchError, CorpusExistsError, InvalidArgumentError):
            # After any other error it may have been decided on, and is finished by others.
            discard(self._store.root, receipts)
            raise

    # -- firings ---------------------------------------------------------------------------------

    def _sort_by_shard(self, corpus: CacheCorpus) -> None:
        """Put the firings, which come by feature, into a file for each shard."""
        done = 0
        for block in self._cache.blocks():
            self._check(block, corpus)
            kept = block.activation > 0
            self._n_zero += int(np.count_nonzero(~kept))
            found = np.empty(int(np.count_nonzero(kept)), _FIRING)
            for name in _FIRING.names or ():
                found[name] = getattr(block, name)[kept]
            shard = found["row"] // corpus.shard_contexts
            for index in np.unique(shard):
                with (self._folder / f"shard-{index}").open("ab") as file:
                    file.write(found[shard == index].tobytes())
            done += len(kept)
            self._progress("firings", done, self._cache.n_firings)

    def _check(self, block: Block, corpus: CacheCorpus) -> None:
        values = block.activation
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise CoderFileError(
                f"{self._cache.path} has activations that are negative or not finite; a lake has "
                "firings above 0 (float16 cannot hold values above 65,504): cache it in float32"
            )
        n_rows, length = corpus.shape
        inside = (block.row >= 0) & (block.row < n_rows)
        inside &= (block.position >= 0) & (block.position < length)
        inside &= (block.feature >= block.first) & (block.feature <= block.last)
        if not inside.all():
            raise CoderFileError(
                f"{self._cache.path} has firings outside its {n_rows:,} rows of {length} tokens, "
                f"or outside the features {block.first} to {block.last} of their split; cache it "
                "again"
            )

    def _write_shards(self, corpus: CacheCorpus, receipts: list[Receipt]) -> None:
        for index in range(corpus.n_shards):
            path = self._folder / f"shard-{index}"
            found = np.fromfile(path, _FIRING) if path.exists() else np.empty(0, _FIRING)
            kind = corpus.kinds[found["row"], found["position"]]
            self._n_on_padding += int(np.count_nonzero(kind < 0))
            found, kind = found[kind >= 0], kind[kind >= 0]
            first = corpus.first_positions(index)
            shift = first[found["row"] - index * corpus.shard_contexts]
            firings = Firings(
                found["row"].astype(np.int64),
                (found["position"] - shift).astype(np.int32),
                found["feature"].astype(np.int32),
                found["activation"].astype(np.float32),
                kind.astype(np.int8),
            )
            self._n_firings += len(firings)
            try:
                receipts += write_firings(
                    self._store.root, firings, sae=self._coder.sae, corpus=corpus.name,
                    shard=index, run=self._run, bits=_BITS,
                )  # fmt: skip
            except InvalidArgumentError as error:
                raise CoderFileError(
                    f"the cache in {self._cache.path} was to be imported; {error}"
                ) from error
            path.unlink(missing_ok=True)
            self._progress("shards", index + 1, corpus.n_shards)

    def _statistics(self, receipts: list[Receipt], row: dict[str, Any]) -> Receipt:
        """Write the features; what takes the coder's weights is null."""
        root, width = self._store.root, self._cache.width
        files = [r.path for r in receipts if r.table == "postings"]
        found = feature_statistics(root, files, width, row["n_tokens"] - row["n_bos"])
        columns: dict[str, Any] = {name: found[name] for name in found.column_names}
        columns |= {"sae": pa.array([self._coder.sae] * width),
                    "corpus": pa.array([row["corpus"]] * width)}  # fmt: skip
        schema = SCHEMAS["features"]
        table = pa.table({f.name: columns.get(f.name, pa.nulls(width, f.type)) for f in schema})
        return write_features(root, table.cast(schema), self._coder.sae, row["corpus"], self._run)

    def _run_row(self, name: str, receipts: list[Receipt], n_shards: int) -> dict[str, Any]:
        now = datetime.now(UTC)
        source = {"source": "delphi", "cache": self._cache.config, "keep": "all"}
        return {
            "run": self._run,
            "corpus": name,
            "model": self._coder.model,
            "saes": [self._coder.sae],
            "dense": [],
            "state": "complete",
            "n_shards": n_shards,
            "activation_bits": _BITS,
            "relative_error": 0.0,
            "versions": json.dumps(versions()),
            "config": json.dumps(source),
            "started_at": self._started,
            "finished_at": now,
            "tokens": 0,
            "firings": self._n_firings,
            "n_bytes": sum(r.n_bytes for r in receipts),
            "seconds": (now - self._started).total_seconds(),
        }


def _check_new(
    store: LakeStore, snapshot: Snapshot, coder: CoderName, cache: DelphiCache, corpus: str
) -> None:
    """Refuse a coder of another width or place, and one that was run there already."""
    filters = [("sae", "=", coder.sae)]
    for row in store.read("saes", snapshot, filters=filters).to_pylist():
        theirs = (row["width"], row["site"], row["layers"])
        if theirs != (cache.width, coder.place.site, [coder.place.layer]):
            raise CoderMismatchError(
                f"a cache of {coder.sae} with {cache.width} features at {coder.place} was given; "
                f"the lake's has {row['width']} at {row['site']}/{row['layer']}; choose another "
                "name"
            )
    if any(sae == coder.sae for sae, _ in committed_shards(store, snapshot, corpus)):
        raise InvalidArgumentError(
            f"a cache of {coder.sae} was to be imported into corpus {corpus!r}; the lake has its "
            "firings there; name another corpus"
        )
