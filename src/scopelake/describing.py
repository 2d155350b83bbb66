"""The verbs that describe a feature."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scopelake.errors import InvalidArgumentError
from scopelake.handle import LakeHandle
from scopelake.names import Site, check_text, check_whole

if TYPE_CHECKING:
    from scopelake.query.card import FeatureCard
    from scopelake.query.coactive import Coactive
    from scopelake.query.contrast import ContrastContexts


class Describing(LakeHandle):
    """A feature's card, and the features that fire with it."""

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
        feature = check_whole("feature", feature)
        info = self._resolve(sae, layer, site, corpus, feature)
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
        feature = check_whole("feature", feature)
        info = self._resolve(sae, layer, site, corpus, feature)
        return self._cards.explain(info, feature, corpus, _many(k))

    def contrast_contexts(
        self,
        feature: int,
        *,
        layer: int | None = None,
        site: Site | None = None,
        sae: str | None = None,
        k: int = 20,
        window: int | None = 16,
        corpus: str | None = None,
    ) -> ContrastContexts:
        """Return contexts in which a feature does not fire though its nearest features do.

        Args:
            feature: index in the SAE, from 0.
            layer: as in `top_contexts`; so are site and sae.
            site: see layer.
            sae: see layer.
            k: number of contexts: those where a neighbor is nearest to its own max.
            window: tokens on either side of the neighbor's peak; the whole context if None.
            corpus: only this corpus.

        Raises:
            SaeNotFoundError, AmbiguousSaeError, LayerNotFoundError, FeatureNotFoundError,
            CorpusNotFoundError, InvalidArgumentError.
            NotIngestedError: the SAE was not run, or `add_neighbors` not on it.
            QueryError: not all firings on a corpus are known.
        """
        from scopelake.query.contrast import contrast_contexts

        feature = check_whole("feature", feature)
        window = None if window is None else check_whole("window", window)
        info = self._resolve(sae, layer, site, corpus, feature)
        return contrast_contexts(
            self._connection, info, feature, k=check_whole("k", k), window=window, corpus=corpus
        )

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

        feature = check_whole("feature", feature)
        info = self._resolve(sae, layer, site, corpus, feature)
        other = None
        if other_sae is not None:
            other = resolve_sae(self._saes, check_text("other_sae", other_sae))
        return coactive(self._connection, info, feature, other, corpus=corpus, k=_many(k))


def _many(k: int) -> int:
    """Return a number of features, 1 or more."""
    if (k := check_whole("k", k)) < 1:
        raise InvalidArgumentError(
            f"k={k} was asked for; k is a number of features; give 1 or more"
        )
    return k
