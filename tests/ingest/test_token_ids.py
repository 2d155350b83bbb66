"""Ids back to text: as the tokenizer spells them, with the turns that the template made."""

import numpy as np
import pytest

from scopelake.ingest.documents import Document
from scopelake.ingest.spell import Speller, spell_by_prefix
from scopelake.ingest.token_ids import TokenIdReader
from scopelake.names import KINDS, ROLES

BOS = KINDS.index("bos")
CHAT = (
    {"role": "user", "content": "What is 🦜 in naïve\n\nPython?"},
    {"role": "assistant", "content": "A  list\tof 漢字."},
    {"role": "user", "content": "x"},
)


@pytest.fixture(scope="module")
def core(tokenizer):
    return tokenizer._core


def random_ids(tokenizer, seed, n):
    """Any tokens but bytes, which spell nothing by themselves."""
    ids = np.random.default_rng(seed).integers(0, tokenizer.n_tokens, n).tolist()
    return [i for i in ids if not tokenizer._core.id_to_token(i).startswith("<0x")]


@pytest.mark.parametrize("n", [0, 1, 63, 300])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_spelling_equals_that_of_every_prefix(tokenizer, core, n, seed):
    ids = random_ids(tokenizer, seed, n)
    assert Speller(core).spell(ids) == spell_by_prefix(core, ids)


@pytest.mark.parametrize("text", ["🦜🦜", "a🦜\n", "é́ñ 漢字", "  x", "\t\t", "<bos>"])
def test_spelling_of_text_is_the_text(tokenizer, text):
    (tokens,) = tokenizer.encode_texts([text])
    spelled, starts = tokenizer.spell(tokens.token_ids.tolist())
    assert spelled == text
    assert starts == tokens.starts.tolist()


def test_bytes_that_are_no_character(core, tokenizer):
    ids = [core.token_to_id("<0xF0>"), core.token_to_id("<0x9F>"), core.token_to_id("<0x41>")]
    end = core.token_to_id("a")
    text, starts = tokenizer.spell([end, *ids, end, *ids[2:]])
    assert text == core.decode([end, *ids, end, *ids[2:]]) == "a\ufffd\ufffd\ufffdaA"
    assert starts == [0, 1, 2, 3, 4, 5]


def test_a_decoder_that_strips_is_spelled_prefix_by_prefix(core):
    """One that drops a leading space does not spell token by token."""
    from tokenizers import Tokenizer, decoders

    stripping = Tokenizer.from_str(core.to_str())
    stripping.decoder = decoders.Sequence([core.decoder, decoders.Strip(" ", 1, 0)])
    ids = stripping.encode(" def f", add_special_tokens=False).ids
    assert len(ids) > 1
    assert Speller(stripping).spell(ids) == spell_by_prefix(stripping, ids)
    assert Speller(stripping).spell(ids)[0] == "def f"


@pytest.mark.parametrize("n_messages", [1, 2, 3])
def test_turns_are_those_that_the_template_made(tokenizer, n_messages):
    made = tokenizer.encode_chat(Document("d", "here", messages=CHAT[:n_messages]))
    read = TokenIdReader(tokenizer).read(made.token_ids)
    assert read.roles.tolist() == made.roles.tolist()
    assert read.turns.tolist() == made.turns.tolist()
    assert read.kinds.tolist() == made.kinds.tolist()
    # The template's own BOS is in its text; of ids alone it covers none.
    assert read.text == made.text.removeprefix("<bos>")
    assert read.starts[1:].tolist() == (made.starts[1:] - len("<bos>")).tolist()


def test_a_turn_that_begins_with_a_system_message_is_opened_by_the_user(tokenizer):
    messages = ({"role": "system", "content": "Be brief."}, *CHAT[:2])
    made = tokenizer.encode_chat(Document("d", "here", messages=messages))
    read = TokenIdReader(tokenizer).read(made.token_ids)
    # Of ids alone it is not known where the system's words end.
    opening = slice(0, len(tokenizer.turn_openings()[ROLES.index("user")]) + 1)
    assert read.roles[opening].tolist() == made.roles[opening].tolist()
    assert read.kinds[opening].tolist() == made.kinds[opening].tolist()


def test_a_chat_cut_at_both_ends(tokenizer):
    made = tokenizer.encode_chat(Document("d", "here", messages=CHAT))
    ids = made.token_ids[6:-2]
    read = TokenIdReader(tokenizer).read(ids)
    second = int(np.flatnonzero(made.turns == 1)[0]) - 6
    assert set(read.turns[:second].tolist()) == {-1}
    assert read.turns[second:].tolist() == (made.turns[6:-2][second:] - 1).tolist()
    assert read.kinds[second:].tolist() == made.kinds[6:-2][second:].tolist()


def test_bos_anywhere_covers_no_text(tokenizer):
    (tokens,) = tokenizer.encode_texts(["one two"])
    ids = np.concatenate([[2], tokens.token_ids, [2, 2]]).astype(np.int32)
    read = TokenIdReader(tokenizer).read(ids)
    assert read.text == "one two"
    assert read.starts.tolist() == [0, *tokens.starts.tolist(), 7, 7]
    assert (read.kinds == BOS).tolist() == (ids == 2).tolist()


def test_a_start_of_turn_without_a_role_is_content(tokenizer):
    ids = np.array([2, 105, 106], dtype=np.int32)
    read = TokenIdReader(tokenizer).read(ids)
    assert read.turns.tolist() == [-1, -1, -1]
    assert read.text == "<start_of_turn><end_of_turn>"
