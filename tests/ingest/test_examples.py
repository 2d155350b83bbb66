"""Published examples: what is in the file is in the lake, and what is not known is not claimed."""

import numpy as np
import pytest

import scopelake
from scopelake import tiny
from scopelake.errors import (
    CoderFileError,
    CoderMismatchError,
    CorpusExistsError,
    InvalidArgumentError,
    QueryError,
)

DEPTH = 30
LENGTH = 40
WIDTH = 64
SAE = "gemma-scope-2-test/resid_post_all/layer_1_width_64_l0_small"


@pytest.fixture
def lake(tmp_path):
    return scopelake.create(tmp_path / "lake")


def bring(lake, *folders, **options):
    return lake.import_examples(list(folders), tokenizer=tiny.MODEL_NAME, **options)


def listed(published, feature):
    """(activation, context, position) of the file's firings of a feature, BOS left out."""
    found = []
    f = published.firings
    for a, c, p in zip(*(f[k][feature] for k in ("activations", "seq_ids", "positions")),
                       strict=True):  # fmt: skip
        position = p - published.columns[c][0]
        if a > 0 and published.rows[c][position] != 2:
            found.append((float(a), int(c), int(position)))
    return found


def test_everything_that_the_file_says_is_in_the_lake(lake, published, tokenizer):
    (done,) = bring(lake, published.folder)
    expected = [listed(published, f) for f in range(WIDTH)]
    assert (done.sae, done.corpus) == (SAE, "gemma-scope-2-test-examples")
    assert done.n_firings == sum(map(len, expected))
    assert done.n_features == sum(1 for e in expected if e)
    assert done.n_on_bos == np.count_nonzero(published.firings["activations"]) - done.n_firings > 0
    peaks = lake.sql("SELECT * FROM peaks ORDER BY feature, rank, position").to_pylist()
    for feature, rows in enumerate(expected):
        mine = [p for p in peaks if p["feature"] == feature]
        found = sorted((p["activation"], p["context"], p["position"]) for p in mine)
        assert found == sorted(rows)
        best = {}
        for a, c, _ in rows:
            best[c] = max(a, best.get(c, 0))
        ranks = {c: i for i, (c, _) in enumerate(sorted(best.items(), key=lambda x: (-x[1], x[0])))}
        assert all(ranks[p["context"]] == p["rank"] for p in mine)
    features = lake.sql("SELECT * FROM features ORDER BY feature").to_pylist()
    for row, rows in zip(features, expected, strict=True):
        tensors = published.tensors
        assert row["density"] == tensors["feature_frequencies"][row["feature"]]
        assert row["top_tokens"] == tensors["top_tokens"][row["feature"]].tolist()
        assert row["bottom_logits"] == tensors["bottom_logits"][row["feature"]].tolist()
        assert row["max"] == (max(rows)[0] if rows else None)
        assert row["firings"] is row["mean"] is row["n_tokens"] is None
        assert row["source"] == "examples.safetensors"
    contexts = lake.sql("SELECT * FROM contexts ORDER BY context").to_pylist()
    assert [c["token_ids"] for c in contexts] == published.rows
    assert contexts[0]["text"].startswith("import os\n\nclass Lake0:")
    assert "naïve" in contexts[5]["text"]
    chat = lake.sql(
        "SELECT role, string_agg(token, '' ORDER BY position) AS text FROM tokens "
        "WHERE context = 12 AND kind = 'content' GROUP BY role"
    )
    assert {(r["role"], r["text"]) for r in chat.to_pylist()} == {
        ("user", "What is a 🦜?"), ("model", "A bird."),
    }  # fmt: skip


def test_top_contexts_say_what_is_known_and_no_more(lake, published):
    bring(lake, published.folder)
    feature = int(published.firings["activations"][:, -1].argmax())
    rows = listed(published, feature)
    best = {}
    for a, c, p in rows:
        if (a, -p) > best.get(c, (0, 0)):
            best[c] = (a, -p)
    expected = sorted(((-a, c, -p) for c, (a, p) in best.items()))
    found = lake.top_contexts(feature, layer=1, k=DEPTH, window=LENGTH)
    assert [
        (-r["activation"], r["context"], r["position"]) for r in found.table.to_pylist()
    ] == expected
    call = f"FROM top_contexts(1, {feature}, site := NULL, k := {{}}, around := {LENGTH})"
    macro = lake.sql(call.format(DEPTH))
    assert macro.select(found.table.column_names) == found.table
    for refused in (call.format(DEPTH + 1), "FROM coactive('', 0)", "FROM features_at(0, 0)"):
        with pytest.raises(QueryError, match="was asked for|were asked for"):
            lake.sql(refused)
    known = {(c, p): a for a, c, p in rows}
    for row in found.table.to_pylist():
        shown = zip(range(row["start"], row["stop"]), row["activations"], strict=True)
        assert all(known.get((row["context"], p)) == a for p, a in shown)
    assert f"at most {DEPTH} firings a feature" in found.note
    assert found.note in found.to_text()
    assert found.note in found._repr_html_()
    assert lake.top_contexts(feature, layer=1, k=2).table["context"].to_pylist() == [
        c for _, c, _ in expected[:2]
    ]
    for options in ({"where": "role = 'user'"}, {"bos": True}, {"k": DEPTH + 1}):
        with pytest.raises(QueryError, match="not all firings of .*published examples only"):
            lake.top_contexts(feature, layer=1, **options)


def test_a_feature_without_examples_is_not_called_silent(lake, published, write_examples):
    published.firings["activations"][5] = 0  # its list is empty
    write_examples(published.folder, published.tokens, published.firings)
    bring(lake, published.folder)
    text = lake.top_contexts(5, layer=1).to_text()
    assert "is in nothing that is known (corpus " in text
    assert "never" not in text


def test_what_fires_here_needs_all_firings(lake, published, tmp_path, write_coder):
    bring(lake, published.folder)
    with pytest.raises(QueryError, match="not all its firings are known .published examples only"):
        lake.features_at(3, sae=SAE)
    other = write_coder(tmp_path, folder="layer_2_width_64_l0_small")
    corpus = "gemma-scope-2-test-examples"
    lake.ingest(corpus, model=tiny.MODEL_NAME, saes=[other], device="cpu")
    found = lake.features_at(3)
    assert set(found.table["layer"].to_pylist()) == {2}
    assert found.note == "without 1 SAE of which not all firings are known here"
    assert lake.sql("SELECT DISTINCT sae, source FROM peaks ORDER BY sae").to_pylist() == [
        {"sae": SAE, "source": "examples.safetensors"},
        {"sae": SAE.replace("layer_1", "layer_2"), "source": "ingest"},
    ]
    assert [e.sae for e in lake.info().examples] == [SAE]
    assert f"examples of {SAE} on {corpus}" in lake.info().to_text()


def test_importing_again_changes_nothing_and_other_examples_are_refused(
    lake, published, write_examples
):
    (first,) = bring(lake, published.folder)
    snapshot = lake.snapshot
    (again,) = bring(lake, published.folder)
    assert again.already
    assert (again.n_firings, again.corpus) == (first.n_firings, first.corpus)
    assert lake.snapshot == snapshot
    published.firings["activations"][0] *= 2
    write_examples(published.folder, published.tokens, published.firings)
    with pytest.raises(CoderMismatchError, match="the lake has those with xxh3"):
        bring(lake, published.folder)


def test_coders_share_a_corpus_if_their_tokens_are_the_same(
    lake, published, tmp_path, write_examples, write_coder
):
    base = tmp_path / "gemma-scope-2-test" / "mlp_out"
    same, other = (base / f"layer_{n}_width_64_l0_small" for n in (3, 4))
    write_examples(same, published.tokens, published.firings)
    write_examples(other, np.where(published.tokens == 107, 9, published.tokens), published.firings)
    names = [done.corpus for done in bring(lake, published.folder, same, other)]
    assert names == ["gemma-scope-2-test-examples"] * 2 + ["gemma-scope-2-test-examples-2"]
    with pytest.raises(CorpusExistsError, match="another one of that name"):
        bring(lake, other, corpus="gemma-scope-2-test-examples")
    (copied,) = bring(lake, published.folder, corpus="copy")
    assert copied.corpus == "copy"
    assert lake.sql("SELECT count(*) AS n FROM corpora")["n"].to_pylist() == [3]


def test_examples_need_no_weights_and_meet_them_later(
    lake, published, tmp_path, write_coder, write_examples
):
    folder = tmp_path / "gemma-scope-2-test" / "resid_post_all" / "layer_4_width_64_l0_small"
    write_examples(folder, published.tokens, published.firings)
    bring(lake, folder)
    (row,) = lake.sql("SELECT * FROM saes").to_pylist()
    assert (row["width"], row["layer"], row["digest"], row["d_in"]) == (64, 4, None, None)
    corpus = "gemma-scope-2-test-examples"
    (folder / "examples.safetensors").rename(tmp_path / "examples.safetensors")
    folder.rmdir()
    write_coder(tmp_path, folder=folder.name)
    with pytest.raises(CoderMismatchError, match="the lake has published examples of it there"):
        lake.ingest(corpus, model=tiny.MODEL_NAME, saes=[folder], device="cpu")
    (tmp_path / "a.txt").write_text("import os\n" * 30)
    lake.add_corpus("own", tmp_path / "a.txt", tokenizer=tiny.MODEL_NAME, context_length=32)
    lake.ingest("own", model=tiny.MODEL_NAME, saes=[folder], device="cpu")
    (row,) = lake.sql("SELECT * FROM saes").to_pylist()
    assert row["digest"].startswith("xxh3:")
    feature = lake.sql("SELECT feature FROM features WHERE corpus = 'own' ORDER BY firings DESC, "
                       "feature LIMIT 1")["feature"][0].as_py()  # fmt: skip
    found = lake.top_contexts(feature, layer=4, k=20)
    assert set(found.table["corpus"].to_pylist()) == {"own", corpus}
    activations = found.table["activation"].to_pylist()
    assert activations == sorted(activations, reverse=True)
    own = lake.top_contexts(feature, layer=4, corpus="own", where="kind = 'content'")
    assert own.note == ""
    assert own.table.num_rows > 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seq_ids": np.zeros((WIDTH, DEPTH), np.int32)}, "its seq_ids is I32"),
        ({"positions": np.zeros((WIDTH, 3), np.int32)}, "its positions is I32"),
        ({"feature_frequencies": np.zeros(3)}, "its feature_frequencies is F64"),
        ({"activations": np.full((WIDTH, DEPTH), np.nan, np.float32)}, "not finite"),
        ({"activations": np.full((WIDTH, DEPTH), -1, np.float32)}, "negative"),
        ({"seq_ids": np.full((WIDTH, DEPTH), 13, np.int64)}, "outside its corpus of 13 contexts"),
        ({"positions": np.full((WIDTH, DEPTH), LENGTH, np.int32)}, "outside its corpus"),
        ({"seq_ids": np.full((WIDTH, DEPTH), -1, np.int64)}, "outside its corpus"),
        ({"tokens": np.full((13, LENGTH), 4096, np.int32)}, "knows 4096 tokens"),
        ({"tokens": np.full((13, LENGTH), -2, np.int32)}, "token ids -2"),
        ({"tokens": np.ones((13, LENGTH, 1), np.int32)}, "its tokens is I32"),
    ],
)
def test_a_file_of_another_shape_is_refused_and_leaves_no_trace(
    lake, published, write_examples, changes, says
):
    write_examples(published.folder, published.tokens, published.firings, changed=changes)
    with pytest.raises(CoderFileError, match=says) as caught:
        bring(lake, published.folder)
    assert "\n" not in str(caught.value)
    assert lake.snapshot == 1
    assert not [f for f in lake.path.rglob("*.parquet") if "snapshots" not in f.parts]


@pytest.mark.parametrize("name", ["positions", "tokens", "top_logits"])
def test_a_file_that_lacks_a_tensor_is_refused(lake, published, write_examples, name):
    write_examples(published.folder, published.tokens, published.firings, drop=[name])
    with pytest.raises(CoderFileError, match=f"lacks {name}"):
        bring(lake, published.folder)


def test_a_file_that_is_cut_short_is_refused(lake, published):
    file = published.folder / "examples.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CoderFileError, match="no whole safetensors file"):
        bring(lake, published.folder)


def test_an_address_twice_is_refused(lake, published, write_examples):
    for name in ("seq_ids", "positions"):
        published.firings[name][:, 1] = published.firings[name][:, 0]
    write_examples(published.folder, published.tokens, published.firings)
    with pytest.raises(CoderFileError, match="fires twice"):
        bring(lake, published.folder)


def test_firings_on_padding_are_counted_and_left_out(lake, published, write_examples):
    column = published.columns[4][-1] + 1
    published.firings["seq_ids"][7, 0], published.firings["positions"][7, 0] = 4, column
    published.firings["activations"][7, 0] = 999.0
    write_examples(published.folder, published.tokens, published.firings)
    (done,) = bring(lake, published.folder)
    assert done.n_on_padding == 1
    rows = lake.sql("SELECT max(activation) AS m FROM peaks WHERE feature = 7")
    assert rows["m"][0].as_py() != 999.0


def test_a_file_whose_firings_are_mostly_on_padding_is_refused(lake, published, write_examples):
    positions = published.firings["positions"]
    n_bytes = sum(f.stat().st_size for f in lake.path.rglob("*") if f.is_file())
    positions[:40] = published.columns[4][-1] + 1
    published.firings["seq_ids"][:40] = 4
    write_examples(published.folder, published.tokens, published.firings)
    with pytest.raises(
        CoderFileError, match=r"of their [\d,]+ firings are on padding; the file is"
    ):
        bring(lake, published.folder)
    assert sum(f.stat().st_size for f in lake.path.rglob("*") if f.is_file()) == n_bytes


def test_a_file_whose_firings_are_out_of_order_is_refused(lake, published, write_examples):
    row = published.firings["activations"][9]
    assert row[0] > row[1] > 0
    row[0], row[1] = row[1], row[0]
    write_examples(published.folder, published.tokens, published.firings)
    with pytest.raises(CoderFileError, match="out of order, first those of feature 9; they are"):
        bring(lake, published.folder)


def test_a_row_of_padding_keeps_its_number(lake, published, write_examples):
    tokens = np.insert(published.tokens, 3, 0, axis=0)
    firings = published.firings | {
        "seq_ids": published.firings["seq_ids"] + (published.firings["seq_ids"] >= 3)
    }
    write_examples(published.folder, tokens, firings)
    bring(lake, published.folder)
    rows = lake.sql("SELECT token_ids FROM contexts ORDER BY context")["token_ids"].to_pylist()
    assert rows == [*published.rows[:3], [0], *published.rows[3:]]


def test_token_columns_may_be_absent(lake, published, write_examples):
    names = ("top_tokens", "top_logits", "bottom_tokens", "bottom_logits", "logit_effects")
    write_examples(published.folder, published.tokens, published.firings, drop=names)
    bring(lake, published.folder)
    found = lake.sql("SELECT count(top_tokens) AS n, count(density) AS d FROM features")
    assert found.to_pylist() == [{"n": 0, "d": WIDTH}]


def test_examples_of_another_coder_or_of_several_layers_are_refused(
    lake, published, tmp_path, write_examples
):
    half = {k: v[:32] for k, v in published.firings.items()}
    write_examples(published.folder, published.tokens, half)
    with pytest.raises(CoderFileError, match="32 features; the coder beside it has 64"):
        bring(lake, published.folder)
    several = tmp_path / "gemma-scope-2-test" / "clt" / "width_64_l0_big"
    write_examples(several, published.tokens, published.firings)
    with pytest.raises(CoderFileError, match="it reads several layers"):
        bring(lake, several)
    with pytest.raises(CoderFileError, match="holds no examples.safetensors"):
        bring(lake, tiny.coders_path())


def test_examples_are_not_mixed_with_own_firings(lake, published, tmp_path):
    (published.folder / "examples.safetensors").rename(tmp_path / "kept")
    other = published.folder.parent / "layer_2_width_64_l0_small"
    other.mkdir()
    (tmp_path / "kept").rename(other / "examples.safetensors")
    bring(lake, other)
    corpus = "gemma-scope-2-test-examples"
    lake.ingest(corpus, model=tiny.MODEL_NAME, saes=[published.folder], device="cpu")
    (other / "examples.safetensors").rename(published.folder / "examples.safetensors")
    with pytest.raises(InvalidArgumentError, match="the lake has its own firings on corpus"):
        bring(lake, published.folder)


def test_published_examples_that_are_damaged_are_imported_again(lake, published):
    bring(lake, published.folder)
    before = lake.sql("SELECT * FROM peaks ORDER BY ALL")
    next((lake.path / "tables" / "peaks").rglob("*.parquet")).unlink()
    done = lake.repair(lake.verify())
    assert done.n_files == 2
    assert "import-examples" in done.ingest_again[0]
    (again,) = bring(lake, published.folder)
    assert not again.already
    assert lake.sql("SELECT * FROM peaks ORDER BY ALL").equals(before)


def test_published_examples_of_a_lake_without_its_runs_are_left_alone(lake, published):
    """Nothing tells any more that they were imported: a repair takes nothing out."""
    bring(lake, published.folder)
    for file in lake._store.data_files("runs", lake._store.snapshot()):
        (lake.path / file.path).write_bytes(b"x")
    next((lake.path / "tables" / "peaks").rglob("*.parquet")).unlink()
    done = lake.repair(lake.verify())
    assert {finding.table for finding in done.beyond} == {"runs", "peaks"}
    assert done.n_files == 0


def test_a_card_says_what_the_file_says_and_no_more(lake, published):
    bring(lake, published.folder)
    feature = max(range(WIDTH), key=lambda f: len(listed(published, f)))
    card = lake.feature(feature, layer=1, coactive=True)
    (row,) = card.by_corpus.to_pylist()
    stored = lake.sql("SELECT * FROM features WHERE feature = ?", [feature]).to_pylist()[0]
    assert (row["density"], row["max"]) == (stored["density"], stored["max"])
    assert (row["firings"], row["p50"], row["histogram"]) == (None, None, None)
    assert (card.total, card.corpora, card.coactive) == (None, (), None)
    assert card.by_role.num_rows == card.by_position.num_rows == 0
    assert card.peaks.table["activation"][0].as_py() == listed(published, feature)[0][0]
    assert [r["token_id"] for r in card.tokens.to_pylist()[:10]] == stored["top_tokens"]
    assert any("published examples only" in note for note in card.notes)
    assert "published examples only" in card.to_text()
    assert card._repr_html_()
