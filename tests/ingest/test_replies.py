"""Replies: the tokens that plain transformers generates, marked as generated."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import scopelake
from scopelake import tiny
from scopelake.errors import InvalidArgumentError, ModelError
from scopelake.ingest.corpus import CorpusConfig, add_corpus
from scopelake.ingest.documents import Document
from scopelake.ingest.replies import Replier, ReplyConfig
from scopelake.ingest.sources import CorpusSource
from scopelake.ingest.tokens import GENERATED, TEMPLATE
from scopelake.names import ROLES

ASK = [{"role": "user", "content": "Why is the sky blue?"}]
LONG = [
    {"role": "user", "content": "How deep is the lake, and who measured it last?"},
    {"role": "assistant", "content": "Forty metres."},
    {"role": "user", "content": "And in summer?"},
]


def chat(messages):
    return Document("d", "d:1", messages=tuple(messages))


@pytest.fixture(scope="module")
def plain():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = str(tiny.model_path())
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(path)


def test_greedy_replies_are_those_of_plain_transformers(tokenizer, tiny_model, plain):
    model, theirs = plain
    chats = [tokenizer.encode_chat(chat(m)) for m in (ASK, LONG, ASK)]
    found = Replier(tiny_model, tokenizer, ReplyConfig(12)).extend(chats, [1, 3, 1])
    for before, after, messages, turn in zip(chats, found, (ASK, LONG, ASK), (1, 3, 1),
                                             strict=True):  # fmt: skip
        prompt = theirs.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )["input_ids"]
        with torch.no_grad():
            output = model.generate(
                prompt, max_new_tokens=12, do_sample=False, eos_token_id=[1, 106]
            )[0].tolist()
        assert after.token_ids.tolist() == output
        n = len(before.token_ids)
        assert after.token_ids[:n].tolist() == before.token_ids.tolist()
        assert after.kinds[:n].tolist() == before.kinds.tolist()
        assert after.kinds[n : prompt.shape[1]].tolist() == [TEMPLATE] * (prompt.shape[1] - n)
        assert set(after.kinds[prompt.shape[1] :].tolist()) == {GENERATED}
        assert set(after.roles[n:].tolist()) == {ROLES.index("model")}
        assert set(after.turns[n:].tolist()) == {turn}
        assert list(after.token_ids).count(2) == 1
        assert after.text == theirs.decode(output, skip_special_tokens=False)
        assert (np.diff(after.starts) >= 0).all()
        assert after.starts[-1] < len(after.text)


def test_sampling_depends_on_the_seed_and_not_on_the_neighbours(tokenizer, tiny_model):
    chats = [tokenizer.encode_chat(chat(m)) for m in (ASK, LONG)]

    def sample(seed, chats, turns):
        replier = Replier(tiny_model, tokenizer, ReplyConfig(12, temperature=1.0, seed=seed))
        return [c.token_ids.tolist() for c in replier.extend(chats, turns)]

    both = sample(1, chats, [1, 3])
    assert sample(1, chats, [1, 3]) == both
    assert sample(1, chats[:1], [1]) == both[:1]
    assert sample(2, chats, [1, 3]) != both


@pytest.mark.parametrize("reply", [[], [300], [1500, 900, 106], list(range(200, 460))])
def test_any_reply_is_spelled_from_its_start_on(tokenizer, reply):
    before = tokenizer.encode_chat(chat(ASK))
    after = tokenizer.with_reply(before, reply, 1)
    assert after.text.startswith(before.text)
    assert len(after.starts) == len(before.starts) + len(reply)
    assert (np.diff(after.starts) >= 0).all()
    assert after.starts[-1] <= len(after.text)


def test_a_corpus_keeps_replies_and_says_whose_they_are(tmp_path):
    done = [*ASK, {"role": "assistant", "content": "Air scatters blue light."}]
    rows = [{"messages": ASK}, {"messages": done}, {"messages": LONG}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    lake = scopelake.create(tmp_path / "lake")
    lake.add_corpus("chats", tmp_path / "chats.jsonl", tokenizer=tiny.MODEL_NAME, chat=True,
                    generate=8, device="cpu")  # fmt: skip
    counts = lake.sql(
        "SELECT context, count(*) FILTER (kind = 'generated') AS n, "
        "max(turn) FILTER (kind = 'generated') AS turn FROM tokens GROUP BY 1 ORDER BY 1"
    ).to_pylist()
    assert [c["n"] > 0 for c in counts] == [True, False, True]
    assert all(c["n"] <= 8 for c in counts)
    assert [c["turn"] for c in counts] == [1, None, 3]
    (row,) = lake.sql("SELECT source, source_digest FROM corpora").to_pylist()
    assert row["source"] == (
        "chats.jsonl; replies of scopelake/gemma-3-tiny (greedy, at most 8 tokens)"
    )


def test_a_chat_without_room_for_its_reply_is_refused_naming_it(tmp_path, tokenizer, tiny_model):
    long = [{"role": "user", "content": "lake " * 40}]
    rows = [{"messages": ASK}, {"messages": long}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    n_tokens = len(tokenizer.open_turn(tokenizer.encode_chat(chat(long)), 1).token_ids) + 8
    store = scopelake.create(tmp_path / "lake")._store
    source = CorpusSource.find(tmp_path / "chats.jsonl", chat=True)

    def add(name, n_positions):
        model = dataclasses.replace(tiny_model, max_positions=n_positions)
        replier = Replier(model, tokenizer, ReplyConfig(8))
        return add_corpus(store, CorpusConfig(name), source, tokenizer, replier=replier)

    assert add("fits", n_tokens).n_documents == 2
    with pytest.raises(InvalidArgumentError, match=rf"jsonl.*2 is a chat of {n_tokens} tokens, "):
        add("does-not", n_tokens - 1)
    assert store.read("corpora", store.snapshot(), ["corpus"])["corpus"].to_pylist() == ["fits"]


def test_a_model_spread_over_devices_replies_as_a_whole_one(tmp_path):
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": ASK}) + "\n")
    lake = scopelake.create(tmp_path / "lake")
    whole = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
    spread = dict.fromkeys(whole, "cpu") | {f"model.layers.{n}": "disk" for n in range(6)}
    for name, options in (("whole", {"device": "cpu"}),
                          ("spread", {"device_map": spread, "dtype": "float32"})):  # fmt: skip
        lake.add_corpus(name, tmp_path / "chats.jsonl", tokenizer=tiny.MODEL_NAME, chat=True,
                        generate=8, **options)  # fmt: skip
    rows = lake.sql("SELECT token_ids, kinds FROM contexts").to_pylist()
    assert rows[0] == rows[1]
    assert "generated" in rows[0]["kinds"]
    with pytest.raises(ModelError, match="65504"):
        lake.add_corpus("no", tmp_path / "chats.jsonl", tokenizer=tiny.MODEL_NAME, chat=True,
                        generate=8, dtype="float16")  # fmt: skip


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"max_tokens": 5, "temperature": -1.0},
                                     {"max_tokens": 5, "temperature": float("nan")},
                                     {"max_tokens": 5, "seed": -1},
                                     {"max_tokens": 5, "seed": 1 << 32}])  # fmt: skip
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(InvalidArgumentError, match="was asked for"):
        ReplyConfig(**options)
