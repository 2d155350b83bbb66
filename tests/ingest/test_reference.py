"""Every stored firing of every coder against plain transformers and JumpReLU written out here."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import scopelake
from scopelake import tiny

RELATIVE_BAND = 1e-4
"""Pre-activations this close to their threshold may fall either way: float32 sums in two
blockings, after up to six layers in two blockings, differ by less."""

STORED_ERROR = 2.0**-11
"""Ten mantissa bits, rounded to nearest."""


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """Both corpora's first documents, in small shards and batches that mix lengths."""
    root = tmp_path_factory.mktemp("reference")
    source = tiny.stdlib_files(held_out=True)[0].read_text(encoding="utf-8")
    (root / "a.txt").write_text(source[:4000])
    (root / "b.txt").write_text(source[4000:4300])
    chats = tiny.chats_path().read_text(encoding="utf-8").splitlines()[:9]
    (root / "chats.jsonl").write_text("\n".join(chats))
    lake = scopelake.create(root / "lake")
    lake.add_corpus("text", [root / "a.txt", root / "b.txt"], tokenizer=tiny.MODEL_NAME,
                    context_length=100, shard_contexts=5)  # fmt: skip
    lake.add_corpus("chats", root / "chats.jsonl", tokenizer=tiny.MODEL_NAME, chat=True,
                    context_length=256, shard_contexts=4)  # fmt: skip
    for corpus in ("text", "chats"):
        lake.ingest(corpus, model=tiny.MODEL_NAME, saes=[tiny.coders_path()], batch_tokens=300,
                    dense=[("resid_post", 3)], device="cpu")  # fmt: skip
    return lake


@pytest.fixture(scope="module")
def activations(lake):
    """{(corpus, context): {hook: [n_tokens, width]}}, one context at a time, unpadded."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(tiny.model_path()), dtype=torch.float32)
    configs = [json.loads(p.read_text()) for p in tiny.coders_path().rglob("config.json")]
    found = {}
    handles = []

    def keep(hook):
        def hooked(module, args, output=None):
            value = args[0] if output is None else output
            found[hook] = (value[0] if isinstance(value, tuple) else value)[0]

        return hooked

    for hook in {c["hf_hook_point_in"] for c in configs}:
        module = model.get_submodule(hook.rpartition(".")[0])
        if hook.endswith("input"):
            handles.append(module.register_forward_pre_hook(keep(hook)))
        else:
            handles.append(module.register_forward_hook(keep(hook)))
    result = {}
    for row in lake.sql("SELECT corpus, context, token_ids FROM contexts").to_pylist():
        with torch.no_grad():
            model(input_ids=torch.tensor([row["token_ids"]]))
        result[row["corpus"], row["context"]] = dict(found)
    return result


def test_every_firing_of_every_coder_equals_the_reference(lake, activations):
    n_checked = 0
    for path in sorted(tiny.coders_path().rglob("params.safetensors")):
        name = "/".join(path.parts[-4:-1])
        hook = json.loads((path.parent / "config.json").read_text())["hf_hook_point_in"]
        tensors = load_file(path)
        threshold = tensors["threshold"]
        rows = lake.sql(
            "SELECT corpus, context, position, feature, activation FROM codes WHERE sae = ?", [name]
        )
        stored = {}
        for corpus, context, position, feature, value in zip(
            *(c.to_pylist() for c in rows.columns), strict=True
        ):
            stored.setdefault((corpus, context), {})[position, feature] = value
        for key, hooked in activations.items():
            pre = hooked[hook] @ tensors["w_enc"] + tensors["b_enc"]
            fired = stored.get(key, {})
            expected = (pre > threshold).nonzero().tolist()
            near = (pre - threshold).abs() <= RELATIVE_BAND * threshold.abs().clamp(min=1e-3)
            for position, feature in {tuple(e) for e in expected} ^ set(fired):
                assert near[position, feature], (name, key, position, feature)
            for (position, feature), value in fired.items():
                true = float(pre[position, feature])
                assert abs(value - true) <= (STORED_ERROR + RELATIVE_BAND) * abs(true)
                n_checked += 1
    assert n_checked > 50_000


def test_postings_are_the_same_firings_feature_by_feature(lake):
    columns = "sae, corpus, feature, context, position, activation, kind"
    codes = lake.sql(f"SELECT {columns} FROM codes ORDER BY ALL")
    assert codes.equals(lake.sql(f"SELECT {columns} FROM postings ORDER BY ALL"))
    assert len(codes) == lake.info().firings > 0


def test_dense_activations_are_the_captured_ones_in_bfloat16(lake, activations):
    array = lake.activations(3, corpus="text")
    for (corpus, context), hooked in activations.items():
        if corpus == "text":
            expected = hooked["model.layers.3.output"]
            stored = np.asarray(array[context]).astype(np.float32)
            n_tokens = len(expected)
            np.testing.assert_allclose(stored[:n_tokens], expected.numpy(), rtol=2.0**-8, atol=1e-3)
            assert not stored[n_tokens:].any()


def test_batch_size_and_padding_change_no_firing(tiny_model):
    from scopelake.ingest.activations import LiveActivations, ShardTokens
    from scopelake.ingest.budget import Budget, Needs, parse_memory
    from scopelake.ingest.coder_weights import load_encoders
    from scopelake.ingest.encode_shard import encode_shard
    from scopelake.ingest.find_coders import find_coders
    from scopelake.ingest.plan import Shard
    from scopelake.store.firings import Firings

    rng = np.random.default_rng(3)
    ids = tuple(
        np.concatenate([[2], rng.integers(110, 4096, n)]).astype(np.int32) for n in (5, 90, 1, 40)
    )
    tokens = ShardTokens(10, ids, tuple(np.zeros(len(i), dtype=np.int8) for i in ids))
    coders = tuple(find_coders([f"{tiny.coders_path()}/resid_post_all/layer_5*"]))
    weights = {c.name: load_encoders(c, torch.device("cpu")) for c in coders}
    results = []
    for batch_tokens, side in [(1, "right"), (400, "right"), (400, "left"), (100, "left")]:
        budget = Budget(parse_memory("auto"), coders, batch_tokens)
        budget.begin(Needs(token=1, dense=0, longest=91))
        pieces = encode_shard(
            Shard(0, 10, 14, coders, ()), tokens, LiveActivations(tiny_model, side), weights,
            budget, context_length=100,
        )  # fmt: skip
        results.append(Firings.concat(piece.codes(coders[0].name).firings() for piece in pieces))
    threshold = weights[coders[0].name][0].threshold.numpy()
    first = results[0]
    expected = dict(
        zip(zip(first.context, first.position, first.feature, strict=True), first.activation,
            strict=True)
    )  # fmt: skip
    assert expected
    for other in results[1:]:
        keys = zip(other.context, other.position, other.feature, strict=True)
        found = dict(zip(keys, other.activation, strict=True))
        for key in found.keys() ^ expected.keys():
            value = found.get(key, expected.get(key))
            assert abs(value - threshold[key[2]]) <= RELATIVE_BAND * threshold[key[2]]
        for key in found.keys() & expected.keys():
            assert found[key] == pytest.approx(expected[key], rel=RELATIVE_BAND)


def test_ingesting_again_does_nothing_and_a_new_coder_only_its_own_work(lake, tmp_path):
    before = lake.snapshot
    again = lake.ingest("text", model=tiny.MODEL_NAME, saes=[tiny.coders_path()], device="cpu",
                        dense=[("resid_post", 3)])  # fmt: skip
    assert again.already_complete
    assert lake.snapshot == before


def test_statistics_leave_bos_out(lake):
    rows = lake.sql(
        "SELECT f.sae, f.corpus, f.feature, f.firings, count(p.feature) AS counted, "
        "f.max, max(p.activation) AS highest FROM features f LEFT JOIN postings p "
        "ON p.sae = f.sae AND p.corpus = f.corpus "
        "AND p.feature = f.feature AND p.kind <> 'bos' GROUP BY ALL"
    ).to_pylist()
    assert rows
    for row in rows:
        assert row["firings"] == row["counted"]
        assert row["max"] == row["highest"]
