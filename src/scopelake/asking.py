"""The verbs that ask a lake something."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scopelake.handle import LakeHandle
from scopelake.names import (
    ContextRanking,
    FiringRanking,
    Sampling,
    Site,
    check_seed,
    check_text,
    check_whole,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import zarr

    from scopelake.ingest.stream import ActivationStream
    from scopelake.query.contexts import TopContexts
    from scopelake.query.firing import FeaturesAt
    from scopelake.query.info import LakeInfo
    from scopelake.query.rank_contexts import Ranking
    from scopelake.query.samples import SampledContexts
    from scopelake.query.sql import Params


class Asking(LakeHandle):
    """Top contexts, what fired here, SQL, dense activations, what there is."""

    def top_contexts(
        self,
        feature: int,
        *,
        layer: int | None = None,
        site: Site | None = None,
        sae: str | None = None,
        k: int = 20,
        window: int | None = 16,
        corpus: str | None = None,
        where: str | None = None,
        bos: bool = False,
        by: ContextRanking = "max",
        distinct: bool = False,
    ) -> TopContexts:
        """Return the contexts in which a feature is strongest, with the tokens around its peak.

        Args:
            feature: index in the SAE, from 0.
            layer: with `site`, an alternative to naming the `sae`; of several that fit, the one
                that was run on `corpus` is meant.
            site: ``resid_post``, ``attn_out``, ``mlp_out`` or ``mlp_in`` (transcoders).
            sae: full name, or any ending of it that is unique.
            k: number of contexts.
            window: tokens shown on either side of the peak; the whole context if None.
            corpus: only this corpus.
            where: SQL predicate that a firing must meet to count, over its activation and its
                token's and its context's columns, e.g. ``role = 'user'``.
            bos: whether firings on BOS count.
            by: what ranks a context: its strongest firing (``max``), or the ``mean``, ``sum`` or
                ``count`` of all of the feature's firings in it.
            distinct: of each document only its first context.

        Raises:
            SaeNotFoundError, AmbiguousSaeError, LayerNotFoundError, FeatureNotFoundError,
            CorpusNotFoundError, NotIngestedError, InvalidArgumentError, QueryError.
        """
        from scopelake.query.contexts import top_contexts

        window = None if window is None else check_whole("window", window)
        ranking = self._ranking(
            feature, layer, site, sae,
            k=k, corpus=corpus, where=where, bos=bos, by=by, distinct=distinct,
        )  # fmt: skip
        return top_contexts(self._connection, ranking, window=window)

    def explain_top_contexts(
        self,
        feature: int,
        *,
        layer: int | None = None,
        site: Site | None = None,
        sae: str | None = None,
        k: int = 20,
        corpus: str | None = None,
        where: str | None = None,
        bos: bool = False,
        by: ContextRanking = "max",
        distinct: bool = False,
    ) -> str:
        """Return the SQL that ranks the contexts of `top_contexts`, as `sql` runs it.

        Arguments and errors are those of `top_contexts`. The rows are corpus, context, position and
        activation of the strongest firing, and value, highest first; with `distinct` perhaps its
        document too.
        """
        return self._ranking(
            feature, layer, site, sae,
            k=k, corpus=corpus, where=where, bos=bos, by=by, distinct=distinct,
        ).sql()[0]  # fmt: skip

    def sample_contexts(
        self,
        feature: int,
        how: Sampling = "quantile",
        *,
        layer: int | None = None,
        site: Site | None = None,
        sae: str | None = None,
        k: int = 20,
        n_bands: int = 5,
        seed: int = 0,
        window: int | None = 16,
        corpus: str | None = None,
        where: str | None = None,
        bos: bool = False,
        distinct: bool = False,
    ) -> SampledContexts:
        """Return contexts at random from bands of a feature's activation, not only the strongest.

        Args:
            feature: index in the SAE, from 0; layer, site, sae, corpus, where, bos and distinct
                are as in `top_contexts`.
            how: ``quantile``, bands of equally many contexts, or ``uniform``, bands of equal width
                from the lowest to the highest activation; a context has that of its peak.
            k: number of contexts, as many of each band, or all that it has.
            n_bands: number of bands.
            seed: of the choice; equal arguments give equal contexts.
            window: tokens shown on either side of the peak; the whole context if None.

        Raises:
            What `top_contexts` does.
        """
        from scopelake.query.samples import sample_contexts

        check_text("how", how)
        n_bands, seed = check_whole("n_bands", n_bands), check_seed(seed)
        window = None if window is None else check_whole("window", window)
        ranking = self._ranking(
            feature, layer, site, sae,
            k=k, corpus=corpus, where=where, bos=bos, by="max", distinct=distinct,
        )  # fmt: skip
        return sample_contexts(
            self._connection, ranking, how, n_bands=n_bands, seed=seed, window=window
        )

    def _ranking(
        self,
        feature: int,
        layer: int | None,
        site: Site | None,
        sae: str | None,
        *,
        k: int,
        corpus: str | None,
        **asked: Any,  # noqa: ANN401
    ) -> Ranking:
        from scopelake.query.rank_contexts import Ranking

        _check_names(where=asked["where"], by=asked["by"])
        feature = check_whole("feature", feature)
        info = self._resolve(sae, layer, site, corpus, feature)
        return Ranking(info, feature, check_whole("k", k), corpus, **asked)

    def features_at(
        self,
        context: int,
        position: int | None = None,
        *,
        corpus: str | None = None,
        sae: str | None = None,
        k: int | None = None,
        by: FiringRanking = "activation",
        usual: str | None = None,
        whole: bool = False,
    ) -> FeaturesAt:
        """Return what fired in a context, or at one position of it, ranked, of all SAEs.

        Args:
            context: number of the context in its corpus.
            position: number of the token in the context; all of them if None.
            corpus: which corpus, if the lake has several.
            sae: only this one.
            k: at most so many firings for each SAE and token; of a whole context so many features
                for each SAE.
            by: ``activation``; ``mean`` or ``max``, activation over the feature's mean or max; or
                ``surprise``, bits: -log2 of the share of tokens on which the feature fires in the
                same power of two of activation or above.
            usual: the corpus whose statistics say what is usual; the context's own if None.
            whole: of the whole context each feature once, at its highest score; BOS left out.

        Raises:
            ContextNotFoundError, CorpusNotFoundError, SaeNotFoundError, NotIngestedError,
            InvalidArgumentError, QueryError.
        """
        from scopelake.query.firing import features_at

        context = check_whole("context", context)
        position = None if position is None else check_whole("position", position)
        _check_names(sae=sae, corpus=corpus, by=by, usual=usual)
        return features_at(
            self._connection, self._store, self._snapshot, self._saes, context, position,
            corpus=corpus, sae=sae, k=k, by=by, usual=usual, whole=whole,
        )  # fmt: skip

    def sql(
        self, query: str, params: Params | None = None, *,
        timeout: float | None = None, memory: str | int | None = None,
    ) -> pa.Table:  # fmt: skip
        """Run one SELECT over the snapshot's views and macros and return its rows.

        Args:
            query: one SELECT (also WITH, FROM, VALUES, DESCRIBE, SHOW), or EXPLAIN of one.
            params: values of its ``?`` placeholders in order, or of its ``$name`` ones by name.
            timeout: seconds that it may take to its last row, with all that comes before it: files
                that it may read are hashed.
            memory: most memory that it may take, such as ``2GB``, or bytes; what does not fit goes
                to temporary files. Of the machine, four fifths if None.

        Raises:
            QueryError: the statement fails, meets a limit, or is not a single query of the lake.
            InvalidArgumentError: it is no text, or a limit is out of range.

        Warns:
            PartialWarning: it reads firings, and not all were kept of some SAE.
        """
        from scopelake.query.limits import Limits
        from scopelake.query.partial import warn_of_partial
        from scopelake.query.sql import sql

        limits = Limits(timeout, memory)
        warn_of_partial(query, self._saes)
        return sql(self._connection_within(memory), query, params, limits)

    def sql_batches(
        self, query: str, params: Params | None = None, *, batch_rows: int = 65_536,
        timeout: float | None = None, memory: str | int | None = None,
    ) -> pa.RecordBatchReader:  # fmt: skip
        """Run one SELECT and return its rows in batches, as they come.

        Memory does not grow with the number of rows, unless the query itself sorts or groups them.

        Args:
            query: as in `sql`.
            params: as in `sql`.
            batch_rows: most rows of a batch.
            timeout: seconds that it may take to its last batch; as in `sql`.
            memory: as in `sql`.

        Raises:
            QueryError, InvalidArgumentError: as in `sql`; also while batches are read.

        Warns:
            PartialWarning: as in `sql`.
        """
        from scopelake.query.limits import Limits
        from scopelake.query.partial import warn_of_partial
        from scopelake.query.sql import sql_batches

        limits, batch_rows = Limits(timeout, memory), check_whole("batch_rows", batch_rows)
        warn_of_partial(query, self._saes)
        connection = self._connection_within(memory)
        return sql_batches(connection, query, params, limits, batch_rows)

    def views(self, name: str | None = None) -> pa.Table:
        """Return what SQL can read: view, column, type, about; column null for a view itself.

        The types are DuckDB's. Macros are rows of their own: view is the call, type ``macro``.

        Args:
            name: only this view or macro.

        Raises:
            QueryError: there is none of this name.
        """
        from scopelake.query.describe import describe, described

        if name is None:
            return describe(self._connection)
        return described(self._connection, check_text("name", name))

    def sql_init(self) -> str:
        """Return SQL with which any DuckDB client makes this snapshot's views and macros.

        The client needs the extension ``delta``, and a secret of its own for a lake in a bucket.

        Raises:
            LakeError: a table of the snapshot cannot be read.
        """
        from scopelake.query.connect import init_sql

        return init_sql(self._store, self._snapshot)

    def activations(
        self, layer: int, site: Site = "resid_post", *, model: str | None = None,
        corpus: str | None = None,
    ) -> zarr.Array[Any]:  # fmt: skip
        """Return stored dense activations, bfloat16 [context, position, width].

        What lies behind a context's end, and at numbers that no context has, is zero.

        Args:
            layer: from 0.
            site: where in the layer.
            model: whose activations, if those of several are stored.
            corpus: on which corpus, if there are several.

        Raises:
            LayerNotFoundError: no such array is stored; the message lists those that are.
        """
        from scopelake.store.dense import open_dense

        layer = check_whole("layer", layer)
        return open_dense(self._store, self._snapshot, layer, site, model=model, corpus=corpus)

    def stream(
        self, layer: int, site: Site = "resid_post", *, model: str | None = None,
        corpus: str | None = None, batch_tokens: int = 4096, shuffle_tokens: int = 1 << 17,
        seed: int = 0, rank: int = 0, world_size: int = 1, device: str = "cpu",
    ) -> ActivationStream:  # fmt: skip
        """Return shuffled batches of stored dense activations, to train on; BOS is left out.

        Args:
            layer: from 0.
            site: where in the layer.
            model: whose activations, if those of several are stored.
            corpus: on which corpus, if there are several.
            batch_tokens: tokens of a batch, bfloat16 [batch_tokens, width].
            shuffle_tokens: tokens that are shuffled with each other; two such blocks are in
                memory. Contexts come in random order besides.
            seed: of both orders; equal arguments give equal batches.
            rank: of this process, among `world_size`: no token comes twice in an epoch.
            world_size: number of processes.
            device: where the batches go: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.

        Returns:
            An iterable, and a torch IterableDataset, each iteration of which is an epoch; its
            `state_dict` and `load_state_dict` go on in the middle of one.

        Raises:
            LayerNotFoundError: the site is not stored, or not on the whole corpus.
            InvalidArgumentError: several arrays fit, or an argument is out of range.
        """
        from scopelake.ingest.model import choose_device
        from scopelake.ingest.stream import StreamConfig, stream

        config = StreamConfig(batch_tokens, shuffle_tokens, seed, rank, world_size)
        return stream(
            self._store, self._snapshot, check_whole("layer", layer), site, config,
            model=model, corpus=corpus, device=choose_device(device),
        )  # fmt: skip

    def info(self) -> LakeInfo:
        """Return what the lake holds and how many bytes it takes.

        Raises:
            LakeError: a table of the snapshot cannot be read.
        """
        from scopelake.query.info import info

        return info(self._store, self._snapshot)


def _check_names(**named: object) -> None:
    for what, value in named.items():
        if value is not None:
            check_text(what, value)
