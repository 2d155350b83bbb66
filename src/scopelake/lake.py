"""The lake as users hold it: every verb here delegates to the room that does the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scopelake.errors import InvalidArgumentError
from scopelake.named import coder_specs, load_tokenizer, model_files
from scopelake.names import Site, SiteLayer
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    import zarr

    from scopelake.ingest.check_sae import SaeCheck
    from scopelake.ingest.corpus import CorpusSummary
    from scopelake.ingest.import_examples import ImportedExamples
    from scopelake.ingest.pipeline import IngestSummary, Progress
    from scopelake.query.contexts import TopContexts
    from scopelake.query.firing import FeaturesAt
    from scopelake.query.info import LakeInfo
    from scopelake.query.resolve import SaeInfo


class Lake:
    """A lake at one snapshot; writing moves it to the snapshot it made."""

    def __init__(self, store: LakeStore, snapshot: Snapshot, *, pinned: bool) -> None:
        self._store, self._snapshot, self._pinned = store, snapshot, pinned

    @classmethod
    def create(cls, path: str | Path) -> Lake:
        """Create an empty lake; see `scopelake.create`."""
        store = LakeStore.create(Path(path))
        return cls(store, store.snapshot(), pinned=False)

    @classmethod
    def open(cls, path: str | Path, snapshot: int | None = None) -> Lake:
        """Open a lake; see `scopelake.open`."""
        store = LakeStore.open(Path(path))
        return cls(store, store.snapshot(snapshot), pinned=snapshot is not None)

    @property
    def path(self) -> Path:
        """The lake's folder."""
        return self._store.root

    @property
    def snapshot(self) -> int:
        """Number of the snapshot that this handle reads."""
        return self._snapshot.id

    def add_corpus(
        self,
        name: str,
        source: str | Path | Sequence[str | Path],
        *,
        tokenizer: str | Path,
        context_length: int = 1024,
        chat: bool = False,
        shard_contexts: int = 256,
        root: Path | None = None,
        generate: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        device: str = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> CorpusSummary:
        """Tokenize text or chats into contexts, shared by every model of that tokenizer.

        Args:
            name: letters, digits, ``._-``.
            source: .txt/.md/.rst/.py, .jsonl or .parquet files, or folders of them.
            tokenizer: folder or hub id of a Gemma 3 model.
            context_length: most tokens in a context, BOS included; longer documents are split.
            chat: records hold ``messages`` (role, content) instead of ``text``.
            shard_contexts: contexts in a shard, the unit of commit and retry.
            root: document ids of text files are relative to it.
            generate: let the model of `tokenizer` answer chats that end with the user, in at most
                so many tokens; they get the kind ``generated``.
            temperature: of these answers; 0 is greedy.
            seed: of sampling them.
            device: where the model runs.
            progress: called with (documents, tokens) so far.

        Raises:
            CorpusExistsError, CorpusSourceError, InvalidArgumentError, ModelError, LakeBusyError.
        """
        from scopelake.ingest.corpus import CorpusConfig, add_corpus
        from scopelake.ingest.model import load_model
        from scopelake.ingest.replies import Replier, ReplyConfig

        self._check_writable()
        config = CorpusConfig(name, source, context_length, chat, shard_contexts, root)
        replies = None if generate is None else ReplyConfig(generate, temperature, seed)
        if replies is not None and not chat:
            raise InvalidArgumentError(
                f"generate={generate} was asked for a corpus of texts; replies belong to chats; "
                "give chat too, or leave generate out"
            )
        backend = load_tokenizer(tokenizer)
        replier = None
        if replies is not None:
            replier = Replier(load_model(model_files(tokenizer), device=device), backend, replies)
        summary = add_corpus(self._store, config, backend, progress, replier)
        self.refresh()
        return summary

    def ingest(
        self,
        corpus: str,
        *,
        model: str | Path,
        saes: Sequence[str | Path],
        dense: Sequence[tuple[Site, int]] = (),
        device: str = "auto",
        dtype: str = "auto",
        device_map: str | Mapping[str, int | str] | None = None,
        activation_bits: int = 10,
        batch_tokens: int = 16384,
        evaluate: bool = False,
        model_name: str | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> IngestSummary:
        """Run a model over a corpus once and store the firings of every coder named.

        What the lake holds already is not made again; after a crash, asking again resumes.

        Args:
            corpus: name of a corpus in the lake.
            model: folder or hub id of a Gemma 3, ``<org>/<name>[@<revision>]``.
            saes: folders, patterns or hub ids ``<org>/<repo>[@<revision>]/<family>/<folder>``.
            dense: (site, layer) pairs whose activations are stored, as bfloat16.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
            dtype: ``auto`` (float32 on a CPU, bfloat16 on a GPU), ``float32`` or ``bfloat16``.
            device_map: for a model larger than a device: ``auto``, or a device by module, as
                transformers takes it; needs accelerate.
            activation_bits: mantissa bits kept of each activation; 23 is lossless.
            batch_tokens: most tokens in one forward pass, padding included.
            evaluate: also measure, on a sample of the corpus, how well each coder reconstructs:
                FVU, L0, dead features, and the model's loss with the reconstruction spliced in.
            model_name: what the coders call the model, if a local folder has another name.
            progress: called after every batch and commit.

        Raises:
            CorpusNotFoundError, ModelError, CoderFileError, CoderMismatchError, LakeBusyError.
        """
        from scopelake.ingest.find_coders import find_coders
        from scopelake.ingest.model import load_model
        from scopelake.ingest.pipeline import ingest
        from scopelake.ingest.plan import IngestConfig, check_tokenizer, find_corpus

        self._check_writable()
        sites = tuple(SiteLayer(site, layer) for site, layer in dense)
        config = IngestConfig(corpus, sites, activation_bits, batch_tokens, evaluate)
        row = find_corpus(self._store, self._store.snapshot(), corpus)
        coders = find_coders(coder_specs(saes))
        files = model_files(model, model_name)
        check_tokenizer(row, files)
        loaded = load_model(files, device=device, dtype=dtype, device_map=device_map)
        summary = ingest(self._store, config, loaded, coders, progress)
        self.refresh()
        return summary

    def import_examples(
        self,
        saes: Sequence[str | Path],
        *,
        tokenizer: str | Path,
        corpus: str | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[ImportedExamples]:
        """Import the examples that Google published beside its coders; no model runs.

        The lake gets their corpus, the strongest firings of each feature as peaks, and how often
        each fires and the tokens that it promotes as features.

        Args:
            saes: as in `ingest`; only ``examples.safetensors`` and ``config.json`` are fetched.
            tokenizer: folder or hub id of a Gemma 3 model.
            corpus: name for the examples' corpus; by default the one that has its tokens
                already, or ``<repo>-examples``.
            progress: called with (corpus or coder, contexts or features done, of how many).

        Raises:
            CoderFileError, CoderMismatchError, CorpusExistsError, ModelError, HubError,
            LakeBusyError.
        """
        from scopelake.ingest.find_coders import find_examples
        from scopelake.ingest.import_examples import import_examples

        self._check_writable()
        found = find_examples(coder_specs(saes))
        done = import_examples(self._store, found, load_tokenizer(tokenizer), corpus, progress)
        self.refresh()
        return done

    def check_saes(
        self,
        saes: Sequence[str | Path],
        *,
        model: str | Path,
        corpus: str | None = None,
        n_contexts: int = 32,
        seed: int = 0,
        device: str = "auto",
        dtype: str = "auto",
        device_map: str | Mapping[str, int | str] | None = None,
        model_name: str | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[SaeCheck]:
        """Encode a sample of imported examples again and say how well they agree.

        Args:
            saes: as in `ingest`, with their weights; their examples were imported.
            model: as in `ingest`; so are device, dtype, device_map and model_name.
            corpus: which corpus of examples, if there are several.
            n_contexts: size of the sample.
            seed: of the sample.
            progress: called with (coder, contexts done, of how many).

        Raises:
            CoderFileError, CoderMismatchError, CorpusNotFoundError, ModelError, HubError.
        """
        from scopelake.ingest.check_sae import check_sae
        from scopelake.ingest.find_coders import find_coders
        from scopelake.ingest.model import load_model

        coders = find_coders(coder_specs(saes))
        files = model_files(model, model_name)
        loaded = load_model(files, device=device, dtype=dtype, device_map=device_map)
        return [
            check_sae(
                self._store, self._snapshot, coder, loaded,
                corpus=corpus, n_contexts=n_contexts, seed=seed, progress=progress,
            )
            for coder in coders
        ]  # fmt: skip

    def top_contexts(
        self,
        feature: int,
        *,
        layer: int | None = None,
        site: Site | None = None,
        sae: str | None = None,
        k: int = 20,
        window: int = 16,
        corpus: str | None = None,
        where: str | None = None,
        bos: bool = False,
    ) -> TopContexts:
        """Return the contexts in which a feature is strongest, with the tokens around its peak.

        Args:
            feature: index in the SAE, from 0.
            layer: with `site`, an alternative to naming the `sae`.
            site: ``resid_post``, ``attn_out``, ``mlp_out`` or ``mlp_in`` (transcoders).
            sae: full name, or any ending of it that is unique.
            k: number of contexts.
            window: tokens shown on either side of the peak.
            corpus: only this corpus.
            where: SQL predicate over the peak's token and its context, e.g. ``role = 'user'``.
            bos: whether firings on BOS count.

        Raises:
            SaeNotFoundError, AmbiguousSaeError, LayerNotFoundError, FeatureNotFoundError,
            InvalidArgumentError, QueryError.
        """
        from scopelake.query.contexts import top_contexts
        from scopelake.query.resolve import resolve_sae

        info = resolve_sae(self._saes, sae=sae, layer=layer, site=site, feature=feature)
        return top_contexts(
            self._connection, info, feature,
            k=k, window=window, corpus=corpus, where=where, bos=bos,
        )  # fmt: skip

    def features_at(
        self,
        context: int,
        position: int | None = None,
        *,
        corpus: str | None = None,
        sae: str | None = None,
        k: int | None = None,
    ) -> FeaturesAt:
        """Return what fired in a context, or at one position of it, strongest first.

        Args:
            context: number of the context in its corpus.
            position: number of the token in the context; all of them if None.
            corpus: which corpus, if the lake has several.
            sae: only this one.
            k: at most so many firings for each SAE and token.

        Raises:
            ContextNotFoundError, CorpusNotFoundError, SaeNotFoundError, InvalidArgumentError.
        """
        from scopelake.query.firing import features_at

        return features_at(
            self._connection, self._store, self._snapshot, self._saes, context, position,
            corpus=corpus, sae=sae, k=k,
        )  # fmt: skip

    def sql(self, query: str, params: Sequence[Any] | None = None) -> pa.Table:
        """Run one SELECT over the snapshot's views and return its rows.

        Raises:
            QueryError: the statement fails, or is not a single query.
        """
        from scopelake.query.sql import sql

        return sql(self._connection, query, params)

    def sql_init(self) -> str:
        """Return SQL with which any DuckDB client makes this snapshot's views."""
        from scopelake.query.connect import init_sql

        return init_sql(self._store, self._snapshot)

    def info(self) -> LakeInfo:
        """Return what the lake holds and how many bytes it takes."""
        from scopelake.query.info import info

        return info(self._store, self._snapshot)

    def activations(
        self, layer: int, site: Site = "resid_post", *, model: str | None = None,
        corpus: str | None = None,
    ) -> zarr.Array[Any]:  # fmt: skip
        """Return stored dense activations, bfloat16 [context, position, width].

        Raises:
            LayerNotFoundError: no such array is stored; the message lists those that are.
        """
        from scopelake.store.dense import open_dense

        return open_dense(self._store, self._snapshot, layer, site, model=model, corpus=corpus)

    def snapshots(self) -> pa.Table:
        """Return every snapshot of the lake, oldest first."""
        return self._store.snapshots()

    def refresh(self) -> None:
        """Move to the lake's latest snapshot."""
        for cached in ("_connection", "_saes"):
            self.__dict__.pop(cached, None)
        self._snapshot = self._store.snapshot()

    def __repr__(self) -> str:
        return f"Lake({str(self.path)!r}, snapshot={self.snapshot})"

    def _repr_html_(self) -> str:
        return self.info()._repr_html_()

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        from scopelake.query.connect import connect

        return connect(self._store, self._snapshot)

    @cached_property
    def _saes(self) -> list[SaeInfo]:
        from scopelake.query.resolve import list_saes

        return list_saes(self._store, self._snapshot)

    def _check_writable(self) -> None:
        if self._pinned:
            raise InvalidArgumentError(
                f"a write was asked of snapshot {self.snapshot}; a pinned snapshot is read-only; "
                "open the lake without a snapshot"
            )
