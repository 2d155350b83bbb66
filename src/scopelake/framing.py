"""The verbs that give tables to dask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scopelake.handle import LakeHandle
from scopelake.names import Site, check_text

if TYPE_CHECKING:
    import dask.dataframe as dd

    from scopelake.query.resolve import SaeInfo


class Framing(LakeHandle):
    """Firings and contexts as dask dataframes of the snapshot, a partition for each file."""

    def codes(
        self, *, sae: str | None = None, layer: int | None = None, site: Site | None = None,
        corpus: str | None = None, columns: Sequence[str] | None = None,
    ) -> dd.DataFrame:  # fmt: skip
        """Return an SAE's firings in the order of contexts, indexed by context.

        Nothing is read before it is computed; each file is hashed by the process that reads it.
        Divisions are known on one corpus, since numbers of contexts begin anew in each.

        Args:
            sae: full name, or any ending of it that is unique.
            layer: with `site`, an alternative to naming the `sae`.
            site: ``resid_post``, ``attn_out``, ``mlp_out`` or ``mlp_in`` (transcoders).
            corpus: only this corpus; all on which the SAE was run if None.
            columns: those to read besides the index, of sae, corpus, position, feature,
                activation, kind; all if None.

        Raises:
            SaeNotFoundError, AmbiguousSaeError, LayerNotFoundError, CorpusNotFoundError,
            NotIngestedError, InvalidArgumentError.
            QueryError: not all firings are in the lake.
            MissingDependencyError: dask's dataframes are not installed.
        """
        return self._firings("codes", self._resolve(sae, layer, site, corpus), corpus, columns)

    def postings(
        self, *, sae: str | None = None, layer: int | None = None, site: Site | None = None,
        corpus: str | None = None, columns: Sequence[str] | None = None,
    ) -> dd.DataFrame:  # fmt: skip
        """Return an SAE's firings in the order of features, indexed by feature.

        Divisions are known once `compact` has merged the files of a corpus.

        Args:
            sae: as in `codes`.
            layer: as in `codes`.
            site: as in `codes`.
            corpus: as in `codes`.
            columns: those to read besides the index, of sae, corpus, context, position,
                activation, kind; all if None.

        Raises:
            As `codes`.
        """
        return self._firings("postings", self._resolve(sae, layer, site, corpus), corpus, columns)

    def contexts(
        self, *, corpus: str | None = None, columns: Sequence[str] | None = None
    ) -> dd.DataFrame:
        """Return contexts, indexed by context; columns have Arrow's types.

        Args:
            corpus: only this corpus; all if None. On one, divisions are known.
            columns: those to read besides the index, of the view `contexts`; all if None.

        Raises:
            CorpusNotFoundError, InvalidArgumentError.
            MissingDependencyError: dask's dataframes are not installed.
        """
        from scopelake.query.frames import contexts_frame

        if corpus is not None:
            check_text("corpus", corpus)
        return contexts_frame(self._connection, corpus, columns)

    def _firings(
        self, table: str, sae: SaeInfo, corpus: str | None, columns: Sequence[str] | None
    ) -> dd.DataFrame:
        from scopelake.query.frames import firings_frame

        return firings_frame(self._connection, table, sae, corpus, columns)
