"""Ingests that do not keep all firings: what is exact, what is refused, what is said."""

import json
from contextlib import suppress

import pytest

import scopelake
from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import CoderMismatchError, InvalidArgumentError, PartialWarning, QueryError
from scopelake.store.keeping import KEEP_ALL, Keep, parse_keep

SAE = "gemma-scope-2-tiny/resid_post_all/layer_3_width_1024_l0_small"
N_DOCUMENTS = 60
ASKED = {"model": tiny.MODEL_NAME, "saes": [SAE], "device": "cpu"}


def make_lake(folder, **cut):
    folder.mkdir()
    lines = [
        json.dumps({"id": f"d{i}", "text": f"def depth_{i}(lake):\n    return lake[{i}] * {i}\n"})
        for i in range(N_DOCUMENTS)
    ]
    (folder / "text.jsonl").write_text("\n".join(lines))
    lake = scopelake.create(folder / "lake")
    lake.add_corpus("text", folder / "text.jsonl", tokenizer=tiny.MODEL_NAME, context_length=32,
                    shard_contexts=16, **cut)  # fmt: skip
    return lake


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    lake = make_lake(tmp_path_factory.mktemp("whole") / "lake")
    lake.ingest("text", **ASKED)
    return lake


@pytest.fixture(scope="module", params=["peaks", "sample:0.3"])
def kept(request, tmp_path_factory):
    lake = make_lake(tmp_path_factory.mktemp("kept") / "lake")
    lake.ingest("text", keep=request.param, **ASKED)
    return lake, parse_keep(request.param)


def test_info_says_what_was_kept(whole, kept):
    lake, keep = kept
    (codes,) = lake.info().codes
    assert codes.keep == str(keep)
    assert f"firings kept (keep={keep})" in lake.info().to_text()
    assert set(codes.bytes_a_firing().values()) == {None}
    assert [c.keep for c in whole.info().codes] == ["all"]
    assert "kept" not in whole.info().to_text()


@pytest.mark.parametrize("text", ["all", "peaks", "sample:0.01"])
def test_what_is_kept_reads_as_it_is_written(text):
    assert str(parse_keep(text)) == text


@pytest.mark.parametrize("text", ["", "some", "sample:", "sample:0", "sample:1", "sample:x", None])
def test_what_keeps_nothing_known_is_refused(text):
    with pytest.raises(InvalidArgumentError, match="give 'all', 'peaks' or 'sample:<share>'"):
        parse_keep(text)


def test_a_share_is_of_documents_and_the_same_everywhere():
    names = [f"document-{i}" for i in range(20_000)]
    n_small = sum(Keep(0.01).has(name) for name in names)
    assert 140 < n_small < 260  # 200 expected, deviation 14
    assert all(Keep(0.5).has(name) for name in names if Keep(0.01).has(name))
    assert KEEP_ALL.is_all


def test_statistics_peaks_and_samples_are_those_of_all_firings(whole, kept):
    lake, _ = kept
    exact = "feature, firings, density, max, histogram, n_tokens, decoder_norm, top_tokens"
    query = f"SELECT {exact} FROM features ORDER BY feature"
    assert lake.sql(query) == whole.sql(query)
    query = "SELECT mean FROM features WHERE firings > 0 ORDER BY feature"
    means = (one.sql(query)["mean"].to_pylist() for one in (lake, whole))
    for mine, theirs in zip(*means, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)
    for table in ("peaks", "samples"):
        query = f"SELECT * FROM {table} ORDER BY ALL"
        assert lake.sql(query) == whole.sql(query)
    busiest = lake.sql("SELECT feature FROM features ORDER BY firings DESC LIMIT 3")
    for feature in busiest["feature"].to_pylist():
        columns = ["context", "position", "activation", "document"]
        found, expected = (one.top_contexts(feature, layer=3) for one in (lake, whole))
        assert found.table.select(columns) == expected.table.select(columns)
        assert "peaks only, the 256 strongest contexts" in found.note


def test_firings_are_those_of_the_sampled_documents(whole, kept):
    lake, keep = kept
    names = [f"d{i}" for i in range(N_DOCUMENTS) if keep.has(f"d{i}")]
    assert bool(names) == (keep.share > 0)
    listed = ", ".join(f"'{name}'" for name in names) or "''"
    for view in ("codes", "postings"):
        order = "ORDER BY context, position, feature"
        with pytest.warns(PartialWarning, match="do not have all firings"):
            mine = lake.sql(f"SELECT * FROM {view} {order}")
        theirs = whole.sql(
            f"SELECT {view}.* FROM {view} JOIN contexts USING (corpus, context) "
            f"WHERE document IN ({listed}) {order}"
        )
        assert mine == theirs


def test_what_was_not_kept_is_refused_and_what_was_is_answered(whole, kept):
    lake, keep = kept
    documents = lake.sql("SELECT context, document FROM contexts ORDER BY context").to_pylist()
    for row in documents[:12]:
        if keep.has(row["document"]):
            found = lake.features_at(row["context"], sae=SAE).table
            assert found == whole.features_at(row["context"], sae=SAE).table
        else:
            with pytest.raises(QueryError, match="not all its firings are known .peaks only"):
                lake.features_at(row["context"], sae=SAE)
            with pytest.raises(QueryError, match="of no SAE all firings are known"):
                lake.features_at(row["context"])
    for options in ({"where": "role = 'user'"}, {"bos": True}, {"k": 257}):
        with pytest.raises(QueryError, match="not all firings of .* are known"):
            lake.top_contexts(1, layer=3, **options)


@pytest.mark.filterwarnings("ignore::scopelake.errors.PartialWarning")
def test_macros_answer_what_is_known_as_the_verbs_do(whole, kept):
    lake, keep = kept
    for feature in lake.sql("SELECT feature FROM features ORDER BY firings DESC LIMIT 3")[0]:
        for k in (1, 20, 256):
            query = f"FROM top_contexts(3, {feature}, k := {k}, around := 4)"
            verb = lake.top_contexts(feature.as_py(), layer=3, k=k, window=4).table.to_pylist()
            found = lake.sql(query).to_pylist()
            assert [{**row, "sae": found[0]["sae"]} for row in verb] == found
    with pytest.raises(QueryError, match="k=257 were asked for; on corpus 'text' not all"):
        lake.sql("FROM top_contexts(3, 1, k := 257)")
    with pytest.raises(QueryError, match="on corpus 'text' not all are in the lake"):
        lake.sql("FROM coactive('layer_3_width_1024_l0_small', 1)")
    with pytest.raises(QueryError, match="not all are in the lake"):
        lake.codes(layer=3)
    documents = lake.sql("SELECT context, document FROM contexts ORDER BY context LIMIT 12")
    for row in documents.to_pylist():
        query = f"FROM features_at({row['context']}, NULL)"
        if keep.has(row["document"]):
            assert lake.sql(query) == lake.features_at(row["context"]).table
            assert lake.sql(query) == whole.sql(query)
        else:
            with pytest.raises(QueryError, match="of no SAE that was meant the firings"):
                lake.sql(query)


@pytest.mark.parametrize("macro", ["features_at(0, NULL)", "top_contexts(3, 1)"])
def test_a_macro_over_what_is_not_whole_warns(kept, macro):
    lake, _ = kept
    with pytest.warns(PartialWarning, match="do not have all firings"), suppress(QueryError):
        lake.sql(f"FROM {macro}")


def test_asking_again_otherwise_is_refused_and_the_same_is_done(kept):
    lake, keep = kept
    before = lake.snapshot
    for other in {"all", "peaks", "sample:0.3"} - {str(keep)}:
        with pytest.raises(CoderMismatchError, match="one choice of what is kept on a corpus"):
            lake.ingest("text", keep=other, **ASKED)
    assert lake.ingest("text", keep=str(keep), **ASKED).already_complete
    assert lake.snapshot == before


def test_compacted_mended_and_resumed_it_says_the_same(tmp_path, whole):
    lake = make_lake(tmp_path / "lake")
    lake.ingest("text", keep="peaks", **ASKED)
    query = "SELECT * FROM features ORDER BY feature"
    before, peaks = lake.sql(query), lake.sql("SELECT * FROM peaks ORDER BY ALL")
    lake.compact()
    n_files = lake.sql("SELECT count(*) AS n FROM files WHERE kind = 'tallies'")["n"][0].as_py()
    assert n_files == 1
    assert lake.sql("SELECT * FROM peaks ORDER BY ALL") == peaks
    assert "peaks only" in lake.top_contexts(1, layer=3).note
    path = lake.sql("SELECT path FROM files WHERE kind = 'tallies'")["path"][0].as_py()
    damaged = lake.path / path
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    repair = lake.repair(lake.verify())
    assert repair.ingest_again == (f"all shards of text: {SAE}",)
    lake.ingest("text", keep="peaks", **ASKED)
    assert lake.sql(query) == before
    assert lake.verify().broken == ()


def test_the_command_line_keeps_and_warns_in_one_line(tmp_path, capsys):
    lake = make_lake(tmp_path / "lake")
    asked = ["ingest", str(lake.path), "text", "--model", tiny.MODEL_NAME, "--device", "cpu",
             "--sae", SAE]  # fmt: skip
    assert main([*asked, "--keep", "some"]) == 2
    assert "--keep some was asked for" in capsys.readouterr().err
    assert main([*asked, "--keep", "peaks"]) == 0
    assert main(["sql", str(lake.path), "SELECT count(*) FROM codes"]) == 0
    assert "warning: codes and postings do not have all firings" in capsys.readouterr().err


def test_encoding_what_is_stored_keeps_as_little(tmp_path):
    lake = make_lake(tmp_path / "lake")
    lake.ingest("text", **{**ASKED, "saes": []}, dense=["resid_post/3"])
    lake.encode("text", saes=[SAE], keep="peaks", device="cpu")
    assert lake.sql("SELECT sum(firings) AS n FROM features")["n"][0].as_py() > 0
    with pytest.warns(PartialWarning):
        assert lake.sql("SELECT count(*) AS n FROM codes")["n"][0].as_py() == 0


def test_of_packed_contexts_the_first_document_decides(tmp_path):
    lake = make_lake(tmp_path / "lake", packing=True)
    lake.ingest("text", keep="sample:0.3", **ASKED)
    rows = lake.sql("SELECT context, documents FROM contexts ORDER BY context").to_pylist()
    keep = parse_keep("sample:0.3")
    kept = {row["context"] for row in rows if keep.has(row["documents"][0]["document"])}
    assert 0 < len(kept) < len(rows)
    with pytest.warns(PartialWarning):
        found = set(lake.sql("SELECT DISTINCT context FROM codes")["context"].to_pylist())
    assert found == kept
    for row in rows[:8]:
        if row["context"] in kept:
            assert len(lake.features_at(row["context"], sae=SAE).table)
        else:
            with pytest.raises(QueryError, match="not all its firings are known"):
                lake.features_at(row["context"], sae=SAE)
