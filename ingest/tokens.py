"""Text and chats to tokens that know their offset, role, turn and kind.

Role, turn and kind are derived while the chat template is applied: the template is rendered
with a marker in place of each message's content, so every character of the result is known to
be template or content before anything is tokenized. Control tokens are only ever made from
template text; a ``<start_of_turn>`` inside a message, or inside plain text, stays text.
"""

from __future__ import annotations

import copy
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scopelake.errors import CorpusSourceError, ModelError
from scopelake.ingest.digest import digest_text
from scopelake.ingest.documents import Document, Message
from scopelake.ingest.spell import Speller
from scopelake.ingest.token_lengths import TokenLengths
from scopelake.names import KINDS, ROLES

CONTENT, TEMPLATE, BOS, GENERATED = (
    KINDS.index(k) for k in ("content", "template", "bos", "generated")
)
_ROLE_NAMES: Final = {"assistant": "model"}
_OPEN, _CLOSE = "\ue000", "\ue001"
_EDGE: Final = "\x1f"
"""Whitespace on both sides of a marker: where the template trims, it is gone."""
_MARKER: Final = re.compile(f"({_EDGE}?){_OPEN}(\\d+){_CLOSE}({_EDGE}?)")
_START_OF_TURN: Final = "<start_of_turn>"
_END_OF_TURN: Final = "<end_of_turn>"


@dataclass(frozen=True)
class TokenizedText:
    """Tokens of one document, all arrays [n_tokens]."""

    text: str
    """What the tokens spell, without a BOS that the tokenizer adds to plain text."""
    token_ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    """Offset of each token in `text`, in characters; never descending."""
    roles: npt.NDArray[np.int8]
    turns: npt.NDArray[np.int32]
    """Index of the message; -1 where there is none."""
    kinds: npt.NDArray[np.int8]


@dataclass(frozen=True)
class _Segment:
    text: str
    kind: int
    role: int
    turn: int


class Tokenizer:
    """A fast tokenizer with what a corpus needs of it."""

    def __init__(self, backend: Any, name: str) -> None:  # noqa: ANN401
        self.name = name
        self.bos_id = int(backend.bos_token_id)
        pad_id = backend.pad_token_id
        self.pad_id = None if pad_id is None else int(pad_id)
        self.bos_token = str(backend.bos_token)
        self.chat_template = str(backend.chat_template or "")
        self._tokenizer = backend
        self._core = copy.deepcopy(backend.backend_tokenizer)
        self._core.encode_special_tokens = True
        self._core.no_padding()
        self._core.no_truncation()
        self._speller = Speller(self._core)
        self._lengths = TokenLengths(self._core)
        self._special = _special_ids(backend)
        names = sorted(self._special, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, names)))
        self.digest = digest_text(self._core.to_str())

    @classmethod
    def load(cls, path: Path, name: str) -> Tokenizer:
        """Load the fast tokenizer in folder `path`.

        Raises:
            ModelError: the folder holds no usable fast tokenizer with a BOS token.
        """
        from transformers import AutoTokenizer  # heavy: only when a corpus is made

        if not (path / "tokenizer.json").is_file():
            raise ModelError(
                f"tokenizer {name!r} was asked for; {path} holds no tokenizer.json; name a folder "
                "or hub id with a fast tokenizer"
            )
        try:
            # Not given, transformers asks on the terminal whether to run code from the files.
            backend = AutoTokenizer.from_pretrained(
                str(path), local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise ModelError(
                f"tokenizer {name!r} was asked for; {path} cannot be loaded "
                f"({' '.join(str(error).split())}); check that its files are complete"
            ) from error
        if backend.bos_token_id is None:
            raise ModelError(f"tokenizer {name!r} has no BOS token; use one of Gemma 3's")
        return cls(backend, name)

    def encode_texts(self, texts: list[str]) -> list[TokenizedText]:
        """Tokenize plain texts, without BOS."""
        # Offsets cost nearly as much as the tokens; most often these tell by their lengths.
        fast = self._lengths.are_known
        encode = self._core.encode_batch_fast if fast else self._core.encode_batch
        encodings = encode(texts, add_special_tokens=False)
        flat, ids = _ids(encodings)
        starts = self._lengths.starts(flat, list(map(len, ids)), list(map(len, texts)))
        longest = max(map(len, ids), default=0)
        roles, kinds = np.zeros(longest, dtype=np.int8), np.full(longest, CONTENT, dtype=np.int8)
        turns = np.full(longest, -1, dtype=np.int32)
        return [
            TokenizedText(
                text,
                one,
                _starts(self._offsets(text, encoding, fast=fast)) if start is None else start,
                roles[: len(one)],
                turns[: len(one)],
                kinds[: len(one)],
            )
            for text, one, start, encoding in zip(texts, ids, starts, encodings, strict=True)
        ]

    def _offsets(self, text: str, encoding: Any, *, fast: bool) -> list[tuple[int, int]]:  # noqa: ANN401
        encoding = self._core.encode(text, add_special_tokens=False) if fast else encoding
        found: list[tuple[int, int]] = encoding.offsets
        return found

    def encode_chat(self, document: Document) -> TokenizedText:
        """Render and tokenize a chat, with the template's own BOS and no other.

        Raises:
            CorpusSourceError: the template refuses the messages, or rewrites their content in a
                way that cannot be followed.
        """
        messages = document.messages or ()
        text, segments = self._render(messages, document.origin)
        ids, starts = self._encode_segments(segments)
        return self._attribute(text, segments, ids, starts)

    @property
    def n_tokens(self) -> int:
        """Number of tokens that it knows, control tokens included."""
        return int(self._core.get_vocab_size(with_added_tokens=True))

    @property
    def end_of_turn_id(self) -> int | None:
        """Token that ends a turn of a chat, if it has one."""
        return self._special.get(_END_OF_TURN)

    def spell(self, ids: Sequence[int]) -> tuple[str, list[int]]:
        """Return the text that `ids` spell, and the offset of each in it."""
        return self._speller.spell(ids)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return each token on its own, bytes as ``<0x0A>``; of ids that it has not ``#<id>``."""
        found = (self._core.id_to_token(int(i)) for i in ids)
        return [
            f"#{i}" if piece is None else piece.replace("\u2581", " ")
            for i, piece in zip(ids, found, strict=True)
        ]

    def turn_openings(self) -> dict[int, list[int]]:
        """Return, by role (an index of ROLES), the tokens with which its turns begin."""
        if _START_OF_TURN not in self._special:
            return {}
        start = self._special[_START_OF_TURN]
        return {
            ROLES.index(role): [
                start,
                *self._core.encode(f"{role}\n", add_special_tokens=False).ids,
            ]
            for role in ("user", "model")
        }

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end a reply: the end of the turn, and of the text."""
        ends = [self._special[t] for t in (_END_OF_TURN,) if t in self._special]
        eos = self._tokenizer.eos_token_id
        return ends if eos is None else [*ends, int(eos)]

    def open_turn(self, chat: TokenizedText, turn: int) -> TokenizedText:
        """Return `chat`, which ends with the user's turn, with the template's start of a reply."""
        messages = [{"role": "user", "content": "x"}]
        closed = self._apply_template(messages, "a chat")
        opening = self._apply_template(messages, "a chat", reply=True).removeprefix(closed)
        ids, starts = self._encode_segments(
            [_Segment(opening, TEMPLATE, ROLES.index("model"), turn)]
        )
        return _appended(chat, opening, ids, starts, TEMPLATE, turn)

    def with_reply(self, chat: TokenizedText, reply: list[int], turn: int) -> TokenizedText:
        """Return `chat` with the tokens that a model wrote behind it."""
        text, starts = self.spell(reply)
        return _appended(chat, text, reply, starts, GENERATED, turn)

    def _encode_segments(self, segments: list[_Segment]) -> tuple[list[int], list[int]]:
        """Token ids of the segments' text, and where in it each begins."""
        ids: list[int] = []
        starts: list[int] = []
        for run_start, run in self._runs(segments):
            if isinstance(run, int):
                ids.append(run)
                starts.append(run_start)
                continue
            encoding = self._core.encode(run, add_special_tokens=False)
            ids.extend(encoding.ids)
            starts.extend((_starts(encoding.offsets) + run_start).tolist())
        return ids, starts

    def _attribute(
        self, text: str, segments: list[_Segment], ids: list[int], starts: list[int]
    ) -> TokenizedText:
        ends = np.cumsum([len(s.text) for s in segments])
        owner = np.searchsorted(ends, np.array(starts, dtype=np.int64), side="right")
        owner = np.minimum(owner, len(segments) - 1)
        token_ids = np.array(ids, dtype=np.int32)
        kinds = np.array([s.kind for s in segments], dtype=np.int8)[owner]
        kinds[token_ids == self.bos_id] = BOS
        return TokenizedText(
            text,
            token_ids,
            np.array(starts, dtype=np.int64),
            np.array([s.role for s in segments], dtype=np.int8)[owner],
            np.array([s.turn for s in segments], dtype=np.int32)[owner],
            kinds,
        )

    def _render(self, messages: tuple[Message, ...], origin: str) -> tuple[str, list[_Segment]]:
        marked = [
            {"role": m["role"], "content": f"{_EDGE}{_OPEN}{i}{_CLOSE}{_EDGE}"}
            for i, m in enumerate(messages)
        ]
        plain = self._apply_template([dict(m) for m in messages], origin)
        pieces = _MARKER.split(self._apply_template(marked, origin))
        if pieces[2::4] != [str(i) for i in range(len(messages))]:
            raise CorpusSourceError(
                f"{origin} does not fit the chat template of {self.name}: it writes messages "
                f"{', '.join(pieces[2::4]) or 'none'} of 0 to {len(messages) - 1}; a system "
                "message needs a user's message behind it"
            )
        segments = _segments(pieces, messages)
        text = "".join(s.text for s in segments)
        if text != plain:
            raise CorpusSourceError(
                f"{origin} cannot be followed through the chat template of {self.name}; the "
                "template rewrites message content beyond trimming it; use Gemma 3's template"
            )
        return text, segments

    def _apply_template(
        self, messages: list[dict[str, str]], origin: str, *, reply: bool = False
    ) -> str:
        from jinja2.exceptions import TemplateError

        if not self.chat_template:
            raise ModelError(
                f"tokenizer {self.name!r} has no chat template; use the tokenizer of an "
                "instruction-tuned model for chats"
            )
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=reply
                )
            )
        except TemplateError as error:
            late = next((i for i, m in enumerate(messages) if i and m["role"] == "system"), None)
            advice = "mend its roles"
            if late is not None:
                advice = f"message {late} is the system's, which must come first; move or drop it"
            raise CorpusSourceError(
                f"{origin} does not fit the chat template: {error}; {advice}"
            ) from error

    def _runs(self, segments: list[_Segment]) -> list[tuple[int, int | str]]:
        """Cut the text at control tokens of template segments: (offset, token id or text)."""
        runs: list[tuple[int, int | str]] = []
        pending, pending_start, offset = "", 0, 0
        for segment in segments:
            cuts = self._special_pattern.finditer(segment.text) if segment.kind == TEMPLATE else ()
            last = 0
            for match in cuts:
                pending += segment.text[last : match.start()]
                if pending:
                    runs.append((pending_start, pending))
                runs.append((offset + match.start(), self._special[match.group()]))
                last = match.end()
                pending, pending_start = "", offset + last
            pending += segment.text[last:]
            offset += len(segment.text)
        if pending:
            runs.append((pending_start, pending))
        return runs


def _appended(
    chat: TokenizedText, text: str, ids: list[int], starts: list[int], kind: int, turn: int
) -> TokenizedText:
    """Return `chat` with tokens of the model's role behind it."""
    n, offset = len(ids), len(chat.text)
    model = ROLES.index("model")
    return TokenizedText(
        chat.text + text,
        np.concatenate([chat.token_ids, np.array(ids, dtype=np.int32)]),
        np.concatenate([chat.starts, np.array(starts, dtype=np.int64) + offset]),
        np.concatenate([chat.roles, np.full(n, model, dtype=np.int8)]),
        np.concatenate([chat.turns, np.full(n, turn, dtype=np.int32)]),
        np.concatenate([chat.kinds, np.full(n, kind, dtype=np.int8)]),
    )


def _special_ids(backend: Any) -> dict[str, int]:  # noqa: ANN401
    return {
        token.content: int(index)
        for index, token in backend.added_tokens_decoder.items()
        if token.special
    }


def _ids(encodings: Sequence[Any]) -> tuple[npt.NDArray[np.int32], list[npt.NDArray[np.int32]]]:
    """Return the ids of all texts, one after the other, and of each text its part of them."""
    # From a list of Python's numbers an array of the standard library is made fastest.
    numbers, ends = array("i"), [0]
    for encoding in encodings:
        numbers.fromlist(encoding.ids)
        ends.append(len(numbers))
    flat = np.frombuffer(numbers, dtype=np.int32) if numbers else np.empty(0, np.int32)
    return flat, [flat[start:stop] for start, stop in pairwise(ends)]


def _starts(offsets: list[tuple[int, int]]) -> npt.NDArray[np.int64]:
    starts = np.array([start for start, _ in offsets], dtype=np.int64)
    if len(starts):
        starts[0] = 0
        np.maximum.accumulate(starts, out=starts)
    return starts


def _segments(pieces: list[str], messages: tuple[Message, ...]) -> list[_Segment]:
    """Turn (template, edge, index, edge, template, ..., template) into segments.

    Template text before ``<start_of_turn>`` closes the message before it; from there on it opens
    the message after it. Around a system message that is written into the user's turn, it opens
    that turn.
    """
    folded = len(pieces) > 8 and _is_folded(messages, pieces[4])
    segments: list[_Segment] = []
    for number, template in enumerate(pieces[::4]):
        before = number - 1 if number > 0 else None
        after = number if number < len(messages) else None
        cut = template.find(_START_OF_TURN)
        cut = len(template) if cut < 0 else cut
        closed, opened = ((1 if folded and turn == 0 else turn) for turn in (before, after))
        segments.append(_template_segment(template[:cut], closed, messages))
        segments.append(_template_segment(template[cut:], opened, messages))
        if after is not None:
            content = messages[after]["content"]
            content = content if pieces[4 * number + 1] else content.lstrip()
            content = content if pieces[4 * number + 3] else content.rstrip()
            segments.append(_Segment(content, CONTENT, _role(messages[after]), after))
    return [s for s in segments if s.text]


def _is_folded(messages: tuple[Message, ...], behind: str) -> bool:
    """Whether the first message is a system's, with no turn of its own: `behind` begins none."""
    return messages[0]["role"] == "system" and _START_OF_TURN not in behind


def _template_segment(text: str, turn: int | None, messages: tuple[Message, ...]) -> _Segment:
    if turn is None:
        return _Segment(text, TEMPLATE, ROLES.index("none"), -1)
    return _Segment(text, TEMPLATE, _role(messages[turn]), turn)


def _role(message: Message) -> int:
    name = _ROLE_NAMES.get(message["role"], message["role"])
    return ROLES.index(name) if name in ROLES else ROLES.index("none")
