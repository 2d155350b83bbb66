"""The verb that compares two sets of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from scopelake.handle import LakeHandle
from scopelake.names import Site, check_seed, check_text, check_whole

if TYPE_CHECKING:
    from scopelake.query.comparison import Comparison
    from scopelake.query.document_windows import DocumentTest
    from scopelake.query.firing_counts import DocumentValue
    from scopelake.query.token_sets import TokenSet


class Comparing(LakeHandle):
    """Which features separate two sets of tokens."""

    def compare(
        self,
        a: str | TokenSet,
        b: str | TokenSet,
        *,
        layer: int | Sequence[int] | None = None,
        site: Site | None = None,
        sae: str | Sequence[str] | None = None,
        corpus: str | None = None,
        unit: str | None = None,
        test: DocumentTest | None = None,
        by: DocumentValue = "rate",
        confidence: float = 0.95,
        seed: int = 0,
    ) -> Comparison:
        """Compare how often and how strongly features fire on two sets of tokens, BOS left out.

        Rates and means are of all tokens; the test is by document, since tokens of one document
        hang together: docs/compare.md says which, and why.

        Args:
            a: a SQL predicate over a token's and its context's columns, e.g. ``role = 'user'``, or
                a `TokenSet`, which may also name a corpus, a model or an SAE.
            b: the other set, without a token of `a` unless its SAE is another one.
            layer: only SAEs that read this layer, or one of these.
            site: only SAEs of this site.
            sae: only SAEs of this name or ending, or of one of these. All SAEs that fit are
                compared, and their features are one family of tests.
            corpus: of sets that name none; None: all on which all firings are known.
            unit: SQL over the same columns that stands for a token's document where documents are
                not independent of each other, e.g. ``metadata ->> 'prompt'`` for several answers
                to a prompt; also across corpora.
            test: ``rank-sum`` between documents that have tokens of one set alone, ``signed-rank``
                within documents that have tokens of both; None: signed-rank where these are at
                least half of the documents of the set that has fewer.
            by: what ranks documents: ``rate``, firings a token, or ``activation``, the mean over
                all tokens, those without a firing included.
            confidence: of the intervals.
            seed: of which part of a document is tested, where a set has more tokens of it.

        Raises:
            SaeNotFoundError, AmbiguousSaeError, LayerNotFoundError, CorpusNotFoundError.
            InvalidArgumentError: a set is empty, both have tokens in common, or an argument is out
                of range.
            NotIngestedError: all firings are known of no SAE, or two SAEs have no neighbors.
            QueryError: a predicate fails, or SAEs cannot be compared.
        """
        from scopelake.named import decode
        from scopelake.query.compare import ComparisonConfig, compare
        from scopelake.query.compared_coders import Choice
        from scopelake.query.token_sets import as_token_set

        sets = (as_token_set("a", a), as_token_set("b", b))
        for what, value in (
            ("site", site),
            ("corpus", corpus),
            ("test", test),
            ("unit", unit),
            ("by", by),
        ):
            if value is not None:
                check_text(what, value)
        first, second = (s if s.corpus is not None else replace(s, corpus=corpus) for s in sets)
        names = [sae] if isinstance(sae, str) else sae or ()
        layers = layer if isinstance(layer, Sequence) else [] if layer is None else [layer]
        choice = Choice(
            tuple(check_text("sae", name) for name in names),
            tuple(check_whole("layer", one) for one in layers),
            site,
        )
        config = ComparisonConfig(test, unit, by, confidence, check_seed(seed))
        return compare(self._connection, self._saes, first, second, choice, decode, config)
