"""The verbs that search: the text of corpora, and the labels of features."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scopelake.errors import InvalidArgumentError
from scopelake.handle import LakeHandle
from scopelake.names import Site, check_text, check_whole

if TYPE_CHECKING:
    from scopelake.query.label_search import LabelMatches, LabelSearch
    from scopelake.query.matches import Matches
    from scopelake.query.separation import Separation


class Searching(LakeHandle):
    """Where a text is, which features tell spans from the rest, and labels by their words."""

    def search(
        self,
        pattern: str,
        *,
        regex: bool = False,
        ignore_case: bool = False,
        corpus: str | None = None,
        where: str | None = None,
        k: int | None = 100,
        window: int = 16,
        progress: Callable[[int, int], None] | None = None,
    ) -> Matches:
        """Return where a text or a regular expression is in the corpora, with its tokens.

        Matches lie within one context each and do not overlap; those of no character are none.

        Args:
            pattern: a text, found as it is spelt; or a regular expression.
            regex: whether it is one, in the syntax of RE2.
            ignore_case: whether upper and lower case are the same.
            corpus: only this one.
            where: SQL predicate that the first token of a match must meet, over `corpus`,
                `context`, `position`, `token_id`, `token`, `role`, `turn`, `kind`, `document`,
                `document_index`, `part`, `n_tokens`, `metadata` and `text`.
            k: at most so many matches are returned, the first by corpus, context and place; all
                are counted. None: all are returned.
            window: tokens shown on either side.
            progress: called with contexts that were searched, and contexts in all.

        Raises:
            CorpusNotFoundError: the lake has no such corpus.
            InvalidArgumentError: the pattern is empty or no regular expression, or a number is out
                of range.
            QueryError: `where` is no predicate, or fails.
        """
        from scopelake.query.search import Search, search

        asked = Search(
            check_text("pattern", pattern),
            regex,
            ignore_case,
            None if corpus is None else check_text("corpus", corpus),
            None if where is None else check_text("where", where),
            None if k is None else check_whole("k", k),
        )
        window = check_whole("window", window)
        return search(
            self._connection, self._store, self._snapshot, asked, window=window, progress=progress
        )

    def separate(
        self,
        spans: Matches | pa.Table | Any,  # noqa: ANN401 - a pandas frame
        *,
        layer: int | None = None,
        site: Site | None = None,
        sae: str | None = None,
        by: str = "f1",
        k: int | None = 20,
        least: int = 1,
    ) -> Separation:
        """Return the features whose firings tell spans of text from the rest of their corpora.

        A feature's precision is the share of its firings that lie in spans, its recall the share
        of the spans in which it fires; BOS does not count.

        Args:
            spans: what `search` found with ``k=None`` (matches that share a token are one span), or
                a table (Arrow's or pandas') with the columns corpus, context, start and stop:
                tokens [start, stop) of a context. No token is in two of them.
            layer: features of the one SAE that fits layer, site and sae; of all SAEs that are
                complete on these corpora if none of them is given.
            site: see layer.
            sae: see layer.
            by: f1 (the harmonic mean of both), precision or recall.
            k: at most so many features; all that fire in a span if None.
            least: leave out features that fire in fewer spans.

        Raises:
            InvalidArgumentError: the spans are none, or not all of what was found; or a number is
                out of range.
            CorpusNotFoundError, SaeNotFoundError, AmbiguousSaeError, LayerNotFoundError.
            NotIngestedError: the SAE, or any, is not complete on these corpora.
            QueryError: not all firings of the SAE are known there.
        """
        from scopelake.named import decode
        from scopelake.query.feature_texts import FeatureTexts
        from scopelake.query.separate import separate

        table = _table(spans)
        only = None
        if not (sae is None and layer is None and site is None):
            corpora = set(table["corpus"].to_pylist()) if "corpus" in table.column_names else set()
            only = self._resolve(sae, layer, site, corpora.pop() if len(corpora) == 1 else None)
        texts = FeatureTexts(self._connection, decode)
        return separate(
            self._connection, texts, self._saes, table, only=only, by=by,
            k=None if k is None else check_whole("k", k), least=check_whole("least", least),
        )  # fmt: skip

    def search_labels(
        self,
        words: str,
        *,
        layer: int | None = None,
        site: Site | None = None,
        sae: str | None = None,
        k: int = 20,
    ) -> LabelMatches:
        """Return labels of features that have one of the words or more, best first (BM25).

        Words are stemmed as English ones are, and the commonest are not looked for.

        Args:
            words: one or more.
            layer: labels of the one SAE that fits layer, site and sae; all if none is given.
            site: see layer.
            sae: see layer.
            k: at most so many.

        Raises:
            InvalidArgumentError: there are no words or no labels, or `k` is out of range.
            SaeNotFoundError, AmbiguousSaeError, LayerNotFoundError.
            MissingDependencyError: DuckDB's fts extension is not installed.
        """
        words, k = check_text("words", words), check_whole("k", k)
        only = None
        if not (sae is None and layer is None and site is None):
            only = self._resolve(sae, layer, site, None).name
        return self._label_search.find(words, sae=only, k=k)

    @cached_property
    def _label_search(self) -> LabelSearch:
        from scopelake.query.label_search import LabelSearch

        return LabelSearch(self._connection)


def _table(spans: Any) -> pa.Table:  # noqa: ANN401
    from scopelake.query.matches import Matches
    from scopelake.query.spans import merged_spans

    if isinstance(spans, Matches):
        if spans.table.num_rows < spans.n_matches:
            raise InvalidArgumentError(
                f"features that separate {spans.table.num_rows:,} matches of {spans.pattern!r} "
                f"were asked for; there are {spans.n_matches:,}, and the others would be the rest; "
                "search with k=None"
            )
        if spans.n_matches == 0:
            raise InvalidArgumentError(
                f"features that separate matches of {spans.pattern!r} were asked for; it is "
                "nowhere in what was searched; search for something else"
            )
        return merged_spans(spans.table)
    if isinstance(spans, pa.Table):
        return spans
    if hasattr(spans, "columns") and hasattr(spans, "index"):
        return pa.Table.from_pandas(spans, preserve_index=False)
    raise InvalidArgumentError(
        f"spans were given as {type(spans).__name__}; give what search returned, an Arrow table or "
        "a pandas frame"
    )
