"""What was ingested: of which SAEs on which corpora, and how many of their shards."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property
from typing import Any

from scopelake.errors import CorpusNotFoundError, NotIngestedError, QueryError
from scopelake.names import counted
from scopelake.query.resolve import SaeInfo
from scopelake.store.catalog import IMPORTED, committed_shards
from scopelake.store.context_numbers import NUMBER_COLUMNS, ContextNumbers
from scopelake.store.keeping import runs_of
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot


class Coverage:
    """What of a snapshot's corpora was ingested for its SAEs; read when it is first asked for."""

    def __init__(self, store: LakeStore, snapshot: Snapshot) -> None:
        self._store, self._snapshot = store, snapshot
        self._exact: dict[str, set[tuple[str, int]]] = {}

    def saes(self, corpus: str) -> set[str]:
        """Return the SAEs of which a corpus has firings, of at least one shard."""
        return {sae for sae, of in self._files if of == corpus}

    def corpora(self, sae: str) -> list[str]:
        """Return the corpora that have firings of an SAE, of at least one shard."""
        return sorted(corpus for of, corpus in self._files if of == sae)

    def without(self, saes: Iterable[str], corpus: str, context: int) -> list[str]:
        """Return those SAEs of whose firings the shard of a context is not in the lake."""
        shard = context // self._sizes[corpus].shard_contexts
        return [sae for sae in saes if self._missing(sae, corpus, shard)]

    def state(self, sae: str, corpus: str) -> str:
        """Return in words how far the ingest of an SAE is; nothing if it is complete."""
        n_shards = self._sizes[corpus].n_shards
        n = self._n_shards(sae, corpus)
        return (
            "" if n == n_shards else f"incomplete, {n:,} of {counted(n_shards, 'shard')} ingested"
        )

    def is_packed(self, corpus: str) -> bool:
        """Whether contexts of a corpus may have several documents."""
        return corpus in self._packed

    def bits(self, sae: str, corpus: str) -> set[int]:
        """Return how many mantissa bits an SAE's activations on a corpus have.

        That is one number; several where merged files do not tell which run made them, none of a
        lake that does not say.
        """
        made = self._made.get((sae, corpus), set())
        return {run["activation_bits"] for run in runs_of(self._runs, sae, corpus, made)}

    def check_corpus(self, corpus: str) -> None:
        """Refuse a corpus that the lake does not have.

        Raises:
            CorpusNotFoundError: the message lists those that it has.
        """
        if corpus not in self._sizes:
            there = ", ".join(sorted(self._sizes)) or "none"
            raise CorpusNotFoundError(
                f"corpus {corpus!r} was asked for; the lake has {there}; choose one of them"
            )

    def check_known(self, sae: SaeInfo, corpus: str | None) -> None:
        """Refuse an SAE that was not run: that nothing of it is known is no answer.

        Raises:
            CorpusNotFoundError: the lake has no such corpus.
            NotIngestedError: the SAE was not run on it, or on none if it is None.
        """
        if corpus is not None:
            self.check_corpus(corpus)
        there = sorted({*self.corpora(sae.name), *sae.partial})
        if not there:
            raise NotIngestedError(
                f"{sae.name} was asked for; it was run on no corpus yet; ingest it first"
            )
        if corpus is not None and corpus not in there:
            raise NotIngestedError(
                f"{sae.name} was asked for on corpus {corpus!r}; it was not run there, but on "
                f"{', '.join(there)}; ingest it there first"
            )

    def check_any(self, corpus: str, unknown: Collection[str]) -> None:
        """Refuse a corpus on which no SAE was run, but for those of which not all is known.

        Raises:
            NotIngestedError: none was.
            QueryError: not all firings are known of any.
        """
        if self.saes(corpus) - set(unknown):
            return
        if unknown:
            raise QueryError(
                f"what fires here on corpus {corpus!r} was asked for; of no SAE all firings are "
                "known here (published examples, peaks, or a sample of documents without this "
                "one); ingest another SAE there, or ask for top contexts"
            )
        raise NotIngestedError(
            f"what fires on corpus {corpus!r} was asked for; no SAE was run there yet; ingest one "
            "first"
        )

    def check_shard(self, saes: Iterable[str], corpus: str, context: int) -> list[str]:
        """Return those SAEs whose firings of a context are not in the lake, if others' are.

        Raises:
            NotIngestedError: nobody's are.
        """
        asked = sorted(saes)
        missing = self.without(asked, corpus, context)
        if asked and len(missing) == len(asked):
            done = self.state(asked[0], corpus)
            raise NotIngestedError(
                f"what fires in context {context} of corpus {corpus!r} was asked for; its shard "
                f"was not ingested yet ({asked[0]} is {done}); ingest again to resume"
            )
        return missing

    def _missing(self, sae: str, corpus: str, shard: int) -> bool:
        if self._files.get((sae, corpus)) == self._sizes[corpus].n_shards:
            return False
        return (sae, shard) not in self._shards(corpus)

    def _n_shards(self, sae: str, corpus: str) -> int:
        n_files = self._files.get((sae, corpus), 0)
        if n_files == self._sizes[corpus].n_shards:
            return n_files
        return sum(of == sae for of, _ in self._shards(corpus))

    def _shards(self, corpus: str) -> set[tuple[str, int]]:
        if corpus not in self._exact:
            self._exact[corpus] = committed_shards(self._store, self._snapshot, corpus)
        return self._exact[corpus]

    @cached_property
    def _packed(self) -> set[str]:
        rows = self._store.read("corpora", self._snapshot, ["corpus", "packing"]).to_pylist()
        # Null in older lakes, which had no packing.
        return {r["corpus"] for r in rows if r["packing"]}

    @cached_property
    def _sizes(self) -> dict[str, ContextNumbers]:
        columns = ["corpus", *NUMBER_COLUMNS]
        rows = self._store.read("corpora", self._snapshot, columns).to_pylist()
        return {r["corpus"]: ContextNumbers.of(r) for r in rows}

    @cached_property
    def _files(self) -> dict[tuple[str, str], int]:
        """By (sae, corpus) how many shards have files of their own: if all, none is missing."""
        rows = self._store.read(
            "files", self._snapshot, ["sae", "corpus", "shard"], [("kind", "=", "codes")]
        )
        # A shard may have several files, one for each piece in which it was encoded.
        counts = rows.group_by(["sae", "corpus"]).aggregate([("shard", "count_distinct")])
        return {(r["sae"], r["corpus"]): r["shard_count_distinct"] for r in counts.to_pylist()}

    @cached_property
    def _made(self) -> dict[tuple[str, str], set[str]]:
        """By (sae, corpus) the runs that its files name."""
        filters = [("kind", "=", "codes")]
        rows = self._store.read("files", self._snapshot, ["sae", "corpus", "run"], filters)
        found: dict[tuple[str, str], set[str]] = {}
        for row in rows.group_by(["sae", "corpus", "run"]).aggregate([]).to_pylist():
            found.setdefault((row["sae"], row["corpus"]), set()).add(row["run"])
        return found

    @cached_property
    def _runs(self) -> list[dict[str, Any]]:
        """Rows of the runs, but for imports."""
        columns, filters = ["run", "corpus", "saes", "activation_bits"], [("state", "!=", IMPORTED)]
        rows: list[dict[str, Any]] = self._store.read(
            "runs", self._snapshot, columns, filters
        ).to_pylist()
        return rows
