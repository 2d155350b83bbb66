"""Dashboards against rows that the tests know, read by each format's documented schema."""

import gzip
import json
import math
import shutil
import struct
import zlib
from collections import defaultdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scopelake.query.connect import connect
from scopelake.query.export import (
    export,
)
from scopelake.query.export_source import ExportSource
from scopelake.query.exporter import ExportOptions
from scopelake.store.commit import Writer
from scopelake.store.lake_store import LakeStore
from scopelake.store.writer import write_features

WIDTH = 12
ALL = ExportOptions(k="all", window="all")


def read_neuronpedia(folder):
    batches = sorted(folder.glob("batch-*.json"), key=lambda p: int(p.stem.split("-")[1]))
    return [f for path in batches for f in json.loads(path.read_text())["features"]]


def read_circuit_tracer(folder):
    """Read features as util.js and init-feature-examples.js of circuit-tracer's page do."""
    index = json.loads(gzip.decompress((folder / "features" / "index.json.gz").read_bytes()))
    (layer,) = index
    data = (folder / "features" / index[layer]["filename"]).read_bytes()
    found = []
    for start, end in zip(index[layer]["offsets"], index[layer]["offsets"][1:], strict=False):
        record = data[start : end + 1]  # a range of bytes has its last one
        (length,) = struct.unpack("<I", record[:4])
        found.append(json.loads(zlib.decompress(record[4 : 4 + length])))
    assert end == len(data)
    return found


def dashboards(folder, form):
    """By feature the tokens, activations and peak of each example."""
    if form == "neuronpedia":
        return {
            f["feature_index"]: [
                (a["tokens"], a["values"], a["qualifying_token_index"]) for a in f["activations"]
            ]
            for f in read_neuronpedia(folder)
        }
    return {
        f["index"]: [
            (e["tokens"], e["tokens_acts_list"], e["train_token_ind"])
            for quantile in f["examples_quantiles"]
            for e in quantile["examples"]
        ]
        for f in read_circuit_tracer(folder)
    }


def places(folder):
    """By feature the rows of examples.parquet, by rank."""
    found = defaultdict(list)
    for row in pq.read_table(folder / "examples.parquet").to_pylist():
        assert row["rank"] == len(found[row["feature"]])
        found[row["feature"]].append(row)
    return found


@pytest.mark.parametrize("form", ["neuronpedia", "circuit-tracer"])
@pytest.mark.parametrize("corpus", ["plain", "chats"])
def test_dashboards_of_all_contexts_have_every_firing(known, source_of, tmp_path, form, corpus):
    done = export(source_of(corpus), form, tmp_path / "out", ALL)
    oracle = known.expected(corpus, bos=False)
    listed = places(tmp_path / "out")
    n = 0
    for feature, shown in dashboards(tmp_path / "out", form).items():
        of_feature = {}
        for (tokens, values, peak), row in zip(shown, listed[feature], strict=True):
            context = known.contexts[corpus, row["context"]]
            assert tokens == context.shown
            assert row["document"] == context.document
            assert (row["first_position"], row["position"]) == (0, peak)
            assert values[peak] == row["activation"] == max(values)
            of_feature[row["context"]] = {p: v for p, v in enumerate(values) if v}
            n += len(of_feature[row["context"]])
        assert of_feature == oracle.get(feature, {})
    assert set(dashboards(tmp_path / "out", form)) == set(range(WIDTH))
    assert done.n_firings == n == sum(len(p) for cs in oracle.values() for p in cs.values())
    assert not any("weaker" in one or "from the peak" in one for one in done.left_out)


@pytest.mark.parametrize("form", ["neuronpedia", "circuit-tracer"])
@pytest.mark.parametrize(("k", "window"), [(1, 0), (3, 2), (5, "all")])
def test_dashboards_show_the_strongest_contexts(known, source_of, tmp_path, form, k, window):
    done = export(source_of("plain"), form, tmp_path / "out", ExportOptions(k, window))
    oracle = known.expected("plain", bos=False)
    listed = places(tmp_path / "out")
    n_weaker = 0
    for feature, shown in dashboards(tmp_path / "out", form).items():
        peaks = sorted(
            (-max(at.values()), context, min(p for p, v in at.items() if v == max(at.values())))
            for context, at in oracle.get(feature, {}).items()
        )
        n_weaker += max(len(peaks) - k, 0)
        assert len(shown) == min(k, len(peaks))
        for (highest, context, position), row, (tokens, values, peak) in zip(
            peaks, listed[feature], shown, strict=False
        ):
            found = (-row["activation"], row["context"], row["position"])
            assert found == (highest, context, position)
            pieces = known.contexts["plain", context].shown
            start, stop = 0, len(pieces)
            if window != "all":
                start, stop = max(position - window, 0), min(position + window + 1, stop)
            assert row["first_position"] == start
            assert tokens == pieces[start:stop]
            assert peak == position - start
            at = oracle[feature][context]
            assert values == [at.get(p, 0.0) for p in range(start, stop)]
    assert f"{n_weaker:,} contexts with weaker firings" in "\n".join(done.left_out)


def test_dashboards_say_how_a_feature_fires(known, source_of, tmp_path):
    export(source_of("plain"), "neuronpedia", tmp_path / "np", ALL)
    export(source_of("plain"), "circuit-tracer", tmp_path / "ct", ALL)
    oracle = known.expected("plain", bos=False)
    n_tokens = sum(k != 2 for c in known.of_corpus("plain") for k in c.kinds)
    theirs = {f["index"]: f for f in read_circuit_tracer(tmp_path / "ct")}
    for found in read_neuronpedia(tmp_path / "np"):
        feature = found["feature_index"]
        values = sorted(v for at in oracle.get(feature, {}).values() for v in at.values())
        assert found["frac_nonzero"] == pytest.approx(len(values) / n_tokens)
        assert theirs[feature]["activation_frequency"] == found["frac_nonzero"]
        assert sum(found["freq_hist_data_bar_heights"]) == len(values)
        assert sum(theirs[feature]["histogram"]) == len(values)
        if not values:
            assert found["activations"] == found["freq_hist_data_bar_values"] == []
            assert theirs[feature]["quantile_values"] == []
            continue
        low, high = values[0], values[-1]
        step = (high - low) / 50
        middles = [low + step * (i + 0.5) for i in range(50)]
        assert found["freq_hist_data_bar_values"] == pytest.approx(middles)
        assert found["freq_hist_data_bar_heights"][0] == sum(v < low + step for v in values)
        assert (theirs[feature]["act_min"], theirs[feature]["act_max"]) == (low, high)
        assert len(theirs[feature]["quantile_values"]) == 100
        assert theirs[feature]["quantile_values"][-1] == high
    settings = json.loads((tmp_path / "np" / "batch-0.json").read_text())
    assert (settings["sae_set"], settings["layer"]) == (known.sae.name, 1)


def test_promoted_tokens_are_spelt_or_shown_as_ids(known, source_of, tmp_path):
    store = LakeStore.open(shutil.copytree(known.store.root.url, tmp_path / "lake"))
    snapshot = store.snapshot()
    filters = [("sae", "=", known.sae.name), ("corpus", "=", "chats")]
    rows = store.read("features", snapshot, filters=filters).sort_by("feature")
    columns = {
        "top_tokens": [[i, 1] for i in range(WIDTH)], "top_logits": [[2.0, 1.0]] * WIDTH,
        "bottom_tokens": [[7]] * WIDTH, "bottom_logits": [[-3.0]] * WIDTH,
    }  # fmt: skip
    for name, values in columns.items():
        field = rows.schema.field(name)
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, field, pa.array(values, field.type))

    old = [f.path for f in store.data_files("features", snapshot, known.sae.name, "chats")]
    with Writer(store) as writer:
        receipt = write_features(store.root, rows, known.sae.name, "chats", "r")
        writer.commit([receipt], transaction="logits", reason="logits", retire=old)
    for name, decode, texts in (
        ("spelt", lambda name, digest, ids: [f"<{i}>" for i in ids], ["<4>", "<1>", "<7>"]),
        ("ids", lambda name, digest, ids: None, ["#4", "#1", "#7"]),
    ):
        source = ExportSource(
            connect(store, store.snapshot()), store, store.snapshot(), decode, known.sae,
            "chats", [4],
        )  # fmt: skip
        done = export(source, "neuronpedia", tmp_path / name, ExportOptions())
        (feature,) = read_neuronpedia(tmp_path / name)
        assert (feature["pos_str"], feature["pos_values"]) == (texts[:2], [2.0, 1.0])
        assert (feature["neg_str"], feature["neg_values"]) == (texts[2:], [-3.0])
        assert any("#id" in one for one in done.left_out) == (name == "ids")


def test_chosen_features_of_circuit_tracer_are_files_named_by_their_pair(
    known, source_of, tmp_path
):
    export(source_of("chats", [3, 10]), "circuit-tracer", tmp_path / "out", ALL)
    found = {}
    for path in (tmp_path / "out" / "features").iterdir():
        z = int(path.stem)
        w = math.floor((math.sqrt(8 * z + 1) - 1) / 2)  # util.js, cantorUnpair
        y = z - (w * w + w) // 2
        assert w - y == 1  # the layer
        found[y] = json.loads(path.read_text())
    assert set(found) == {3, 10}
    assert all(f["index"] == i and f["transcoder_id"] == known.sae.name
               for i, f in found.items())  # fmt: skip
    oracle = known.expected("chats", bos=False)
    assert len(found[3]["examples_quantiles"][0]["examples"]) == len(oracle[3])


@pytest.mark.parametrize("features", [None, [2, 5, 11]])
def test_neuronpedia_numbers_anew_in_each_layer(known, source_of, tmp_path, features):
    source = source_of("chats", features)
    source.sae_row = dict(source.sae_row) | {"layers": [4, 6, 9], "features_per_layer": 4}
    export(source, "neuronpedia", tmp_path / "out", ALL)
    export(source_of("chats", features), "neuronpedia", tmp_path / "flat", ALL)
    flat = {f["feature_index"]: f for f in read_neuronpedia(tmp_path / "flat")}
    asked = range(WIDTH) if features is None else features
    by_layer = defaultdict(list)
    for feature in asked:
        by_layer[4 if feature < 4 else 6 if feature < 8 else 9].append(feature)
    folders = {p.name for p in (tmp_path / "out").iterdir() if p.is_dir()}
    assert folders == {f"layer_{layer}" for layer in by_layer}
    for layer, of_layer in by_layer.items():
        folder = tmp_path / "out" / f"layer_{layer}"
        assert json.loads((folder / "batch-0.json").read_text())["layer"] == layer
        found = read_neuronpedia(folder)
        assert found == [flat[f] | {"feature_index": f % 4} for f in of_layer]
        skipped = json.loads((folder / "skipped_indexes.json").read_text())
        own = [f % 4 for f in of_layer]
        assert skipped["skipped_indexes"] == [i for i in range(4) if i not in own]
        assert skipped["layer"] == str(layer)
    assert set(places(tmp_path / "out")) == {f for f in asked if flat[f]["activations"]}
    first = f"layer_{min(by_layer)}/batch-0.json"
    assert f'open("{first}")' in (tmp_path / "out" / "README.md").read_text()


def test_a_coder_that_reads_several_layers_at_once_has_one_folder(source_of, tmp_path):
    source = source_of("chats")
    source.sae_row = dict(source.sae_row) | {"layers": [4, 6], "features_per_layer": WIDTH}
    export(source, "neuronpedia", tmp_path / "out", ALL)
    assert [f["feature_index"] for f in read_neuronpedia(tmp_path / "out")] == list(range(WIDTH))
    assert json.loads((tmp_path / "out" / "batch-0.json").read_text())["layer"] == 4
