"""The verbs that ask a lake something."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scopelake.errors import InvalidArgumentError
from scopelake.handle import LakeHandle
from scopelake.names import Site, check_text, check_whole

if TYPE_CHECKING:
    import pyarrow as pa
    import zarr

    from scopelake.ingest.stream import ActivationStream
    from scopelake.query.card import FeatureCard
    from scopelake.query.coactive import Coactive
    from scopelake.query.contexts import TopContexts
    from scopelake.query.firing import FeaturesAt
    from scopelake.query.info import LakeInfo
    from scopelake.query.resolve import SaeInfo


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
        window: int = 16,
        corpus: str | None = None,
        where: str | None = None,
        bos: bool = False,
    ) -> TopContexts:
        """Return the contexts in which a feature is strongest, with the tokens around its peak.

        Args:
            feature: index in the SAE, from 0.
            layer: with `site`, an alternative to naming the `sae`; of several that fit, the one
                that was run on `corpus` is meant.
            site: ``resid_post``, ``attn_out``, ``mlp_out`` or ``mlp_in`` (transcoders).
            sae: full name, or any ending of it that is unique.
            k: number of contexts.
            window: tokens shown on either side of the peak.
            corpus: only this corpus.
            where: SQL predicate over the peak's token and its context, e.g. ``role = 'user'``.
            bos: whether firings on BOS count.

        Raises:
            SaeNotFoundError, AmbiguousSaeError, LayerNotFoundError, FeatureNotFoundError,
            CorpusNotFoundError, NotIngestedError, InvalidArgumentError, QueryError.
        """
        from scopelake.query.contexts import top_contexts

        k, window = check_whole("k", k), check_whole("window", window)
        _check_names(where=where)
        info, feature = self._one(feature, layer, site, sae, corpus)
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
            ContextNotFoundError, CorpusNotFoundError, SaeNotFoundError, NotIngestedError,
            InvalidArgumentError, QueryError.
        """
        from scopelake.query.firing import features_at

        context = check_whole("context", context)
        position = None if position is None else check_whole("position", position)
        _check_names(sae=sae, corpus=corpus)
        return features_at(
            self._connection, self._store, self._snapshot, self._saes, context, position,
            corpus=corpus, sae=sae, k=k,
        )  # fmt: skip

    def feature(
        self,
        feature: int,
        *,
        layer: int | None = None,
        site: Site | None = None,
        sae: str | None = None,
        corpus: str | None = None,
        k: int = 10,
        coactive: bool = False,
    ) -> FeatureCard:
        """Return a feature's card: how it fires, what its decoder says, what it is near to.

        Args:
            feature: index in the SAE, from 0.
            layer: as in `top_contexts`; so are site and sae.
            site: see layer.
            sae: see layer.
            corpus: only of this corpus; by default of all that the SAE was run on.
            k: nearest features of its own SAE, nearest of others, and features that fire with it.
            coactive: also count the features that fire with it, which reads all firings of the SAE.

        Raises:
            SaeNotFoundError, AmbiguousSaeError, LayerNotFoundError, FeatureNotFoundError,
            CorpusNotFoundError, NotIngestedError, InvalidArgumentError.
        """
        info, feature = self._one(feature, layer, site, sae, corpus)
        return self._cards.card(info, feature, corpus=corpus, k=_many(k), with_coactive=coactive)

    def explain_feature(
        self,
        feature: int,
        *,
        layer: int | None = None,
        site: Site | None = None,
        sae: str | None = None,
        corpus: str | None = None,
        k: int = 10,
    ) -> str:
        """Return the SQL statements that `feature` runs, the one of ``coactive`` included.

        Args and errors are those of `feature`.
        """
        info, feature = self._one(feature, layer, site, sae, corpus)
        return self._cards.explain(info, feature, corpus, _many(k))

    def coactive(
        self,
        feature: int,
        *,
        layer: int | None = None,
        site: Site | None = None,
        sae: str | None = None,
        other_sae: str | None = None,
        corpus: str | None = None,
        k: int = 20,
    ) -> Coactive:
        """Return the features that fire on the same tokens, with counts, lift and PMI in bits.

        Counts are exact, without BOS, over the corpora of which all firings are in the lake. All
        firings of the other SAE on these are read.

        Args:
            feature: index in the SAE, from 0.
            layer: as in `top_contexts`; so are site and sae.
            site: see layer.
            sae: see layer.
            other_sae: whose features, of any layer or model: full name or unique ending; by default
                those of the same SAE.
            corpus: only on this corpus.
            k: at most so many.

        Raises:
            SaeNotFoundError, AmbiguousSaeError, LayerNotFoundError, FeatureNotFoundError,
            CorpusNotFoundError, NotIngestedError, InvalidArgumentError.
            QueryError: of no corpus all firings are known.
        """
        from scopelake.query.coactive import coactive
        from scopelake.query.resolve import resolve_sae

        info, feature = self._one(feature, layer, site, sae, corpus)
        _check_names(other_sae=other_sae)
        other = None if other_sae is None else resolve_sae(self._saes, other_sae)
        return coactive(self._connection, info, feature, other, corpus=corpus, k=_many(k))

    def _one(
        self,
        feature: int,
        layer: int | None,
        site: Site | None,
        sae: str | None,
        corpus: str | None,
    ) -> tuple[SaeInfo, int]:
        """Return the SAE that is meant, and the feature as a number."""
        from scopelake.query.resolve import resolve_sae

        feature = check_whole("feature", feature)
        _check_names(sae=sae, corpus=corpus, site=site)
        layer = None if layer is None else check_whole("layer", layer)
        info = resolve_sae(
            self._saes, sae=sae, layer=layer, site=site, feature=feature,
            preferred=self._on_corpus(corpus),
        )  # fmt: skip
        return info, feature

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


def _many(k: int) -> int:
    """Return a number of features, 1 or more."""
    if (k := check_whole("k", k)) < 1:
        raise InvalidArgumentError(
            f"k={k} was asked for; k is a number of features; give 1 or more"
        )
    return k


def _check_names(**named: object) -> None:
    for what, value in named.items():
        if value is not None:
            check_text(what, value)
