"""Nearest features: the tiled search against an oracle, and what of it comes into a lake."""

import numpy as np
import pytest
import torch

import scopelake
from scopelake import tiny
from scopelake.errors import (
    CoderFileError,
    CoderMismatchError,
    InvalidArgumentError,
    LakeBusyError,
    SaeNotFoundError,
)
from scopelake.ingest.coders import read_coder
from scopelake.ingest.nearest import Sizes, nearest, nearest_plain
from scopelake.ingest.neighbors import add_neighbors, incomparable

CPU = torch.device("cpu")
RESID = "gemma-scope-2-tiny/resid_post_all/"
FIRST, SECOND = (f"{RESID}layer_{n}_width_1024_l0_small" for n in (1, 2))
SIZES = {"all at once": Sizes(), "one by one": Sizes(1, 1), "uneven": Sizes(4 * 4 * 7, 50)}


def oracle(rows, others, k, *, is_same):
    """{feature: [(other, cosine)]} in float64, written out; of equal cosines the lower first."""
    found = {}
    for i, row in enumerate(rows.astype(np.float64)):
        cosines = []
        for j, other in enumerate(others.astype(np.float64)):
            lengths = np.sqrt((row**2).sum()) * np.sqrt((other**2).sum())
            if lengths > 0 and not (is_same and i == j):
                cosines.append((round(float(row @ other / lengths), 6), j))
        ordered = sorted(cosines, key=lambda pair: (-pair[0], pair[1]))[:k]
        if ordered:
            found[i] = [(j, cosine) for cosine, j in ordered]
    return found


def grouped(table):
    found = {}
    for row in table.to_pylist():
        mine = found.setdefault(row["feature"], [])
        assert row["rank"] == len(mine)
        mine.append((row["other_feature"], round(row["cosine"], 6)))
    return found


def axes(n, seed):
    """Rows along the axes of 4 dimensions, of any length: cosines are exact, with many ties."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((n, 4), np.float32)
    rows[np.arange(n), rng.integers(0, 4, n)] = rng.choice([-3.0, 0.5, 2.0, 1e30, 1e-30], n)
    rows[::7] = 0.0
    return rows


def make(write_coder, tmp_path, rows, layer=1):
    """A coder with these rows as its decoder."""
    n, d = rows.shape
    return read_coder(
        write_coder(
            tmp_path, folder=f"layer_{layer}_width_{n}_l0_small", d_in=d, width=n,
            w_dec=torch.from_numpy(rows),
        )
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::scopelake.errors.CoderWarning")
@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
@pytest.mark.parametrize("k", [1, 3, 200])
def test_tiles_plain_and_oracle_agree_with_ties_and_zero_rows(tmp_path, write_coder, sizes, k):
    rows, others = axes(40, 1), axes(23, 2)
    one, other = make(write_coder, tmp_path, rows), make(write_coder, tmp_path, others, layer=2)
    for coder, theirs, is_same in ((other, others, False), (one, rows, True)):
        expected = oracle(rows, theirs, k, is_same=is_same)
        found = nearest(one, coder, k, CPU, sizes=sizes)
        assert found == nearest_plain(rows, theirs, k, is_same=is_same)
        assert grouped(found) == expected
        assert 0 not in expected


@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
def test_rows_in_any_direction(tmp_path, write_coder, sizes):
    rng = np.random.default_rng(1)
    rows, others = (rng.normal(size=(n, 16)).astype(np.float32) for n in (50, 33))
    one, other = make(write_coder, tmp_path, rows), make(write_coder, tmp_path, others, layer=2)
    found = grouped(nearest(one, other, 5, CPU, sizes=sizes))
    expected = oracle(rows, others, 5, is_same=False)
    assert {f: [j for j, _ in pairs] for f, pairs in found.items()} == {
        f: [j for j, _ in pairs] for f, pairs in expected.items()
    }
    for feature, pairs in found.items():
        np.testing.assert_allclose(
            [c for _, c in pairs], [c for _, c in expected[feature]], atol=2e-6
        )


def test_a_copy_has_cosine_one_and_progress_is_told(tmp_path, write_coder):
    rows = np.random.default_rng(3).normal(size=(30, 8)).astype(np.float32)
    one, other = make(write_coder, tmp_path, rows), make(write_coder, tmp_path, rows * 7, layer=2)
    told = []
    found = nearest(one, other, 1, CPU, told.append, Sizes(8 * 4 * 8, 64))
    assert found["other_feature"].to_pylist() == list(range(30))
    assert max(found["cosine"].to_pylist()) <= 1.0
    assert min(found["cosine"].to_pylist()) > 1 - 1e-6
    assert told == [8, 16, 24, 30]


def test_a_coder_of_one_feature_has_no_neighbors_of_its_own(tmp_path, write_coder):
    one = make(write_coder, tmp_path, np.ones((1, 4), np.float32))
    assert nearest(one, one, 3, CPU).num_rows == 0


def test_what_is_not_finite_is_refused(tmp_path, write_coder):
    rows = np.ones((4, 4), np.float32)
    rows[2, 1] = np.nan
    one = make(write_coder, tmp_path, rows)
    with pytest.raises(CoderFileError, match="w_dec that is not finite"):
        nearest(one, one, 3, CPU)


@pytest.mark.parametrize("type_", ["crosscoder", "clt"])
def test_directions_of_several_layers(tmp_path, write_multi_layer, type_):
    """Of a crosscoder the row of the last layer, of a CLT the sum over layers."""
    from safetensors.numpy import load_file

    family = {"crosscoder": "crosscoder", "clt": "clt"}[type_]
    folder = {"crosscoder": "layer_0_1_2_width_48_l0_medium", "clt": "width_48_l0_medium"}[type_]
    path = write_multi_layer(tmp_path, family, folder, n_layers=3)
    coder = read_coder(path)
    w_dec = np.concatenate(
        [load_file(path / f"params_layer_{i}.safetensors")["w_dec"] for i in range(3)]
    )
    directions = w_dec[:, -1] if type_ == "crosscoder" else w_dec.sum(axis=1)
    found = grouped(nearest(coder, coder, 4, CPU))
    expected = oracle(directions, directions, 4, is_same=True)
    assert {f: [j for j, _ in p] for f, p in found.items()} == {
        f: [j for j, _ in p] for f, p in expected.items()
    }


def test_spaces_that_can_be_compared(tmp_path, write_coder):
    def coder(family, layer, model="google/gemma-3-1b-pt", d=8):
        folder = f"layer_{layer}_width_4_l0_small"
        config = {"model_name": model}
        path = write_coder(tmp_path / f"{model.replace('/', '_')}{d}", family, folder, d_in=d,
                           width=4, config=config)  # fmt: skip
        return read_coder(path)

    resid, mlp, heads = (coder(f, 1) for f in ("resid_post", "mlp_out", "attn_out"))
    other_heads = coder("attn_out", 2)
    assert incomparable(resid, mlp) is None
    assert incomparable(heads, heads) is None
    assert "not the same space" in incomparable(heads, other_heads)
    assert "the residual stream" in incomparable(resid, heads)
    assert incomparable(resid, coder("resid_post", 1, "google/gemma-3-1b-it")) is None
    assert "gemma-3-4b" in incomparable(resid, coder("resid_post", 1, "google/gemma-3-4b-pt"))
    assert "8 values and the other 16" in incomparable(resid, coder("mlp_out", 1, d=16))


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    folder = tmp_path_factory.mktemp("neighbors")
    (folder / "a.txt").write_text("import os\n\nprint(os.environ['HOME'])\n" * 3)
    lake = scopelake.create(folder / "lake")
    lake.add_corpus("a", folder / "a.txt", tokenizer=tiny.MODEL_NAME, context_length=32)
    lake.ingest("a", model=tiny.MODEL_NAME, saes=[FIRST, SECOND], device="cpu")
    return lake


@pytest.fixture
def lake(ingested, tmp_path):
    import shutil

    return scopelake.open(shutil.copytree(ingested.path, tmp_path / "lake"))


def decoder(name):
    from safetensors.numpy import load_file

    path = tiny.coders_path() / name.removeprefix("gemma-scope-2-tiny/") / "params.safetensors"
    return load_file(path)["w_dec"]


def test_pairs_come_into_the_lake_once(lake):
    done = lake.add_neighbors([FIRST, SECOND], k=3, device="cpu")
    assert (done.n_pairs, done.n_already, done.n_rows) == (4, 0, 4 * 1024 * 3)
    expected = oracle(decoder(FIRST)[:20], decoder(SECOND), 3, is_same=False)
    rows = lake.sql(
        "SELECT feature, rank, other_feature, cosine FROM neighbors WHERE sae = ? AND "
        "other_sae = ? AND feature < 20 ORDER BY feature, rank", [FIRST, SECOND],
    )  # fmt: skip
    found = grouped(rows)
    assert {f: [j for j, _ in p] for f, p in found.items()} == {
        f: [j for j, _ in p] for f, p in expected.items()
    }
    snapshot = lake.snapshot
    again = lake.add_neighbors([FIRST, SECOND], k=2, device="cpu")
    assert (again.n_pairs, again.n_already, lake.snapshot) == (0, 4, snapshot)
    assert lake.verify().is_whole
    assert lake.info().to_text()
    files = lake.sql("SELECT n_rows FROM files WHERE kind = 'neighbors'")["n_rows"].to_pylist()
    assert files == [3072] * 4
    lake.compact()
    assert lake.sql("SELECT * FROM neighbors").num_rows == 4 * 3072
    assert lake.verify().is_whole


def test_more_neighbors_replace_fewer_and_older_snapshots_keep_them(lake):
    lake.add_neighbors(FIRST, k=2, device="cpu")
    before = lake.snapshot
    assert lake.add_neighbors(FIRST, others=[FIRST, SECOND], k=4, device="cpu").n_pairs == 2
    count = "SELECT count(*) AS n FROM neighbors WHERE sae = other_sae"
    assert lake.sql(count)["n"][0].as_py() == 4096
    old = scopelake.open(lake.path, before)
    assert old.sql(count)["n"][0].as_py() == 2048
    assert lake.verify(all_snapshots=True).is_whole
    lake.vacuum(None)
    assert lake.sql(count)["n"][0].as_py() == 4096
    assert lake.verify().is_whole


def test_a_killed_call_keeps_what_it_committed_and_goes_on(lake, monkeypatch):
    from scopelake.ingest import neighbors

    monkeypatch.setattr(neighbors, "_SECONDS", -1.0)

    def stop(what, done, of):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lake.add_neighbors([FIRST, SECOND], k=2, device="cpu", progress=stop)
    done = lake.add_neighbors([FIRST, SECOND], k=2, device="cpu")
    assert (done.n_pairs, done.n_already) == (2, 2)
    rows = lake.sql("SELECT count(*) AS n, count(DISTINCT (sae, other_sae, feature, rank)) AS d "
                    "FROM neighbors").to_pylist()[0]  # fmt: skip
    assert rows == {"n": 4 * 2048, "d": 4 * 2048}


@pytest.mark.parametrize("what", ["progress", "busy"])
def test_files_that_come_into_no_lake_are_deleted(lake, monkeypatch, what):
    from scopelake.store.commit import Writer

    def fail(*_):
        raise KeyError("mine")

    if what == "busy":

        def others_first(self, number, commit, latest):
            return False

        monkeypatch.setattr(Writer, "_decide", others_first)
        monkeypatch.setattr("scopelake.store.commit._MOST_TRIES", 3)
    error, progress = (LakeBusyError, None) if what == "busy" else (KeyError, fail)
    with pytest.raises(error):
        lake.add_neighbors([FIRST, SECOND], k=2, device="cpu", progress=progress)
    monkeypatch.undo()
    assert not list(lake.path.glob("tables/neighbors/**/*.parquet"))
    assert not lake.verify().left_over


@pytest.mark.parametrize(("k", "stays"), [(2, 2), (5, 5)])
def test_another_writer_that_was_first_is_believed_if_it_has_as_many(lake, monkeypatch, k, stays):
    from scopelake.ingest import neighbors

    coders = [read_coder(tiny.coders_path() / FIRST.removeprefix("gemma-scope-2-tiny/"))]
    store, plain = lake._store, neighbors.nearest

    def late(*args):
        """While this call computes, another one commits."""
        monkeypatch.setattr(neighbors, "nearest", plain)
        add_neighbors(store, coders, None, 2, CPU)
        return plain(*args)

    monkeypatch.setattr(neighbors, "nearest", late)
    add_neighbors(store, coders, None, k, CPU)
    lake.refresh()
    rows = lake.sql("SELECT count(*) AS n, max(rank) AS r FROM neighbors").to_pylist()[0]
    assert rows == {"n": 1024 * stays, "r": stays - 1}
    assert not lake.verify().left_over


def test_damage_is_taken_out_and_made_again(lake):
    lake.add_neighbors([FIRST, SECOND], k=2, device="cpu")
    path = lake.sql("SELECT path FROM files WHERE kind = 'neighbors' ORDER BY path")["path"][
        0
    ].as_py()
    (lake.path / path).write_bytes(b"x")
    found = scopelake.open(lake.path).verify()
    assert [f.path for f in found.broken] == [path]
    mended = lake.repair(found)
    assert mended.ingest_again == (f"neighbors of {found.broken[0].sae} (add-neighbors)",)
    assert lake.verify().is_whole
    assert lake.add_neighbors([FIRST, SECOND], k=2, device="cpu").n_pairs == 1


@pytest.mark.parametrize("k", [0, -1, 1025])
def test_a_k_out_of_range_is_refused(lake, k):
    with pytest.raises(InvalidArgumentError, match=rf"k={k} neighbors"):
        lake.add_neighbors(FIRST, k=k)


def test_coders_that_do_not_belong_are_refused(lake, tmp_path, write_coder):
    snapshot = lake.snapshot
    with pytest.raises(SaeNotFoundError, match="ingest them, or import"):
        lake.add_neighbors(f"{RESID}layer_3_width_1024_l0_small", device="cpu")
    heads = "gemma-scope-2-tiny/attn_out_all/layer_3_width_512_l0_small"
    with pytest.raises(CoderMismatchError, match="are not the same space; name others"):
        lake.add_neighbors(FIRST, others=heads, device="cpu")
    other = write_coder(tmp_path, folder="layer_1_width_1024_l0_small", width=1024)
    renamed = tmp_path / "gemma-scope-2-tiny" / "resid_post_all"
    renamed.parent.mkdir()
    other.parent.rename(renamed)
    with pytest.raises(CoderMismatchError, match="must not be mixed"):
        lake.add_neighbors(renamed, device="cpu")
    assert lake.snapshot == snapshot == scopelake.open(lake.path).snapshot


def test_pairs_that_cannot_be_compared_are_said(lake):
    heads = "gemma-scope-2-tiny/attn_out_all/layer_3_width_512_l0_small"
    lake.ingest("a", model=tiny.MODEL_NAME, saes=heads, device="cpu")
    done = lake.add_neighbors([FIRST, heads], k=1, device="cpu")
    assert done.n_pairs == 2
    (why,) = done.left_out
    assert "2 pairs" in why
    assert "the attention heads of layer 3" in str(done)


def test_encoder_norms_are_in_the_features(ingested, tmp_path, write_multi_layer):
    from safetensors.numpy import load_file

    from scopelake.ingest.encoder_norms import encoder_norms

    path = tiny.coders_path() / FIRST.removeprefix("gemma-scope-2-tiny/") / "params.safetensors"
    expected = np.linalg.norm(load_file(path)["w_enc"].astype(np.float64), axis=0)
    rows = ingested.sql("SELECT encoder_norm FROM features WHERE sae = ? ORDER BY feature", [FIRST])
    np.testing.assert_allclose(rows["encoder_norm"].to_numpy(), expected, rtol=1e-6)
    folder = write_multi_layer(tmp_path, "clt", "width_48_l0_medium", n_layers=3)
    parts = [load_file(folder / f"params_layer_{i}.safetensors")["w_enc"] for i in range(3)]
    expected = np.concatenate([np.linalg.norm(w.astype(np.float64), axis=0) for w in parts])
    np.testing.assert_allclose(encoder_norms(read_coder(folder), CPU), expected, rtol=1e-6)
