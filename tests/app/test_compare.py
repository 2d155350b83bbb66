"""compare through the front door: what is kept in part, two SAEs, wrong questions, the shell."""

import builtins
import json
import warnings

import pyarrow.compute as pc
import pytest

import scopelake
from scopelake import TokenSet, tiny
from scopelake.cli import main
from scopelake.errors import (
    AmbiguousSaeError,
    InvalidArgumentError,
    MissingDependencyError,
    NotIngestedError,
    PartialWarning,
    QueryError,
    SaeNotFoundError,
)
from scopelake.store.keeping import parse_keep

SAE, OTHER = (f"gemma-scope-2-tiny/resid_post_all/layer_{n}_width_1024_l0_small" for n in (3, 4))
NARROW = "gemma-scope-2-tiny/mlp_out_all/layer_3_width_512_l0_small"
N_DOCUMENTS = 40
USER, MODEL = "role = 'user' AND kind = 'content'", "role = 'model' AND kind = 'content'"


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """Chats, and text of which all firings are kept, some, or peaks alone; packed too."""
    folder = tmp_path_factory.mktemp("compare")
    texts = [f"def depth_{i}(lake):\n    return lake[{i}] * {i}\n" for i in range(N_DOCUMENTS)]
    lines = [
        json.dumps({"id": f"d{i}", "text": text, "lang": "py" if i % 2 else "sql"})
        for i, text in enumerate(texts)
    ]
    (folder / "text.jsonl").write_text("\n".join(lines))
    chats = [
        {"messages": [{"role": "user", "content": text}, {"role": "model", "content": "A lake."}]}
        for text in texts
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    lake = scopelake.create(folder / "lake")
    cut = {"tokenizer": tiny.MODEL_NAME, "context_length": 48, "shard_contexts": 16}
    asked = {"model": tiny.MODEL_NAME, "device": "cpu"}
    lake.add_corpus("chats", folder / "chats.jsonl", chat=True, **cut)
    lake.ingest("chats", saes=[SAE, OTHER, NARROW], **asked)
    keeps = {"packed": "all", "packed-sampled": "sample:0.4", "sampled": "sample:0.4",
             "peaked": "peaks", "whole": "all"}  # fmt: skip
    for name, keep in keeps.items():
        lake.add_corpus(name, folder / "text.jsonl", packing=name.startswith("packed"), **cut)
        lake.ingest(name, saes=SAE, keep=keep, **asked)
    return lake


def rows(found):
    return {r["feature"]: r for r in found.table.to_pylist()}


def test_counts_are_those_of_the_views(lake):
    found = lake.compare(USER, MODEL, sae=SAE)
    assert found.test == "signed-rank"
    assert found.n_documents == (N_DOCUMENTS, N_DOCUMENTS)
    for side, where in (("a", USER), ("b", MODEL)):
        query = (
            "SELECT feature, count(*) AS n, avg(activation) AS mean FROM codes JOIN tokens "
            "USING (corpus, context, position, kind) WHERE sae = ? AND corpus = 'chats' "
            f"AND {where} GROUP BY feature"
        )
        with warnings.catch_warnings(action="ignore", category=PartialWarning):
            counted = {r["feature"]: r for r in lake.sql(query, [SAE]).to_pylist()}
        for feature, row in rows(found).items():
            here = counted.get(feature, {"n": 0, "mean": None})
            assert row[f"firings_{side}"] == here["n"]
            assert row[f"mean_{side}"] == (here["mean"] and pytest.approx(here["mean"]))
    (n,) = lake.sql(f"SELECT count(*) AS n FROM tokens WHERE corpus = 'chats' AND {USER}")["n"]
    assert found.a.n_tokens == n.as_py()


def test_features_have_their_words(lake):
    found = lake.compare(USER, MODEL, sae=SAE, corpus="chats")
    first = found.top(1).to_pylist()[0]
    card = lake.feature(first["feature"], sae=SAE, corpus="chats")
    top = [r["token"] for r in card.tokens.to_pylist() if r["side"] == "top"]
    assert first["promotes"] == top[:5]
    assert f"  {first['feature']}  [" in found.to_text(1)
    assert found.table["label"].null_count == found.table.num_rows
    assert "<table>" in found._repr_html_()


@pytest.mark.parametrize(("sampled", "whole"), [("sampled", "whole"), ("packed-sampled", "packed")])
def test_a_sample_answers_for_the_documents_that_it_has(lake, sampled, whole):
    keep = parse_keep("sample:0.4")
    a, b = "metadata ->> 'lang' = 'py'", "metadata ->> 'lang' = 'sql'"
    found = lake.compare(a, b, sae=SAE, corpus=sampled)
    first = "SELECT context, coalesce(document, documents[1].document) AS first FROM contexts"
    of = lake.sql(f"{first} WHERE corpus = ?", [sampled]).to_pylist()
    kept = [r["context"] for r in of if keep.has(r["first"])]
    assert 0 < len(kept) < len(of)
    assert f"{len(of) - len(kept):,} contexts of others are in no set" in found.note
    there = f"context IN ({', '.join(map(str, kept))})"
    same = lake.compare(f"({a}) AND {there}", f"({b}) AND {there}", sae=SAE, corpus=whole)
    assert found.table.to_pylist() == same.table.to_pylist()
    assert (found.a.n_tokens, found.b.n_tokens) == (same.a.n_tokens, same.b.n_tokens)


def test_what_is_not_known_is_refused_or_left_out(lake):
    with pytest.raises(QueryError, match="not all firings .* 'peaked' are known .peaks only"):
        lake.compare("position < 9", "position >= 9", sae=SAE, corpus="peaked")
    with pytest.raises(NotIngestedError, match="not run on corpus 'whole', but on chats"):
        lake.compare("position < 9", "position >= 9", sae=OTHER, corpus="whole")
    found = lake.compare("position < 9", "position >= 9", sae=SAE)
    assert found.a.corpora == ("chats", "packed", "packed-sampled", "sampled", "whole")
    assert f"corpus peaked is left out: {SAE} is peaks only" in found.note
    both = lake.compare("position < 9", "position >= 9", layer=[3, 4], site="resid_post")
    assert both.a.corpora == ("chats",)
    assert "corpus whole is left out: not all of the SAEs were run there" in both.note
    some = lake.compare("position < 9", "position >= 9", layer=[3, 4], corpus="whole")
    assert some.saes == ((SAE, SAE),)
    assert f"without {NARROW}, {OTHER}: {NARROW} was not run on corpus 'whole'" in some.note


def test_an_unfinished_ingest_is_refused(lake, tmp_path):
    import shutil

    copy = scopelake.open(shutil.copytree(lake.path, tmp_path / "lake"))
    (tmp_path / "more.jsonl").write_text(json.dumps({"id": "new", "text": "def f():\n    return"}))
    copy.append_corpus("whole", tmp_path / "more.jsonl")
    with pytest.raises(NotIngestedError, match="incomplete, 3 of 4 shards ingested"):
        copy.compare("position < 9", "position >= 9", sae=SAE, corpus="whole")
    copy.ingest("whole", saes=SAE, model=tiny.MODEL_NAME, device="cpu")
    assert copy.compare("position < 9", "position >= 9", sae=SAE, corpus="whole").n_tested


def test_two_saes_are_compared_once_their_decoders_were(lake, tmp_path):
    import shutil

    copy = scopelake.open(shutil.copytree(lake.path, tmp_path / "lake"))
    a, b = TokenSet(USER, "chats", sae=SAE), TokenSet(USER, "chats", sae=OTHER)
    with pytest.raises(NotIngestedError, match="run add_neighbors with both of them first"):
        copy.compare(a, b)
    copy.add_neighbors([SAE, OTHER], k=1, device="cpu")
    found = copy.compare(a, b)
    # The same tokens, so no document is cut.
    assert found.test == "signed-rank"
    assert found.tested_tokens == (found.a.n_tokens, found.b.n_tokens)
    alone = {sae: rows(copy.compare(USER, MODEL, sae=sae)) for sae in (SAE, OTHER)}
    for row in found.table.to_pylist():
        assert row["firings_a"] == alone[SAE][row["feature"]]["firings_a"]
        assert row["firings_b"] == alone[OTHER][row["other_feature"]]["firings_a"]
    near = copy.sql("SELECT feature, other_feature, cosine FROM neighbors WHERE rank = 0 AND "
                    "sae = ? AND other_sae = ?", [SAE, OTHER]).to_pylist()  # fmt: skip
    there = {r["feature"]: (r["other_feature"], r["cosine"]) for r in near}
    assert all(
        there[r["feature"]] == (r["other_feature"], r["cosine"]) for r in found.table.to_pylist()
    )
    assert len(set(found.table["other_feature"].to_pylist())) == found.table.num_rows > 0
    with pytest.raises(QueryError, match=r"is of type sae at resid_post, 1,024 .* 512 features"):
        copy.compare(a, TokenSet(USER, "chats", sae=NARROW))


def test_too_few_documents_are_not_tested(lake):
    found = lake.compare("document_index = 0", "document_index > 0", sae=SAE, corpus="whole")
    assert found.test is None
    assert found.n_tested == 0
    assert "two documents or more of each set" in found.note
    assert "there are 1 document with tokens of a alone and 39 of b alone" in found.note
    table = found.table
    assert table["p"].null_count == table["difference_low"].null_count == table.num_rows
    assert any(table["firings_a"].to_pylist())
    assert "features, none tested" in found.to_text(3)
    assert found.top(3, higher="a").num_rows == 3
    with pytest.raises(InvalidArgumentError, match="no feature was tested"):
        found.plot()


def test_documents_of_both_sets_are_in_one_test(lake):
    asked = {"sae": SAE, "corpus": "chats", "seed": 3}
    a, b = "document_index < 30 AND role = 'user'", "document_index >= 5 AND role = 'model'"
    found = lake.compare(a, b, **asked)
    assert (found.test, found.n_documents) == ("signed-rank", (25, 25))
    assert "15 documents of one set alone not in the test" in found.note
    apart = lake.compare(a, b, test="rank-sum", **asked)
    assert (apart.test, apart.n_documents) == ("rank-sum", (5, 10))
    assert "25 documents with tokens of both sets not in the test" in apart.note
    columns = ["feature", "rate_a", "log_odds_low", "difference_high"]
    order = [("feature", "ascending")]
    assert found.table.select(columns).sort_by(order) == apart.table.select(columns).sort_by(order)
    assert found.table == lake.compare(a, b, **asked).table


def test_a_plot_shows_what_was_tested(lake, monkeypatch):
    found = lake.compare(USER, MODEL, sae=SAE)
    (axes,) = found.plot().axes
    shown = sum(len(points.get_offsets()) for points in axes.collections)
    assert shown == found.n_tested
    n_found = len(axes.collections[1].get_offsets())
    assert n_found == pc.sum(pc.less_equal(found.table["q"], 0.05)).as_py()
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"scopelake\[plot\]"):
        found.plot()


def test_a_plot_names_sets_of_many_words_within_the_picture(lake):
    first, second = (f"{said} AND (metadata ->> 'lang') IS NULL AND turn >= 0 AND position < 900"
                     for said in (USER, MODEL))  # fmt: skip
    figure = lake.compare(first, second, sae=SAE).plot()
    (axes,) = figure.axes
    assert " ".join(axes.get_title(loc="left").split()) == f"a: {first} b: {second}"
    drawn = figure.get_tightbbox()
    assert drawn.x0 >= 0
    assert drawn.x1 <= figure.get_figwidth()


def test_a_predicate_without_the_parentheses_it_needs_is_told_so(lake):
    with pytest.raises(QueryError, match="put parentheses around it: .metadata ->> 'key'."):
        lake.compare("role = 'user' AND metadata ->> 'lang' = 'py'", MODEL, sae=SAE)


def test_the_shell_says_the_same(lake, capsys):
    path = str(lake.path)
    asked = ["compare", path, "--a", USER, "--b", MODEL, "--sae", SAE, "--corpus", "chats"]
    assert main([*asked, "-k", "3"]) == 0
    found = lake.compare(USER, MODEL, sae=SAE, corpus="chats")
    assert capsys.readouterr().out == f"{found.to_text(3)}\n"
    assert main([*asked, "-k", "2", "--json", "--higher", "b", "--q", "0.05"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["features"] == [
        json.loads(json.dumps(row)) for row in found.top(2, q=0.05, higher="b").to_pylist()
    ]
    assert main(["compare", path, "--a-corpus", "whole", "--b-corpus", "chats", "--layer", "3",
                 "--site", "resid_post", "--test", "rank-sum",
                 "--by", "activation"]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "rank-sum test (Mann-Whitney) of 40 against 40 documents" in printed
    assert "ranked by mean activation" in printed


def test_bad_questions_are_refused_on_one_line(lake, capsys):
    path, both = str(lake.path), ["--a", USER, "--b", MODEL]
    for arguments, said in (
        (["--a", USER, "--b", "position > 0", "--sae", SAE], "are in both; give sets without"),
        (["--a", "role = 'tool'", "--b", USER, "--sae", SAE], "set a (role = 'tool') was to be"),
        (["--sae", SAE], "are in both"),
        (["--a", "role = ", "--b", USER], "it is not one SQL expression"),
        (["--a", "activation > 1", "--b", USER, "--sae", SAE], "columns of a set of tokens are"),
        (["--a", "role = 'user'; DROP TABLE x", "--b", USER], "it is not one SQL expression"),
        ([*both, "--sae", "nobody"], "an SAE named 'nobody' was asked for; the lake has"),
        ([*both, "--layer", "9"], "at layers 3, 4; choose one"),
        ([*both, "--corpus", "nowhere"], "corpus 'nowhere' was asked for; the lake has"),
        ([*both, "--confidence", "95"], "a confidence is a share between 0 and 1"),
        ([*both, "--seed", "-1"], "out of range"),
        ([*both, "-k", "-1"], "-k -1 was asked for; k is a number of features"),
        ([*both, "--q", "7"], "--q 7.0 was asked for; a false discovery rate is a share"),
        ([*both, "--a-model", "gemma-3-1b"], "those that fit are of scopelake/gemma-3-tiny"),
        ([*both, "--a-sae", "small"], "SAEs fit"),
        ([*both, "--a-sae", SAE, "--b-sae", OTHER], "run add-neighbors with both of them first"),
    ):
        assert main(["compare", path, *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert said in error, error
        assert error.count("\n") == 1
    with pytest.raises(InvalidArgumentError, match="give a SQL predicate, or a TokenSet"):
        lake.compare(3, USER)
    with pytest.raises(InvalidArgumentError, match="test='t' was asked for"):
        lake.compare(USER, MODEL, test="t")
    with pytest.raises(InvalidArgumentError, match="by='mean' was asked for; there are rate, act"):
        lake.compare(USER, MODEL, by="mean")
    with pytest.raises(InvalidArgumentError, match="give a whole number"):
        lake.compare(USER, MODEL, layer="3")
    with pytest.raises(InvalidArgumentError, match="give text"):
        TokenSet(corpus=3)
    with pytest.raises(SaeNotFoundError):
        lake.compare(USER, MODEL, sae=[SAE, "nobody"])
    with pytest.raises(AmbiguousSaeError):
        lake.compare(TokenSet(USER, sae="small"), MODEL)
