"""A small byte-fallback BPE tokenizer laid out like Gemma's: same special ids, same chat turns."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 4096
PAD_ID, EOS_ID, BOS_ID, UNK_ID = 0, 1, 2, 3
START_OF_TURN_ID, END_OF_TURN_ID, NEWLINE_ID = 105, 106, 107
MAX_LENGTH = 2048
SPACE = "\u2581"
NAMED = {
    PAD_ID: "<pad>",
    EOS_ID: "<eos>",
    BOS_ID: "<bos>",
    UNK_ID: "<unk>",
    START_OF_TURN_ID: "<start_of_turn>",
    END_OF_TURN_ID: "<end_of_turn>",
}

# One newline per piece, a run of indentation without its last space, a word with its leading
# space, one digit, or a run of punctuation.
_PIECES = (
    rf"\n|{SPACE}+(?={SPACE}[^\s{SPACE}])|{SPACE}?[^\W\d_]+|\d|{SPACE}?_+"
    rf"|{SPACE}?[^\w\s{SPACE}]+|{SPACE}+|\s"
)

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set state = namespace(lead='', turns=messages) -%}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set state.lead = messages[0]['content'] | trim + '\\n\\n' -%}
    {%- set state.turns = messages[1:] -%}
{%- endif -%}
{%- for turn in state.turns -%}
    {%- if (turn['role'] == 'user') != (loop.index0 is even)
        or turn['role'] not in ('user', 'assistant', 'model') -%}
        {{- raise_exception('roles must alternate: user, assistant, user, assistant, ...') -}}
    {%- endif -%}
    {%- set speaker = 'user' if turn['role'] == 'user' else 'model' -%}
    {{- '<start_of_turn>' + speaker + '\\n' -}}
    {%- if loop.first -%}{{- state.lead -}}{%- endif -%}
    {{- turn['content'] | trim -}}
    {{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""


def fixed_tokens() -> list[str]:
    """The tokens whose ids do not depend on the training text, in id order."""
    tokens: list[str] = []
    unused = 0
    for index in range(NEWLINE_ID):
        if index in NAMED:
            tokens.append(NAMED[index])
        else:
            tokens.append(f"<unused{unused}>")
            unused += 1
    tokens.append("\n")
    return tokens + [f"<0x{byte:02X}>" for byte in range(256)]


def _text_pipeline(tokenizer: Tokenizer) -> None:
    """Sets the parts which training and use share."""
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "isolated")


def _learn_merges(texts: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    learner = Tokenizer(models.BPE())
    _text_pipeline(learner)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=fixed_tokens(),
        limit_alphabet=128,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [(left, right) for left, right in model["merges"]]
    return model["vocab"], merges


def build_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Learns the merges from ``texts`` and returns the finished tokenizer."""
    vocab, merges = _learn_merges(texts)
    if len(vocab) != VOCAB_SIZE:
        raise ValueError(f"too little text: {len(vocab)} of {VOCAB_SIZE} tokens learned")
    bpe = models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(bpe)
    _text_pipeline(tokenizer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in NAMED.values()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A <bos> $B",
        special_tokens=[("<bos>", BOS_ID)],
    )
    return tokenizer


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as ``transformers`` loads it, with the chat template."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
