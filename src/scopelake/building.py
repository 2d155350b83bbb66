"""The verbs that make firings, and that check what came out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scopelake.errors import ModelError
from scopelake.handle import LakeHandle
from scopelake.named import (
    bundled_coders,
    coder_specs,
    load_tokenizer,
    model_called,
    model_files,
    site_layers,
)
from scopelake.names import FiringRanking, Site, check_function

if TYPE_CHECKING:
    from distributed import Client

    from scopelake.ingest.check_sae import SaeCheck
    from scopelake.ingest.report import IngestSummary, Progress
    from scopelake.inspector import InspectionRequest, Inspector
    from scopelake.query.inspection import Inspection


class Building(LakeHandle):
    """Ingest, encoding of what is stored, inspected prompts, checks of coders."""

    def ingest(
        self,
        corpus: str,
        *,
        model: str | Path,
        saes: str | Path | Sequence[str | Path],
        dense: Sequence[tuple[Site, int] | str] = (),
        device: str = "auto",
        dtype: str = "auto",
        device_map: str | Mapping[str, int | str] | None = None,
        activation_bits: int = 10,
        batch_tokens: int = 16384,
        evaluate: bool = False,
        model_name: str | None = None,
        keep: str = "all",
        memory: str | int | None = None,
        scheduler: str | Client | None = None,
        dry_run: bool = False,
        stop: threading.Event | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> IngestSummary:
        """Run a model over a corpus once and store the firings of every coder named.

        What the lake holds already is not made again; after a crash, asking again resumes.

        Args:
            corpus: name of a corpus in the lake.
            model: folder or hub id of a Gemma 3, ``<org>/<name>[@<revision>]``.
            saes: folders, patterns or hub ids ``<org>/<repo>[@<revision>]/<family>/<folder>``, one
                or several; none, an empty list, if only dense activations are wanted.
            dense: sites whose activations are stored, as bfloat16: (site, layer) pairs, or
                ``resid_post/3``.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
            dtype: ``auto`` (float32 on a CPU, bfloat16 on a GPU), ``float32`` or ``bfloat16``.
            device_map: for a model larger than a device: ``auto``, or a device by module, as
                transformers takes it; needs accelerate.
            activation_bits: mantissa bits kept of each activation; 23 is lossless.
            batch_tokens: most tokens in one forward pass, padding included.
            evaluate: also measure, on a sample of the corpus, how well each coder reconstructs:
                FVU, L0, dead features, and the model's loss with the reconstruction spliced in.
            model_name: what the coders call the model, if a local folder has another name.
            keep: ``all`` firings; ``peaks``: statistics, the strongest contexts of each feature and
                samples, but no firings else; ``sample:0.01``: these, and all firings of a share of
                the documents.
            memory: what the process may take, such as ``8GB``; by default 60 % of the machine's.
            scheduler: address of a dask scheduler (``tcp://...``) or a client, whose workers reach
                the lake, the model and the coders under the same paths; ``local:2`` starts two
                workers here. None: this process does the work.
            dry_run: check everything, the model's files included, and write nothing: the summary's
                `n_left` and `n_tokens_left` say what would be made.
            stop: once it is set the shards that are begun are committed, and no more are begun.
            progress: called after every batch and commit.

        Returns:
            What was done. `failed` has the shards that failed three times and were set aside;
            the next ingest tries them again.

        Raises:
            CorpusNotFoundError, ModelError, CoderFileError, CoderMismatchError, LakeBusyError,
            ClusterError.

        Warns:
            ShardWarning: shards were set aside.
        """
        from scopelake.ingest.crews import crew_of
        from scopelake.ingest.find_coders import find_coders
        from scopelake.ingest.pipeline import Hooks, ingest
        from scopelake.ingest.plan import IngestConfig, check_tokenizer, find_corpus
        from scopelake.ingest.recipes import ModelRecipe

        self._check_writable()
        sites = site_layers(dense)
        config = IngestConfig(corpus, sites, activation_bits, batch_tokens, evaluate, keep, memory)
        row = find_corpus(self._store, self._store.snapshot(), corpus)
        named = model_called(model, model_name)
        is_dense_only = bool(sites) and not coder_specs(saes)
        coders = [] if is_dense_only else find_coders(coder_specs(saes), named, bundled_coders())
        files = model_files(model, model_name)
        check_tokenizer(row, files)
        recipe = ModelRecipe(files, device, dtype, device_map)
        hooks = Hooks(check_function("progress", progress), stop)
        with crew_of(recipe, scheduler) as crew:
            summary = ingest(self._store, config, crew, coders, hooks, dry_run=dry_run)
        self.refresh()
        return summary

    def encode(
        self,
        corpus: str,
        *,
        saes: str | Path | Sequence[str | Path],
        model: str | None = None,
        unembedding: str | Path | None = None,
        device: str = "auto",
        activation_bits: int = 10,
        batch_tokens: int = 16384,
        keep: str = "all",
        memory: str | int | None = None,
        scheduler: str | Client | None = None,
        dry_run: bool = False,
        stop: threading.Event | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> IngestSummary:
        """Encode stored dense activations with more coders; no model runs.

        The firings are those that an ingest would give but for the rounding of what is stored to
        bfloat16. Like an ingest it resumes, and makes nothing twice.

        Args:
            corpus: name of a corpus whose sites were stored by `ingest` with ``dense``.
            saes: as in `ingest`; they read sites that are stored on the whole corpus.
            model: name, in the lake, of the model whose activations are meant; needed if those of
                several are stored.
            unembedding: folder or hub id of that model, from which the tokens that features
                promote are computed; without it these columns of ``features`` are null. Statistics
                are written once, so give it when a coder is first encoded.
            device: where the encoding runs: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
            activation_bits: mantissa bits kept of each activation; 23 is lossless.
            batch_tokens: most tokens at once.
            keep: as in `ingest`; so are memory, scheduler, dry_run, stop, and shards that are set
                aside.
            progress: called after every batch and commit.

        Raises:
            CorpusNotFoundError, LayerNotFoundError, CoderFileError, CoderMismatchError, ModelError,
            InvalidArgumentError, DamagedFileError, LakeBusyError.
        """
        from scopelake.ingest.crews import crew_of
        from scopelake.ingest.find_coders import find_coders
        from scopelake.ingest.pipeline import Hooks, ingest
        from scopelake.ingest.plan import IngestConfig, find_corpus
        from scopelake.ingest.recipes import StoredRecipe

        self._check_writable()
        config = IngestConfig(corpus, (), activation_bits, batch_tokens, keep=keep, memory=memory)
        row = find_corpus(self._store, self._store.snapshot(), corpus)
        coders = find_coders(coder_specs(saes), model, bundled_coders())
        files = None if unembedding is None else model_files(unembedding)
        if files is not None and not (files.path / "config.json").is_file():
            raise ModelError(
                f"the unembedding of {str(unembedding)!r} was asked for; {files.path} holds no "
                "config.json; name the folder or hub id of the model"
            )
        snapshot = self._store.snapshot()
        recipe = StoredRecipe(self._store, snapshot, row, tuple(coders), model, device, files)
        hooks = Hooks(check_function("progress", progress), stop)
        with crew_of(recipe, scheduler) as crew:
            summary = ingest(self._store, config, crew, coders, hooks, dry_run=dry_run)
        self.refresh()
        return summary

    def inspect(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        model: str | Path,
        saes: str | Path | Sequence[str | Path],
        generate: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        k: int | None = 10,
        by: FiringRanking = "activation",
        against: str | None = None,
        keep: bool = True,
        device: str = "auto",
        dtype: str = "auto",
        device_map: str | Mapping[str, int | str] | None = None,
        model_name: str | None = None,
    ) -> Inspection:
        """Ingest one prompt, as a corpus ``inspection-<n>`` of its own, and return what fired.

        The model and the coders are loaded for this call; `inspector` keeps them.

        Args:
            prompt: a text, or the messages (role, content) of a chat.
            model: as in `ingest`; so are saes, device, dtype, device_map and model_name.
            saes: the coders.
            generate: let the model answer a chat that ends with the user, in at most so many
                tokens; they get the kind ``generated``.
            temperature: of the answer; 0 is greedy.
            seed: of sampling it.
            k: at most so many firings for each SAE and token; all if None.
            by: what ranks them, as in `features_at`; what is usual is that on `against`.
            against: the corpus of the percentiles: the share of a feature's firings on it that are
                weaker. None: the largest on which all these SAEs are complete, if there is one.
            keep: False: the prompt goes to a temporary lake of its own, and nothing stays.

        Raises:
            ModelError, CoderFileError, CoderMismatchError, CorpusSourceError, HubError,
            InvalidArgumentError, LakeBusyError, CorpusNotFoundError, NotIngestedError.
        """
        from scopelake.inspector import InspectionRequest

        if keep:
            self._check_writable()
        # Wrong arguments are refused before a model is loaded.
        request = InspectionRequest(prompt, generate, temperature, seed, k, by, against, keep)
        if against is not None:
            self._connection.coverage.check_corpus(against)
        return self._inspector(
            request, model, saes, device=device, dtype=dtype, device_map=device_map,
            model_name=model_name,
        ).run(request)  # fmt: skip

    def inspector(
        self,
        *,
        model: str | Path,
        saes: str | Path | Sequence[str | Path],
        device: str = "auto",
        dtype: str = "auto",
        device_map: str | Mapping[str, int | str] | None = None,
        model_name: str | None = None,
    ) -> Inspector:
        """Load a model and coders, and return what inspects prompts with them, one after another.

        Args:
            model: as in `ingest`; so are all others.

        Raises:
            ModelError, CoderFileError, CoderMismatchError, HubError, InvalidArgumentError.
        """
        return self._inspector(
            None, model, saes, device=device, dtype=dtype, device_map=device_map,
            model_name=model_name,
        )  # fmt: skip

    def _inspector(
        self,
        request: InspectionRequest | None,
        model: str | Path,
        saes: str | Path | Sequence[str | Path],
        *,
        device: str,
        dtype: str,
        device_map: str | Mapping[str, int | str] | None,
        model_name: str | None,
    ) -> Inspector:
        """Return an inspector; what it could not do of `request` is refused before it loads."""
        from scopelake.ingest.find_coders import find_coders
        from scopelake.ingest.inspect_prompt import PromptReader
        from scopelake.ingest.model import load_model
        from scopelake.inspector import Inspector, comparison

        named = model_called(model, model_name)
        coders = find_coders(coder_specs(saes), named, bundled_coders())
        if request is not None:
            comparison(self, self._connection, coders, request)
        files = model_files(model, model_name)
        loaded = load_model(files, device=device, dtype=dtype, device_map=device_map)
        return Inspector(self, PromptReader(loaded, load_tokenizer(model), coders))

    def check_saes(
        self,
        saes: str | Path | Sequence[str | Path],
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

        coders = find_coders(coder_specs(saes), model_called(model, model_name), bundled_coders())
        files = model_files(model, model_name)
        loaded = load_model(files, device=device, dtype=dtype, device_map=device_map)
        return [
            check_sae(
                self._store, self._snapshot, coder, loaded,
                corpus=corpus, n_contexts=n_contexts, seed=seed, progress=progress,
            )
            for coder in coders
        ]  # fmt: skip
