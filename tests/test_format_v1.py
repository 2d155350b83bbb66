"""A lake that an earlier version wrote stays readable, by this package and by others."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest

import scopelake

DATA = Path(__file__).resolve().parent / "data" / "format-v1"
STORED_ERROR = 2.0**-11
"""Ten mantissa bits, rounded to nearest."""


@pytest.fixture(scope="module")
def lake():
    return scopelake.open(DATA / "lake")


@pytest.fixture(scope="module")
def expected():
    return json.loads((DATA / "expected.json").read_text())


@pytest.fixture(scope="module")
def firings(expected):
    """{(corpus, context, position, feature): activation}"""
    return {
        (c["corpus"], c["context"], position, feature): value
        for c in expected["contexts"]
        for position, feature, value in c["firings"]
    }


def check_firings(rows, firings):
    found = {(r["corpus"], r["context"], r["position"], r["feature"]): r["activation"]
             for r in rows}  # fmt: skip
    assert len(found) == len(rows)
    assert found.keys() == firings.keys()
    for key, value in firings.items():
        # The same float32 sums in another order differ by far less than the stored precision.
        assert found[key] == pytest.approx(value, rel=STORED_ERROR + 1e-4)


@pytest.mark.parametrize("table", ["codes", "postings"])
def test_both_orders_hold_every_firing(lake, firings, table):
    check_firings(lake.sql(f"SELECT * FROM {table}").to_pylist(), firings)


def test_the_queries_answer(lake, expected, firings):
    feature = max(firings, key=lambda key: firings[key] * (key[2] > 0))[3]
    strongest = {}
    for (corpus, context, position, one), value in firings.items():
        if one == feature and position > 0:
            key = (corpus, context)
            strongest[key] = max(strongest.get(key, 0.0), value)
    top = lake.top_contexts(feature, layer=1, k=100).to_pandas()
    order = sorted(strongest, key=lambda key: -strongest[key])
    assert list(zip(top["corpus"], top["context"], strict=True)) == order
    here = lake.features_at(0, 3, corpus="lake").table.to_pylist()
    assert {r["feature"] for r in here} == {key[3] for key in firings if key[:3] == ("lake", 0, 3)}
    first = lake.sql("SELECT text FROM contexts WHERE corpus = 'lake' AND context = 0")
    assert first["text"][0].as_py().startswith("A lake keeps what the rivers bring.")
    roles = lake.sql("SELECT DISTINCT role FROM tokens WHERE corpus = 'chats' ORDER BY ALL")
    assert roles["role"].to_pylist() == ["model", "none", "user"]
    assert lake.info().firings == len(firings)


def test_dense_activations_have_the_norms_of_the_model(lake, expected):
    for context in expected["contexts"]:
        array = lake.activations(1, corpus=context["corpus"])
        stored = np.asarray(array[context["context"]]).astype(np.float32)
        norms = np.linalg.norm(stored[: len(context["norms"])], axis=1)
        np.testing.assert_allclose(norms, context["norms"], rtol=2.0**-8)


def test_every_snapshot_opens(lake):
    before = [scopelake.open(lake.path, i).info().firings for i in range(1, lake.snapshot + 1)]
    assert before == sorted(before)
    assert before[0] == 0
    with pytest.raises(scopelake.errors.InvalidArgumentError):
        scopelake.open(lake.path, 2).add_corpus("x", "x.txt", tokenizer="scopelake/gemma-3-tiny")


def test_it_can_be_written_on(tmp_path, firings):
    shutil.copytree(DATA / "lake", tmp_path / "lake")
    shutil.rmtree(tmp_path / "lake" / "pending", ignore_errors=True)
    lake = scopelake.open(tmp_path / "lake")
    (tmp_path / "more.txt").write_text("More rain fell on the hills than in any year before.\n")
    lake.add_corpus("more", tmp_path / "more.txt", tokenizer="scopelake/gemma-3-tiny")
    assert lake.sql("SELECT corpus FROM corpora ORDER BY ALL")["corpus"].to_pylist() == [
        "chats", "lake", "more",
    ]  # fmt: skip
    check_firings(lake.sql("SELECT * FROM codes").to_pylist(), firings)


def test_duckdb_alone_reads_the_firings(firings):
    import duckdb
    import duckdb_extensions

    duckdb_extensions.import_extension("delta")
    with duckdb.connect() as db:
        table = db.execute(
            "SELECT * FROM delta_scan($1)", [str(DATA / "lake" / "tables" / "codes")]
        ).to_arrow_table()
    check_firings(table.to_pylist(), firings)


def test_polars_reads_the_firings(firings):
    import polars as pl

    table = pl.read_delta(str(DATA / "lake" / "tables" / "postings")).to_arrow()
    assert set(table["sae"].cast(pa.string()).to_pylist()) == {
        "gemma-scope-2-tiny/resid_post_all/layer_1_width_1024_l0_small"
    }
    check_firings(table.to_pylist(), firings)


def test_zarr_and_tensorstore_read_the_activations(lake, expected):
    import tensorstore as ts
    import zarr

    for corpus in ("lake", "chats"):
        stored = np.asarray(lake.activations(1, corpus=corpus)[:]).view(np.uint16)
        path = "activations/" + next(
            p.relative_to(DATA / "lake" / "activations").as_posix()
            for p in (DATA / "lake" / "activations" / corpus).rglob("layer_1")
        )
        array = ts.open(
            {"driver": "zarr3", "kvstore": f"file://{DATA / 'lake'}/{path}/"}, read=True
        ).result()
        assert array.dtype == ts.bfloat16
        theirs = array.read().result()
        assert theirs.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(theirs.view(np.uint16), stored)
        plain = zarr.open_array(DATA / "lake" / path, mode="r")
        np.testing.assert_array_equal(np.asarray(plain[:]).view(np.uint16), stored)


def test_a_first_write_makes_it_version_4_with_samples(tmp_path):
    """Also when a commit of version 1 waits; older snapshots stay as they were."""
    from scopelake.store.commit import Writer
    from scopelake.store.lake_store import LakeStore
    from scopelake.store.verify import verify

    path = shutil.copytree(DATA / "lake", tmp_path / "lake")
    store = LakeStore.open(path)
    before = store.snapshot()
    assert store.is_older()
    with Writer(store, on_step=_stop_at_pending) as writer, pytest.raises(InterruptedError):
        writer.commit([], transaction="a", reason="first")
    with Writer(store) as writer:
        writer.commit([], transaction="b", reason="second")
        writer.commit([], transaction="c", reason="third")
    assert json.loads((path / "lake.json").read_text())["format_version"] == 4
    lake = scopelake.open(path)
    rows = lake.sql("""
        SELECT count(*) AS samples, count(DISTINCT (corpus, feature)) AS features FROM samples
    """).to_pylist()
    fired = lake.sql("SELECT count(*) AS n FROM features WHERE firings > 0")["n"][0].as_py()
    assert rows[0]["features"] == fired
    assert rows[0]["samples"] > fired
    reasons = store.snapshots()["reason"].to_pylist()[before.id :]
    assert sorted(reasons) == ["samples of a lake of version 1", "second", "third"]
    assert verify(store, store.snapshot()).broken == ()
    assert scopelake.open(path, before.id).sql("SELECT * FROM samples").num_rows == 0


def _stop_at_pending(step):
    if step == "pending":
        raise InterruptedError
