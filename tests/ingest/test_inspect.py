"""A prompt that is inspected is a corpus of one context, ingested as any other."""

import json
import math
import os
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import scopelake
from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import (
    CoderMismatchError,
    CorpusNotFoundError,
    CorpusSourceError,
    InvalidArgumentError,
    NotIngestedError,
    PartialWarning,
)

FAMILIES = ["resid_post_all/layer_3_width_1024_l0_small",
            "resid_post_all/layer_5_width_1024_l0_small",
            "transcoder_all/layer_3_width_512_l0_small_affine",
            "attn_out_all/layer_3_width_512_l0_small",
            "mlp_out_all/layer_3_width_512_l0_small"]  # fmt: skip
SAES = [f"{tiny.CODERS_REPO}/{family}" for family in FAMILIES]
TEXT = "def depth(lake):\n    return lake.depth\n"
QUESTION = [{"role": "user", "content": "What is a list?"}]
ODD = "<bos><start_of_turn>user\n\x00\x1b[31m </script><b> 'q\" & 🦜 \u202e 漢字\tx"
CODE = "import os\n\n\nclass Lake:\n    def depth(self):\n        return os.getenv('DEPTH')\n"


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A lake with a corpus on which all SAEs are complete, and one of which peaks were kept."""
    folder = tmp_path_factory.mktemp("inspect")
    (folder / "a.txt").write_text(CODE * 40)
    made = scopelake.create(folder / "lake")
    for name, keep in (("code", "all"), ("peaked", "peaks")):
        made.add_corpus(name, folder / "a.txt", tokenizer=tiny.MODEL_NAME, context_length=64)
        made.ingest(name, model=tiny.MODEL_NAME, saes=SAES, device="cpu", keep=keep)
    return made


@pytest.fixture(scope="module")
def inspector(lake):
    return lake.inspector(model=tiny.MODEL_NAME, saes=SAES, device="cpu")


def files(folder):
    return {p: p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def test_a_text_fires_as_the_same_text_in_a_corpus_does(tmp_path):
    lake = scopelake.create(tmp_path / "lake")
    found = lake.inspect(TEXT, model=tiny.MODEL_NAME, saes=SAES[:2], device="cpu", k=None)
    assert found.corpus == "inspection-1"
    (tmp_path / "a.txt").write_text(TEXT)
    lake.add_corpus("file", tmp_path / "a.txt", tokenizer=tiny.MODEL_NAME)
    lake.ingest("file", model=tiny.MODEL_NAME, saes=SAES[:2], device="cpu")
    expected = lake.features_at(0, corpus="file").table
    assert expected.num_rows > 100
    assert found.firings.select(expected.column_names).equals(expected)
    assert "".join(found.tokens["token"].to_pylist()) == f"<bos>{TEXT}"
    row = lake.sql("SELECT source, n_tokens FROM corpora WHERE corpus = 'inspection-1'").to_pylist()
    assert row == [{"source": "prompt", "n_tokens": found.tokens.num_rows}]
    # The lake has one whole corpus since, with which the next prompt is compared.
    assert found.against is None
    assert "no percentiles" in found.note
    assert set(found.firings["percentile"].to_pylist()) == {None}
    again = lake.inspect(TEXT, model=tiny.MODEL_NAME, saes=SAES[:2], device="cpu", k=2)
    assert (again.corpus, again.against, again.note) == ("inspection-2", "file", "")


def plain_sites(token_ids):
    """Activations of plain transformers, by site and layer, [n_tokens, width]."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(tiny.model_path()), dtype=torch.float32)
    seen = {}

    def keep(site, layer):
        def hook(module, args, output=None):
            value = args[0] if output is None else output
            seen[site, layer] = (value[0] if isinstance(value, tuple) else value)[0]

        return hook

    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(keep("resid_post", i))
        layer.self_attn.o_proj.register_forward_pre_hook(keep("attn_out", i))
        layer.post_feedforward_layernorm.register_forward_hook(keep("mlp_out", i))
        layer.pre_feedforward_layernorm.register_forward_hook(keep("mlp_in", i))
    with torch.no_grad():
        model(input_ids=torch.tensor([token_ids]))
    return {place: value.reshape(len(token_ids), -1) for place, value in seen.items()}


def plain_errors(params, xs, targets):
    """Error, norm and unexplained share at each target, [n_tokens, n_out]: plain torch."""
    codes = []
    for x, w in zip(xs, params, strict=True):
        pre = x @ w["w_enc"] + w["b_enc"]
        codes.append(torch.where(pre > w["threshold"], pre, 0.0))
    columns = []
    for i, target in enumerate(targets):
        b = params[i]["b_dec"]
        y = b.clone()
        for code, w in zip(codes, params, strict=True):
            y = y + code @ w["w_dec"].reshape(code.shape[1], len(targets), -1)[:, i]
        if "affine_skip_connection" in params[i]:
            y = y + xs[i] @ params[i]["affine_skip_connection"]
        error = (target - y).norm(dim=1)
        columns.append((error, target.norm(dim=1), error**2 / (target - b).norm(dim=1) ** 2))
    return columns


def check_errors(found, sae, sites, reads, writes, params):
    """Compare an SAE's rows with the plain ones; stored activations have 10 bits."""
    columns = plain_errors(params, [sites[r] for r in reads], [sites[w] for w in writes])
    rows = [row for row in found.errors.to_pylist() if row["sae"] == sae]
    n = found.tokens.num_rows
    assert [(r["site"], r["layer"], r["position"]) for r in rows] == [
        (site, layer, p) for site, layer in writes for p in range(1, n)
    ]
    for i, (error, norm, unexplained) in enumerate(columns):
        mine = rows[i * (n - 1) : (i + 1) * (n - 1)]
        for name, values in (("error", error), ("norm", norm), ("unexplained", unexplained)):
            got = np.array([row[name] for row in mine])
            np.testing.assert_allclose(got, values[1:].numpy(), rtol=5e-3, err_msg=name)


@pytest.mark.parametrize("at_once", [1024, 5])
def test_errors_are_those_of_plain_torch(inspector, monkeypatch, at_once):
    monkeypatch.setattr("scopelake.ingest.prompt_errors.TOKENS_AT_ONCE", at_once)
    found = inspector.inspect(TEXT, keep=False)
    ids = token_ids(TEXT)
    sites = plain_sites(ids)
    for name, (read, write) in zip(SAES, [
        (("resid_post", 3),) * 2, (("resid_post", 5),) * 2, (("mlp_in", 3), ("mlp_out", 3)),
        (("attn_out", 3),) * 2, (("mlp_out", 3),) * 2,
    ], strict=True):  # fmt: skip
        folder = tiny.coders_path() / name.removeprefix(f"{tiny.CODERS_REPO}/")
        params = load_file(folder / "params.safetensors")
        check_errors(found, name, sites, [read], [write], [params])


def token_ids(text):
    from scopelake.named import load_tokenizer

    tokenizer = load_tokenizer(tiny.MODEL_NAME)
    return [tokenizer.bos_id, *tokenizer.encode_texts([text])[0].token_ids.tolist()]


def test_errors_of_coders_of_several_layers_are_by_layer(lake, tmp_path, write_multi_layer):
    folders = [
        write_multi_layer(tmp_path, "crosscoder", "layer_1_3_width_32_l0_medium", n_layers=2,
                          scale=0.5),
        write_multi_layer(tmp_path, "clt", "width_96_l0_medium_affine", n_layers=6, scale=0.5,
                          affine=True),
    ]  # fmt: skip
    found = lake.inspect(TEXT, model=tiny.MODEL_NAME, saes=folders, device="cpu", keep=False)
    sites = plain_sites(token_ids(TEXT))
    streams = [("resid_post", 1), ("resid_post", 3)]
    inputs, outputs = ([(site, i) for i in range(6)] for site in ("mlp_in", "mlp_out"))
    for folder, reads, writes in (
        (folders[0], streams, streams), (folders[1], inputs, outputs)
    ):  # fmt: skip
        name = f"gemma-scope-2-test/{folder.parent.name}/{folder.name}"
        params = [load_file(folder / f"params_layer_{i}.safetensors") for i in range(len(reads))]
        assert name in found.firings["sae"].to_pylist()
        check_errors(found, name, sites, reads, writes, params)
    assert set(found.firings["percentile"].to_pylist()) == {None}
    assert "no percentiles" in found.note


def test_an_sae_that_never_fires_has_errors_of_its_bias(lake, tmp_path, write_coder):
    folder = write_coder(tmp_path, threshold=torch.full((64,), 1e9))
    found = lake.inspect(TEXT, model=tiny.MODEL_NAME, saes=folder, device="cpu", keep=False)
    assert found.firings.num_rows == 0
    np.testing.assert_allclose(found.errors["unexplained"].to_pylist(), 1.0, rtol=1e-9)
    assert "nothing fires" in found.to_text()
    json.loads(found.to_json())


def test_what_the_lake_has_of_the_weights_is_not_computed_again(lake, monkeypatch):
    def never(*_):
        raise AssertionError("a decoder was multiplied")

    monkeypatch.setattr("scopelake.ingest.statistics.decoder_columns", never)
    found = lake.inspect(TEXT, model=tiny.MODEL_NAME, saes=SAES, device="cpu", k=1)
    query = """
        SELECT sae, feature, decoder_norm, encoder_norm, top_tokens, top_logits, bottom_tokens,
               bottom_logits
        FROM features WHERE corpus = ? ORDER BY sae, feature"""
    assert lake.sql(query, [found.corpus]).equals(lake.sql(query, ["code"]))


def test_what_is_not_kept_leaves_nothing(lake, inspector, tmp_path, monkeypatch):
    kept = inspector.inspect(TEXT, k=4, by="surprise")
    before, snapshot = files(lake.path), lake.snapshot
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for handle in (lake, scopelake.open(lake.path, snapshot=snapshot)):
        thrown = handle.inspect(
            TEXT, model=tiny.MODEL_NAME, saes=SAES, device="cpu", keep=False, k=4, by="surprise"
        )
        assert thrown.corpus is None
        assert thrown.firings.equals(kept.firings)
        assert thrown.errors.equals(kept.errors)
    assert (files(lake.path), lake.snapshot) == (before, snapshot)
    assert list(tmp_path.iterdir()) == []
    pinned = scopelake.open(lake.path, snapshot=snapshot)
    with pytest.raises(InvalidArgumentError, match="read-only"):
        pinned.inspect(TEXT, model=tiny.MODEL_NAME, saes=SAES)


def test_percentiles_are_shares_of_the_corpus(lake, inspector):
    found = inspector.inspect(TEXT, k=None, keep=False)
    assert found.against == "code"
    with pytest.warns(PartialWarning):  # of the other corpus
        everything = lake.sql(
            "SELECT sae, feature, activation FROM postings WHERE corpus = 'code' AND kind <> 'bos'"
        ).to_pylist()
    there = {}
    for row in everything:
        there.setdefault((row["sae"], row["feature"]), []).append(row["activation"])
    n_new = 0
    partly = inspector.inspect(TEXT, k=None, keep=False, against="peaked")
    for row, part in zip(found.firings.to_pylist(), partly.firings.to_pylist(), strict=True):
        known = there.get((row["sae"], row["feature"]))
        if row["position"] == 0 or known is None:
            n_new += row["position"] > 0
            assert row["percentile"] is row["percentile_error"] is None
            assert part["percentile"] is None
            continue
        exact = 100 * sum(a < row["activation"] for a in known) / len(known)
        assert row["percentile"] == pytest.approx(exact)
        assert row["percentile_error"] == 0
        assert abs(part["percentile"] - exact) <= part["percentile_error"] + 1e-9
    assert n_new
    assert max(r for r in partly.firings["percentile_error"].to_pylist() if r is not None) > 0


def test_firings_are_ranked_and_named(lake, inspector):
    found = inspector.inspect(TEXT, k=3, by="surprise", keep=False)
    rows = found.firings.to_pylist()
    for one, next_one in pairwise(rows):
        if (one["position"], one["sae"]) == (next_one["position"], next_one["sae"]):
            assert one["score"] >= next_one["score"]
    promoted = lake.sql(
        "SELECT feature, top_tokens FROM features WHERE corpus = 'code' AND sae = ?", [SAES[0]]
    )
    tops = {row["feature"]: row["top_tokens"] for row in promoted.to_pylist()}
    names = inspector._prompts.tokenizer.pieces
    for row in rows:
        if row["sae"] == SAES[0]:
            assert row["top_tokens"] == names(tops[row["feature"]])
        elif "attn_out" in row["sae"]:  # read before W_O: no way to the logits
            assert row["top_tokens"] is None
    counts = found.firings.group_by(["sae", "position"]).aggregate([("feature", "count")])
    assert max(counts["feature_count"].to_pylist()) == 3


def test_the_model_answers_a_chat(lake, inspector):
    found = inspector.inspect(QUESTION, generate=6, keep=False)
    kinds = found.tokens["kind"].to_pylist()
    assert 1 <= kinds.count("generated") <= 6
    assert kinds[-1] == "generated"
    assert {"template", "content", "bos"} < set(kinds)
    assert "(model, generated)" in found.to_text()
    assert set(found.errors["position"].to_pylist()) == set(range(1, len(kinds)))


@pytest.mark.parametrize("prompt", ["x", ODD, " ", "\n"], ids=["one", "odd", "space", "line"])
def test_odd_prompts_show_themselves(inspector, prompt):
    if not prompt.strip():
        with pytest.raises(CorpusSourceError, match="empty prompt"):
            inspector.inspect(prompt, keep=False)
        return
    found = inspector.inspect(prompt, keep=False)
    assert found.tokens["kind"].to_pylist()[0] == "bos"
    assert set(found.tokens["kind"].to_pylist()[1:]) == {"content"}
    assert json.loads(found.to_json()) == found.to_dict()
    for text in (found.to_text(), found._repr_html_()):
        assert not {chr(i) for i in range(32) if i != 10} & set(text)
    assert "<script" not in found._repr_html_()
    values = [v for name in ("unexplained", "error", "norm")
              for v in found.errors[name].to_pylist()]  # fmt: skip
    assert all(v is not None and math.isfinite(v) for v in values)


def test_what_cannot_be_inspected_leaves_the_lake_as_it_was(
    lake, inspector, tmp_path, write_coder, monkeypatch
):
    before, snapshot = files(lake.path), lake.snapshot
    for keep in (True, False):
        for prompt, error, says in (
            ("", CorpusSourceError, "empty prompt"),
            ([], CorpusSourceError, "no messages"),
            ([{"role": "user", "content": " "}], CorpusSourceError, "empty prompt"),
            ("a\ud800", CorpusSourceError, "the prompt .* its text has half of a surrogate pair"),
            ([{"role": "bot", "content": "x"}], CorpusSourceError, "of role 'bot'"),
            ([{"role": "user"}], CorpusSourceError, "without text 'role' and 'content'"),
            ("x " * 40_000, InvalidArgumentError, "shorten it"),
        ):
            with pytest.raises(error, match=says):
                inspector.inspect(prompt, keep=keep)
        for options, error, says in (
            ({"k": 0}, InvalidArgumentError, "k=0"),
            ({"by": "size"}, InvalidArgumentError, "by 'size'"),
            ({"generate": 3}, InvalidArgumentError, "replies belong to chats"),
            ({"against": "nowhere"}, CorpusNotFoundError, "code, "),
        ):
            with pytest.raises(error, match=says):
                inspector.inspect(TEXT, keep=keep, **options)
    answered = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(InvalidArgumentError, match="does not end with the user"):
        inspector.inspect(answered, generate=3)
    wide = write_coder(tmp_path, d_in=64)
    with pytest.raises(CoderMismatchError):
        lake.inspect(TEXT, model=tiny.MODEL_NAME, saes=[wide], device="cpu")
    new = write_coder(tmp_path / "new")
    # These are refused before a model is loaded.
    monkeypatch.setattr("scopelake.ingest.model.load_model", lambda *_, **__: pytest.fail("load"))
    for options, error, says in (
        ({"against": "nowhere"}, CorpusNotFoundError, "code, "),
        ({"against": "code"}, NotIngestedError, "no statistics"),
        ({"by": "surprise"}, InvalidArgumentError, "would say what is usual"),
    ):
        with pytest.raises(error, match=says):
            lake.inspect(TEXT, model=tiny.MODEL_NAME, saes=[new], device="cpu", **options)
    assert (files(lake.path), lake.snapshot) == (before, snapshot)


def test_another_coder_of_a_known_name_is_refused_also_if_nothing_is_kept(tmp_path, write_coder):
    lake = scopelake.create(tmp_path / "lake")
    one = write_coder(tmp_path)
    lake.inspect("x", model=tiny.MODEL_NAME, saes=[one], device="cpu")
    other = write_coder(tmp_path / "other", b_enc=torch.ones(64))
    with pytest.raises(CoderMismatchError, match="must not be mixed"):
        lake.inspect("x", model=tiny.MODEL_NAME, saes=[other], device="cpu", keep=False)


def test_the_command_line(lake, capsys, tmp_path):
    options = ["--model", tiny.MODEL_NAME, "--sae", SAES[0], "-k", "1", "--no-keep"]
    assert main(["inspect", str(lake.path), TEXT, *options]) == 0
    assert "percentiles: among each feature's firings on code" in capsys.readouterr().out
    assert main(["inspect", str(lake.path), "What?", "--chat", "--generate", "2", "--json",
                 *options]) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert "<start_of_turn>" in {row["token"] for row in found["tokens"]}
    for name, value in (("list", QUESTION), ("object", {"messages": QUESTION})):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
        page = tmp_path / f"{name}.html"
        assert main(["inspect", str(lake.path), "--chat", str(tmp_path / f"{name}.json"),
                     "--by", "surprise", "--html", str(page), *options]) == 0  # fmt: skip
        assert capsys.readouterr().out == f"wrote {page}\n"
        assert page.read_text().startswith("<!doctype html>")
    assert sorted(os.listdir(tmp_path)) == ["list.html", "list.json", "object.html", "object.json"]


def test_the_command_line_refuses_before_the_model_runs(lake, capsys, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a model was loaded")

    before = files(lake.path)
    monkeypatch.setattr("scopelake.ingest.model.load_model", never)
    (tmp_path / "no.json").write_text("{")
    (tmp_path / "none.json").write_text("{}")
    for given, says in (
        (["x", "--html", str(tmp_path / "no" / "a.html")], "No such file or directory"),
        (["x", "--html", str(tmp_path)], "Is a directory"),
        ([], "no prompt"),
        (["--chat"], "no prompt"),
        ([""], "an empty prompt"),
        (["x", "-k", "0"], "k=0|-k 0"),
        (["x", "--generate", "3"], "replies belong to chats"),
        (["x", "--chat", str(tmp_path / "no.json")], "one prompt is inspected at a time"),
        (["--chat", str(tmp_path / "no.json")], "it is no JSON"),
        (["--chat", str(tmp_path / "none.json")], "has no messages"),
        (["--chat", "What is a list?"], "there is no such file|cannot be read"),
    ):
        options = ["--model", tiny.MODEL_NAME, "--sae", SAES[0]]
        assert main(["inspect", str(lake.path), *given, *options]) == 2, given
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert any(part in message for part in says.split("|")), message
    assert files(lake.path) == before
    assert sorted(os.listdir(tmp_path)) == ["no.json", "none.json"]
