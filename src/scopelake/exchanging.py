"""The verbs that take in what others say of features, and write out what others read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scopelake.errors import InvalidArgumentError
from scopelake.handle import LakeHandle
from scopelake.names import Site, SiteLayer, check_text, check_whole

if TYPE_CHECKING:
    from scopelake.ingest.import_delphi import ImportedCache
    from scopelake.ingest.labels import AddedLabels, RemovedLabels
    from scopelake.query.export import Exported


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

    def import_delphi(
        self,
        path: str | Path,
        corpus: str,
        *,
        sae: str,
        layer: int,
        site: Site,
        tokenizer: str | Path,
        model: str | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> ImportedCache:
        """Import a latent cache of delphi's: its tokens as a corpus, its firings as a coder's.

        Args:
            path: folder of one module of the cache, with its splits and config.json.
            corpus: name of the new corpus, or of one that came from a cache of the same tokens.
            sae: what the lake shall call the coder, ``<repo>/<family>/<folder>``.
            layer: that it reads.
            site: that it reads.
            tokenizer: folder or hub id of the Gemma 3 whose token ids are in it.
            model: that ran; by default what config.json names.
            progress: called with (contexts, firings or shards, done, of how many).

        Raises:
            CoderFileError: the cache is damaged, or has what a lake cannot hold.
            CoderMismatchError, CorpusExistsError: the name stands for another in the lake.
            InvalidArgumentError: the lake has these firings, or a name is not usable.
            ModelError, HubError: the tokenizer cannot be found.
            LakeBusyError: another writer came first.
        """
        from scopelake.ingest.delphi_cache import read_cache
        from scopelake.ingest.import_delphi import CoderName, check_coder_name, import_delphi
        from scopelake.named import load_tokenizer

        self._check_writable()
        name = check_coder_name(check_text("sae", sae))
        place = SiteLayer(site, check_whole("layer", layer))
        cache = read_cache(Path(path))
        coder = CoderName(name, place, model or cache.model)
        done = import_delphi(self._store, cache, load_tokenizer(tokenizer), coder, corpus, progress)
        self.refresh()
        return done

    def export(
        self,
        format: str,  # noqa: A002
        path: str | Path,
        *,
        sae: str | None = None,
        layer: int | None = None,
        site: Site | None = None,
        corpus: str | None = None,
        features: int | Sequence[int] | None = None,
        k: int | Literal["all"] | None = None,
        window: int | Literal["all"] | None = None,
        n_splits: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Exported:
        """Write the firings of one SAE on one corpus as another tool reads them.

        The folder is there when it is whole, with a README.md and a scopelake.json that say what
        it is of, digests included, and what the format cannot hold.

        Args:
            format: ``delphi`` (latent cache), ``neuronpedia`` (SAEDashboard's batches),
                ``circuit-tracer`` (feature files) or ``datasets`` (a folder for
                ``datasets.load_dataset``).
            path: the folder, which is not there yet; its parent is.
            sae: as in `top_contexts`; so are layer and site.
            layer: see sae.
            site: see sae.
            corpus: on which the SAE was run, with all firings kept; needed if there are several.
            features: only this one, or these; all by default.
            k: of ``neuronpedia`` and ``circuit-tracer``: contexts of a feature, strongest first,
                20 by default, or ``all``.
            window: of these two: tokens on either side of the peak, 32 by default, or ``all`` for
                the whole context.
            n_splits: of ``delphi``: files that the features are cut into, 5 by default.
            progress: called with (features or contexts, done, of how many).

        Raises:
            SaeNotFoundError, AmbiguousSaeError, LayerNotFoundError, FeatureNotFoundError,
            CorpusNotFoundError.
            NotIngestedError: the SAE was not run there, or not on all of it yet.
            QueryError: not all firings are known.
            InvalidArgumentError: something is at `path`, or an option is not one of the format's.
            DamagedFileError: a file of the lake is not what was written.
        """
        from scopelake.named import decode
        from scopelake.query.export import (
            corpus_to_export,
            export,
            exporter_of,
            features_to_export,
        )
        from scopelake.query.export_source import ExportSource
        from scopelake.query.exporter import ExportOptions

        exporter_of(check_text("format", format))
        path = path if isinstance(path, Path) else Path(check_text("path", path))
        options = ExportOptions(
            _many_or_all("k", k), _many_or_all("window", window),
            None if n_splits is None else check_whole("n_splits", n_splits),
        )  # fmt: skip
        info = self._resolve(sae, layer, site, corpus)
        named = corpus_to_export(self._connection, info, corpus)
        wanted = None if features is None else _features(features)
        source = ExportSource(
            self._connection, self._store, self._snapshot, decode, info, named,
            features_to_export(info, wanted),
        )  # fmt: skip
        return export(source, format, path, options, progress)


def _features(features: int | Sequence[int]) -> list[int]:
    several = features if isinstance(features, Iterable) else [features]
    return [check_whole("feature", feature) for feature in several]


def _many_or_all(name: str, value: int | Literal["all"] | None) -> int | Literal["all"] | None:
    if value is None or value == "all":
        return value
    return check_whole(name, value)
