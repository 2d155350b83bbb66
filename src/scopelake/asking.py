"""The verbs that ask a lake something."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scopelake.handle import LakeHandle
from scopelake.names import ContextRanking, FiringRanking, Sampling, Site, check_text, check_whole

if TYPE_CHECKING:
    import pyarrow as pa
    import zarr

    from scopelake.ingest.stream import ActivationStream
    from scopelake.query.contexts import TopContexts
    from scopelake.query.firing import FeaturesAt
    from scopelake.query.info import LakeInfo
    from scopelake.query.rank_contexts import Ranking
    from scopelake.query.resolve import SaeInfo
    from scopelake.query.samples import SampledContexts


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

        Raises:
            What `top_contexts` does of its arguments.
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
        n_bands, seed = check_whole("n_bands", n_bands), check_whole("seed", seed)
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

        _check_names(sae=sae, corpus=corpus, site=site, where=asked["where"], by=asked["by"])
        info = self._sae(feature, layer, site, sae, corpus)
        return Ranking(info, int(feature), check_whole("k", k), corpus, **asked)

    def _sae(
        self,
        feature: int,
        layer: int | None,
        site: Site | None,
        sae: str | None,
        corpus: str | None,
    ) -> SaeInfo:
        from scopelake.query.resolve import resolve_sae

        return resolve_sae(
            self._saes, sae=sae, layer=None if layer is None else check_whole("layer", layer),
            site=site, feature=check_whole("feature", feature), preferred=self._on_corpus(corpus),
        )  # fmt: skip

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

    def _on_corpus(self, corpus: str | None) -> set[str]:
        if corpus is None:
            return set()
        partial = {s.name for s in self._saes if corpus in s.partial}
        return partial | self._connection.coverage.saes(corpus)

    def sql(self, query: str, params: Sequence[Any] | None = None) -> pa.Table:
        """Run one SELECT over the snapshot's views and return its rows.

        Raises:
            QueryError: the statement fails, or is not a single query.
            InvalidArgumentError: it is no text.

        Warns:
            PartialWarning: it reads firings, and not all were kept of some SAE.
        """
        from scopelake.query.partial import warn_of_partial
        from scopelake.query.sql import sql

        warn_of_partial(query, self._saes)
        return sql(self._connection, query, params)

    def sql_init(self) -> str:
        """Return SQL with which any DuckDB client makes this snapshot's views."""
        from scopelake.query.connect import init_sql

        return init_sql(self._store, self._snapshot)

    def activations(
        self, layer: int, site: Site = "resid_post", *, model: str | None = None,
        corpus: str | None = None,
    ) -> zarr.Array[Any]:  # fmt: skip
        """Return stored dense activations, bfloat16 [context, position, width].

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
        """Return what the lake holds and how many bytes it takes."""
        from scopelake.query.info import info

        return info(self._store, self._snapshot)


def _check_names(**named: object) -> None:
    for what, value in named.items():
        if value is not None:
            check_text(what, value)
