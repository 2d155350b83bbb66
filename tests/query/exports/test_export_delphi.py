"""delphi caches against rows that the tests know, read by the documented schema."""

import json
import shutil
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from scopelake.errors import (
    InvalidArgumentError,
)
from scopelake.query.connect import connect
from scopelake.query.export import (
    export,
)
from scopelake.query.export_source import ExportSource
from scopelake.query.exporter import ExportOptions
from scopelake.store.commit import Writer
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.writer import write_firings

LENGTH = WIDTH = 12
HALF = "gs-2/resid_post/half"
SILENT = 11


def read_delphi(folder):
    """By feature and row the activation at each position; the tokens; types of activations."""
    (module,) = (folder / "latents").iterdir()
    found = defaultdict(lambda: defaultdict(dict))
    tokens, types, names = None, [], []
    for path in sorted(module.glob("*.safetensors"), key=lambda p: int(p.stem.split("_")[0])):
        first = int(path.stem.split("_")[0])
        names.append(path.stem)
        split = load_file(path)
        for where, activation in zip(
            split["locations"].tolist(), split["activations"].tolist(), strict=True
        ):
            row, position, feature = where
            assert position not in found[first + feature][row]
            found[first + feature][row][position] = activation
        assert tokens is None or (tokens == split["tokens"]).all()
        tokens = split["tokens"]
        types.append(split["activations"].dtype.name)
    return {f: dict(rows) for f, rows in found.items()}, tokens, types, names


@pytest.mark.parametrize("corpus", ["plain", "chats"])
@pytest.mark.parametrize("features", [None, [0, 3, SILENT], [4]])
def test_a_delphi_cache_has_every_firing_and_token(known, source_of, tmp_path, corpus, features):
    done = export(source_of(corpus, features), "delphi", tmp_path / "out", ExportOptions())
    found, tokens, types, names = read_delphi(tmp_path / "out")
    oracle = known.expected(corpus, features)
    listing = pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    row_of = {r["context"]: r["row"] for r in listing}
    assert {f: {row_of[c]: at for c, at in cs.items()} for f, cs in oracle.items()} == found
    assert done.n_firings == sum(len(at) for cs in oracle.values() for at in cs.values())
    contexts = known.of_corpus(corpus)
    assert tokens.shape == (len(contexts), LENGTH)
    pieces = known.store.read("contexts", known.snapshot, filters=[("corpus", "=", corpus)])
    for row in pieces.to_pylist():
        ids = row["token_ids"]
        assert tokens[row_of[row["context"]]].tolist() == ids + [0] * (LENGTH - len(ids))
    # The corpus has activations of 70,000, which float16 has not.
    assert set(types) == {"float32"}
    edges = [tuple(map(int, name.split("_"))) for name in names]
    assert edges[0][0] == 0
    assert edges[-1][1] == WIDTH - 1
    assert all(a[1] + 1 == b[0] for a, b in zip(edges, edges[1:], strict=False))
    padded = sum(len(c.pieces) < LENGTH for c in contexts)
    assert any(f"{padded} of {len(contexts)} contexts are shorter" in s for s in done.left_out)


def test_delphi_splits_are_as_many_as_asked_but_none_is_empty(source_of, tmp_path):
    def names(number, features, n):
        folder = tmp_path / str(number)
        export(source_of("chats", features), "delphi", folder, ExportOptions(n_splits=n))
        return read_delphi(folder)[3]

    assert names(1, None, 3) == ["0_3", "4_7", "8_11"]
    assert names(2, None, 12) == [f"{i}_{i}" for i in range(10)] + ["10_11"]
    assert names(3, [5], 4) == ["0_11"]
    assert names(4, [0, 10], 4) == ["0_2", "3_11"]
    assert names(5, None, 1) == ["0_11"]
    with pytest.raises(InvalidArgumentError, match="has 12 features; give at most as many"):
        names(6, None, 13)
    with pytest.raises(InvalidArgumentError, match="none of the features fires"):
        names(7, [SILENT], 1)


def test_delphi_halves_are_exact_where_they_can_be_and_say_where_not(known, tmp_path):
    store = LakeStore.open(shutil.copytree(known.store.root.url, tmp_path / "lake"))
    values = np.array([1.0, 1 / 3, 65504.0, 2.0**-15, 1.0], np.float32)
    firings = Firings(
        np.arange(5), np.ones(5, np.int32), np.array([0, 1, 2, 7, 8], np.int32), values,
        np.zeros(5, np.int8),
    )  # fmt: skip
    with Writer(store) as writer:
        for shard in (1, 2):
            none = firings.take(np.zeros(5, bool))
            receipts = write_firings(
                store.root, none, sae=HALF, corpus="plain", shard=shard, run="r", bits=23
            )
            writer.commit(receipts, transaction=f"none{shard}", reason="none")
        path = [f.path for f in store.data_files("codes", store.snapshot(), HALF, "plain")]
        path += [f.path for f in store.data_files("postings", store.snapshot(), HALF, "plain")]
        writer.commit([], transaction="gone", reason="gone", retire=path)
        receipts = write_firings(
            store.root, firings, sae=HALF, corpus="plain", shard=0, run="r", bits=23
        )
        writer.commit(receipts, transaction="values", reason="values")
    sae = replace(known.sae, name=HALF)
    source = ExportSource(
        connect(store, store.snapshot()), store, store.snapshot(), lambda *_: None, sae, "plain"
    )
    export(source, "delphi", tmp_path / "out", ExportOptions(n_splits=2))
    found, _, types, names = read_delphi(tmp_path / "out")
    assert (names, types) == (["0_5", "6_11"], ["float16", "float32"])
    assert found[1][1][1] == float(np.float16(1 / 3))
    assert found[2][2][1] == 65504.0
    assert found[7][3][1] == 2.0**-15
    manifest = json.loads((tmp_path / "out" / "scopelake.json").read_text())
    third = float(np.float32(1 / 3))
    error = abs(float(np.float16(third)) / third - 1)
    assert manifest["largest_relative_error"] == pytest.approx(error, rel=1e-6)
    assert manifest["float32_splits"] == ["6_11"]
