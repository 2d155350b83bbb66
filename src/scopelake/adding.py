"""The verbs that put texts and published examples into a lake."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scopelake.errors import InvalidArgumentError
from scopelake.handle import LakeHandle
from scopelake.named import bundled_coders, coder_specs, load_tokenizer, model_files
from scopelake.names import check_whole

if TYPE_CHECKING:
    from scopelake.ingest.corpus import CorpusSummary
    from scopelake.ingest.import_examples import ImportedExamples
    from scopelake.ingest.neighbors import AddedNeighbors
    from scopelake.ingest.replies import Replier, ReplyConfig
    from scopelake.ingest.tokens import Tokenizer


class Adding(LakeHandle):
    """Corpora and published examples."""

    def add_corpus(
        self,
        name: str,
        source: Any,  # noqa: ANN401
        *,
        tokenizer: str | Path,
        context_length: int = 1024,
        chat: bool = False,
        text_column: str | None = None,
        bos: str = "each",
        stride: int | None = None,
        packing: bool = False,
        duplicates: str = "keep",
        shard_contexts: int = 256,
        root: Path | None = None,
        generate: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        device: str = "auto",
        dtype: str = "auto",
        device_map: str | Mapping[str, int | str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> CorpusSummary:
        """Tokenize text or chats into contexts, shared by every model of that tokenizer.

        Args:
            name: letters, digits, ``._-``.
            source: a file (text, .jsonl or .parquet; also .gz, .zst, .bz2, .xz), a folder, a
                pattern,
                ``s3://bucket/key``, ``hf://org/name``, a data set of the package ``datasets`` or a
                folder that one was saved to; or a list of these.
            tokenizer: folder or hub id of a Gemma 3 model.
            context_length: most tokens in a context, BOS included; longer documents are split.
            chat: records hold ``messages`` (role, content) or ``conversations`` (from, value)
                instead of ``text``.
            text_column: another key or column of the text, or of the messages.
            bos: which contexts begin with BOS: ``each``, those in which a ``document`` begins, or
                ``none``. Packed, each document or each context does.
            stride: tokens from the start of one context of a document to that of the next, BOS not
                counted; what overlaps is in the corpus twice. None: no overlap.
            packing: fill contexts with the documents that follow. Attention sees across them.
            duplicates: ``keep`` or ``drop`` documents of the same content as an earlier one; they
                are counted either way.
            shard_contexts: contexts in a shard, the unit of commit and retry.
            root: document ids of files are relative to it.
            generate: let the model of `tokenizer` answer chats that end with the user, in at most
                so many tokens; they get the kind ``generated``.
            temperature: of these answers; 0 is greedy.
            seed: of sampling them.
            device: where the model runs; dtype and device_map as in `ingest`.
            progress: called with (documents, tokens) so far.

        Raises:
            CorpusExistsError, CorpusSourceError, InvalidArgumentError, ModelError, LakeBusyError.
            MissingDependencyError: ``hf://`` without the package ``datasets``.
            ObjectStoreError: an object store refuses or does not answer.
        """
        from scopelake.ingest.corpus import CorpusConfig, add_corpus
        from scopelake.ingest.sources import CorpusSource
        from scopelake.ingest.windows import Cutting

        self._check_writable()
        cutting = Cutting(context_length, bos, stride, packing)
        config = CorpusConfig(name, cutting, shard_contexts, duplicates)
        replies = _replies(generate, temperature, seed, chat=chat)
        backend = load_tokenizer(tokenizer)
        placed = {"device": device, "dtype": dtype, "device_map": device_map}
        replier = _replier(tokenizer, backend, replies, placed)
        found = CorpusSource.find(source, chat=chat, root=root, text_column=text_column)
        summary = add_corpus(self._store, config, found, backend, progress, replier)
        self.refresh()
        return summary

    def append_corpus(
        self,
        name: str,
        source: Any,  # noqa: ANN401
        *,
        tokenizer: str | Path | None = None,
        context_length: int | None = None,
        chat: bool | None = None,
        text_column: str | None = None,
        bos: str | None = None,
        stride: int | None = None,
        packing: bool | None = None,
        duplicates: str | None = None,
        root: Path | None = None,
        generate: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        device: str = "auto",
        dtype: str = "auto",
        device_map: str | Mapping[str, int | str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> CorpusSummary:
        """Put documents behind those of a corpus; `ingest` then does only what is new.

        What was ingested stays as it is. The statistics and evaluations of the corpus leave the
        lake until the next ingest, which makes them of all of it.

        Args:
            name: of the corpus.
            source: as in `add_corpus`; ids that the corpus has already are refused.
            tokenizer: by default the one that the corpus names; give it if that was a folder.
            context_length: it and chat, bos, stride, packing are the corpus's; one that is given
                and differs is refused.
            chat: see context_length.
            text_column: as in `add_corpus`.
            bos: see context_length.
            stride: see context_length.
            packing: see context_length.
            duplicates: as in `add_corpus`, also of what is there; by default as it was.
            root: as in `add_corpus`.
            generate: as in `add_corpus`; temperature, seed, device, dtype, device_map too.
            temperature: see generate.
            seed: see generate.
            device: see generate.
            dtype: see generate.
            device_map: see generate.
            progress: called with (documents, tokens) so far.

        Returns:
            What was appended.

        Raises:
            CorpusNotFoundError, CorpusSourceError, InvalidArgumentError, ModelError.
            CorpusError: it is the corpus of published examples.
            LakeBusyError: another writer appended meanwhile.
        """
        from scopelake.ingest.append import AppendConfig, append_corpus, find_appendable
        from scopelake.ingest.sources import CorpusSource

        self._check_writable()
        config = AppendConfig(name, context_length, chat, bos, stride, packing, duplicates)
        row = find_appendable(self._store, self._store.snapshot(), config)
        replies = _replies(generate, temperature, seed, chat=bool(row["chat"]))
        named = tokenizer if tokenizer is not None else row["tokenizer"]
        backend = load_tokenizer(named)
        placed = {"device": device, "dtype": dtype, "device_map": device_map}
        replier = _replier(named, backend, replies, placed)
        found = CorpusSource.find(
            source, chat=bool(row["chat"]), root=root, text_column=text_column
        )
        summary = append_corpus(self._store, config, found, backend, progress, replier)
        self.refresh()
        return summary

    def import_examples(
        self,
        saes: str | Path | Sequence[str | Path],
        *,
        tokenizer: str | Path,
        corpus: str | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[ImportedExamples]:
        """Import the examples that Google published beside its coders; no model runs.

        The lake gets their corpus, the strongest firings of each feature as peaks, and how often
        each fires and the tokens that it promotes as features.

        Args:
            saes: as in `ingest`; only ``examples.safetensors`` and ``config.json`` are fetched.
            tokenizer: folder or hub id of a Gemma 3 model.
            corpus: name for the examples' corpus; by default the one that has its tokens
                already, or ``<repo>-examples``.
            progress: called with (corpus or coder, contexts or features done, of how many).

        Raises:
            CoderFileError, CoderMismatchError, CorpusExistsError, ModelError, HubError,
            LakeBusyError.
        """
        from scopelake.ingest.find_coders import find_examples
        from scopelake.ingest.import_examples import import_examples

        self._check_writable()
        found = find_examples(coder_specs(saes), bundled_coders())
        done = import_examples(self._store, found, load_tokenizer(tokenizer), corpus, progress)
        self.refresh()
        return done

    def add_neighbors(
        self,
        saes: str | Path | Sequence[str | Path],
        *,
        others: str | Path | Sequence[str | Path] | None = None,
        k: int = 16,
        device: str = "auto",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> AddedNeighbors:
        """Find the nearest features of each feature by the cosine of their decoder directions.

        A direction is what a feature adds to the residual stream: its decoder row; of a CLT the sum
        over the layers that it writes to, of a crosscoder the row of the last layer. Pairs that the
        lake has already, with as many neighbors, are not made again.

        Args:
            saes: as in `ingest`; the lake has them.
            others: coders whose features are the neighbors; by default those of `saes`, each with
                each, where they can be compared: of one model or its pt and it versions, and of
                ``attn_out``, which is before W_O, of one layer.
            k: neighbors of a feature in each coder, 1 to 1,024.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
            progress: called with (pair, pairs done, of how many).

        Raises:
            CoderFileError, CoderMismatchError, HubError, InvalidArgumentError, LakeBusyError,
            ModelError, SaeNotFoundError.
        """
        from scopelake.ingest.find_coders import find_coders
        from scopelake.ingest.model import choose_device
        from scopelake.ingest.neighbors import add_neighbors

        self._check_writable()
        k, place = check_whole("k", k), choose_device(device)
        found = [
            None if specs is None else find_coders(coder_specs(specs), bundled=bundled_coders())
            for specs in (saes, others)
        ]
        done = add_neighbors(self._store, found[0] or [], found[1], k, place, progress)
        self.refresh()
        return done


def _replies(
    generate: int | None, temperature: float, seed: int, *, chat: bool
) -> ReplyConfig | None:
    """Return how chats are answered; not at all if nothing is to be generated."""
    from scopelake.ingest.replies import ReplyConfig

    if generate is None:
        return None
    replies = ReplyConfig(generate, temperature, seed)
    if not chat:
        raise InvalidArgumentError(
            f"generate={generate} was asked for a corpus of texts; replies belong to chats; "
            "give chat=True, or leave generate out"
        )
    return replies


def _replier(
    model: str | Path, tokenizer: Tokenizer, replies: ReplyConfig | None, placed: dict[str, Any]
) -> Replier | None:
    """Return what answers chats with the model of a tokenizer, if they are to be answered."""
    from scopelake.ingest.model import load_model
    from scopelake.ingest.replies import Replier

    if replies is None:
        return None
    return Replier(load_model(model_files(model), **placed), tokenizer, replies)
