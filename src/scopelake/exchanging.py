"""The verbs that take in what others say of features, and write out what others read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scopelake.errors import InvalidArgumentError
from scopelake.handle import LakeHandle
from scopelake.names import Site, check_text

if TYPE_CHECKING:
    from scopelake.ingest.labels import AddedLabels, RemovedLabels


class Exchanging(LakeHandle):
    """Labels in, exports out."""

    def add_labels(
        self,
        source: str | Path | Sequence[str | Path],
        *,
        sae: str | None = None,
        layer: int | None = None,
        site: Site | None = None,
        name: str | None = None,
        replace: bool = False,
    ) -> AddedLabels:
        """Add labels of features from CSV, Parquet or JSON lines, or Neuronpedia's explanations.

        A row has a ``feature`` (or ``index``) and a ``label`` (or ``description``), and may have
        the full name of its ``sae`` and its ``source``, who gave it. All rows are added, or none.

        Args:
            source: files (also .gz, .zst, .bz2, .xz), folders of them, or patterns, such as
                ``explanations/batch-*.jsonl.gz``.
            sae: full name of the SAE that they are of, or any ending of it that is unique; with
                layer and site as in `top_contexts`. None of the three: each row names its own.
            layer: see sae.
            site: see sae.
            name: who gave them, in the place of what the rows say, which is by default the name
                of the file, and of Neuronpedia's ``neuronpedia/<type>/<model>``.
            replace: labels that these SAEs have of the same sources leave the lake.

        Raises:
            LabelSourceError: a file cannot be read, is empty, or has a row without a feature, a
                label or an SAE.
            SaeNotFoundError, AmbiguousSaeError, LayerNotFoundError, FeatureNotFoundError.
            CoderMismatchError: a row is of another SAE, model or layer.
            InvalidArgumentError: the lake is pinned to a snapshot.
            LakeBusyError: another writer has changed these labels meanwhile.
        """
        from scopelake.ingest.label_files import find_label_files, read_labels
        from scopelake.ingest.labels import add_labels

        self._check_writable()
        if name is not None and not check_text("name", name).strip():
            raise InvalidArgumentError(
                f"name={name!r} was asked for; it says who gave the labels; give text"
            )
        info = None
        if (sae, layer, site) != (None, None, None):
            info = self._resolve(sae, layer, site, None).name
        rows = read_labels(find_label_files(source))
        added = add_labels(self._store, rows, sae=info, name=name, replace=replace)
        self.refresh()
        return added

    def remove_labels(self, source: str, *, sae: str | None = None) -> RemovedLabels:
        """Take labels out by who gave them; older snapshots keep them.

        Args:
            source: what the column ``source`` of ``labels`` says.
            sae: only those of this SAE: its full name, or a unique ending of it.

        Raises:
            InvalidArgumentError: there are none, or the lake is pinned to a snapshot.
            SaeNotFoundError, AmbiguousSaeError.
            LakeBusyError: another writer has changed these labels meanwhile.
        """
        from scopelake.ingest.labels import remove_labels

        self._check_writable()
        named = None if sae is None else self._resolve(sae, None, None, None).name
        removed = remove_labels(self._store, check_text("source", source), named)
        self.refresh()
        return removed
