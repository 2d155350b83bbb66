"""The verbs that put texts and published examples into a lake."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scopelake.errors import InvalidArgumentError
from scopelake.handle import LakeHandle
from scopelake.named import bundled_coders, coder_specs, load_tokenizer, model_files

if TYPE_CHECKING:
    from scopelake.ingest.corpus import CorpusSummary
    from scopelake.ingest.import_examples import ImportedExamples


class Adding(LakeHandle):
    """Corpora and published examples."""

    def add_corpus(
        self,
        name: str,
        source: str | Path | Sequence[str | Path],
        *,
        tokenizer: str | Path,
        context_length: int = 1024,
        chat: bool = False,
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
            source: .txt/.md/.rst/.py, .jsonl or .parquet files, or folders of them.
            tokenizer: folder or hub id of a Gemma 3 model.
            context_length: most tokens in a context, BOS included; longer documents are split.
            chat: records hold ``messages`` (role, content) instead of ``text``.
            shard_contexts: contexts in a shard, the unit of commit and retry.
            root: document ids of text files are relative to it.
            generate: let the model of `tokenizer` answer chats that end with the user, in at most
                so many tokens; they get the kind ``generated``.
            temperature: of these answers; 0 is greedy.
            seed: of sampling them.
            device: where the model runs; dtype and device_map as in `ingest`.
            progress: called with (documents, tokens) so far.

        Raises:
            CorpusExistsError, CorpusSourceError, InvalidArgumentError, ModelError, LakeBusyError.
        """
        from scopelake.ingest.corpus import CorpusConfig, add_corpus
        from scopelake.ingest.model import load_model
        from scopelake.ingest.replies import Replier, ReplyConfig
        from scopelake.ingest.sources import FileSource

        self._check_writable()
        config = CorpusConfig(name, context_length, shard_contexts)
        replies = None if generate is None else ReplyConfig(generate, temperature, seed)
        if replies is not None and not chat:
            raise InvalidArgumentError(
                f"generate={generate} was asked for a corpus of texts; replies belong to chats; "
                "give chat=True, or leave generate out"
            )
        backend = load_tokenizer(tokenizer)
        replier = None
        if replies is not None:
            model = load_model(
                model_files(tokenizer), device=device, dtype=dtype, device_map=device_map
            )
            replier = Replier(model, backend, replies)
        files = FileSource.find(source, chat=chat, root=root)
        summary = add_corpus(self._store, config, files, backend, progress, replier)
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
