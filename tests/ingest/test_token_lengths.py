"""Where tokens begin, told by their lengths, is where the tokenizer itself says that they do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scopelake import tiny

TEXT = st.text(
    st.one_of(
        st.sampled_from("ab \n\t▁_<>é漢🦜\u0301\u200d\U0001f468"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)


def starts_by_offsets(core, text):
    """From the offsets of the tokenizer: the slow way."""
    starts, last = [], 0
    for start, _ in core.encode(text, add_special_tokens=False).offsets:
        last = max(last, start) if starts else 0
        starts.append(last)
    return starts


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4))
def test_any_texts(tokenizer, texts):
    for text, tokens in zip(texts, tokenizer.encode_texts(texts), strict=True):
        assert tokens.starts.tolist() == starts_by_offsets(tokenizer._core, text)


def test_files_are_told_by_lengths_alone(tokenizer):
    texts = [p.read_text(encoding="utf-8") for p in tiny.stdlib_files(held_out=True)[:20]]
    texts.append("naïve 漢字 🦜 <bos> <start_of_turn>user ▁▁")
    ids = [np.array(tokenizer._core.encode(t, add_special_tokens=False).ids) for t in texts]
    found = tokenizer._lengths.starts(
        np.concatenate(ids), list(map(len, ids)), [len(text) for text in texts]
    )
    for text, starts in zip(texts, found, strict=True):
        assert starts is not None
        assert starts.tolist() == starts_by_offsets(tokenizer._core, text)


@pytest.mark.parametrize(
    "change",
    [
        lambda core: setattr(core, "normalizer", _normalizer("Lowercase")),
        lambda core: setattr(core, "normalizer", _normalizer("Prepend", "x")),
    ],
)
def test_of_other_tokenizers_nothing_is_told(tokenizer, change):
    import copy

    from scopelake.ingest.token_lengths import TokenLengths

    core = copy.deepcopy(tokenizer._core)
    change(core)
    assert TokenLengths(core).starts(np.array([300, 301]), [2], [2]) == [None]
    mine = tokenizer._lengths
    assert mine.starts(np.array([300, 301, 2]), [2, 1], [9999, 5]) == [None, None]
    assert mine.starts(np.array([], np.int32), [], []) == []


def _normalizer(name, *arguments):
    from tokenizers import normalizers

    return getattr(normalizers, name)(*arguments)
