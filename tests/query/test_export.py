"""Exports against rows that the tests know, read by each format's documented schema."""

import gzip
import json
import math
import shutil
import struct
import zlib
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from scopelake.errors import (
    CorpusNotFoundError,
    DamagedFileError,
    FeatureNotFoundError,
    InvalidArgumentError,
    NotIngestedError,
    QueryError,
)
from scopelake.query import export as export_module
from scopelake.query.connect import connect
from scopelake.query.export import (
    EXPORTERS,
    corpus_to_export,
    export,
    exporter_of,
    features_to_export,
)
from scopelake.query.export_source import ExportSource
from scopelake.query.exporter import ExportOptions
from scopelake.query.resolve import Partial
from scopelake.store.commit import Writer
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.schema import file_schema
from scopelake.store.writer import write_features, write_firings, write_labels

LENGTH = 12
WIDTH = 12
HALF = "gs-2/resid_post/half"
SILENT = 11
ALL = ExportOptions(k="all", window="all")
FORMATS = list(EXPORTERS)
LABELS = [(0, "b", "me"), (0, "c", "you"), (5, "a", "me")]


def changed(table, **values):
    """A catalogue table with other values in some columns, a list or the same for all rows."""
    for name, value in values.items():
        field = table.schema.field(name)
        column = value if isinstance(value, list) else [value] * table.num_rows
        at = table.schema.get_field_index(name)
        table = table.set_column(at, field, pa.array(column, field.type))
    return table


@pytest.fixture(scope="module")
def known(counted, tmp_path_factory):
    """The lake of known rows, with what an export needs of its catalogue, and half an ingest."""
    path = tmp_path_factory.mktemp("export") / "lake"
    store = LakeStore.open(shutil.copytree(counted.store.root.url, path))
    snapshot = store.snapshot()
    corpora = store.read("corpora", snapshot)
    n_bos = [
        sum(c.kinds.count(2) for c in counted.contexts.values() if c.corpus == name)
        for name in corpora["corpus"].to_pylist()
    ]
    corpora = changed(corpora, context_length=LENGTH, n_bos=n_bos, source="known.txt")
    saes = changed(store.read("saes", snapshot), digest="xxh3:abc")
    saes = pa.concat_tables([saes, changed(saes.slice(0, 1), sae=HALF)])
    one = Firings(
        np.array([3]), np.array([1], np.int32), np.array([2], np.int32),
        np.array([1.0], np.float32), np.array([0], np.int8),
    )  # fmt: skip
    labels = pa.Table.from_pylist(
        [dict(zip(("feature", "label", "source"), row, strict=True)) for row in LABELS],
        schema=file_schema("labels"),
    )
    with Writer(store) as writer:
        rows = {"corpora": corpora, "saes": saes}
        keys = {"corpora": ("corpus",), "saes": ("sae",)}
        writer.commit([], transaction="facts", reason="facts", rows=rows, replace=keys)
        receipts = write_firings(
            store.root, one, sae=HALF, corpus="plain", shard=0, run="r", bits=23
        )
        receipts.append(write_labels(store.root, labels, counted.sae().name))
        writer.commit(receipts, transaction="half", reason="half")
    connection = connect(store, store.snapshot())
    yield replace(counted, store=store, snapshot=store.snapshot(), connection=connection)
    connection.close()


@pytest.fixture
def source_of(known):
    """What makes an export's source of the known lake."""

    def make(corpus="chats", features=None, decode=lambda name, digest, ids: None, **asked):
        return ExportSource(
            known.connection, known.store, known.snapshot, decode, known.sae(), corpus, features,
            **asked,
        )  # fmt: skip

    return make


def expected(known, corpus, features=None, *, bos=True):
    """By feature and context, the activation at each position."""
    found = defaultdict(lambda: defaultdict(dict))
    for row in known.rows:
        if (
            (row.sae, row.corpus) == (known.sae().name, corpus)
            and (features is None or row.feature in features)
            and (bos or row.kind != "bos")
        ):
            found[row.feature][row.context][row.position] = row.activation
    return {feature: dict(contexts) for feature, contexts in found.items()}


def contexts_of(known, corpus):
    return [c for (name, _), c in sorted(known.contexts.items()) if name == corpus]


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
    oracle = expected(known, corpus, features)
    listing = pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    row_of = {r["context"]: r["row"] for r in listing}
    assert {f: {row_of[c]: at for c, at in cs.items()} for f, cs in oracle.items()} == found
    assert done.n_firings == sum(len(at) for cs in oracle.values() for at in cs.values())
    contexts = contexts_of(known, corpus)
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
    sae = replace(known.sae(), name=HALF)
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
    oracle = expected(known, corpus, bos=False)
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
    oracle = expected(known, "plain", bos=False)
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
    oracle = expected(known, "plain", bos=False)
    n_tokens = sum(k != 2 for c in contexts_of(known, "plain") for k in c.kinds)
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
    assert (settings["sae_set"], settings["layer"]) == (known.sae().name, 1)


def test_promoted_tokens_are_spelt_or_shown_as_ids(known, source_of, tmp_path):
    store = LakeStore.open(shutil.copytree(known.store.root.url, tmp_path / "lake"))
    snapshot = store.snapshot()
    filters = [("sae", "=", known.sae().name), ("corpus", "=", "chats")]
    rows = store.read("features", snapshot, filters=filters).sort_by("feature")
    rows = changed(
        rows, top_tokens=[[i, 1] for i in range(WIDTH)], top_logits=[[2.0, 1.0]] * WIDTH,
        bottom_tokens=[[7]] * WIDTH, bottom_logits=[[-3.0]] * WIDTH,
    )  # fmt: skip
    old = [f.path for f in store.data_files("features", snapshot, known.sae().name, "chats")]
    with Writer(store) as writer:
        receipt = write_features(store.root, rows, known.sae().name, "chats", "r")
        writer.commit([receipt], transaction="logits", reason="logits", retire=old)
    for name, decode, texts in (
        ("spelt", lambda name, digest, ids: [f"<{i}>" for i in ids], ["<4>", "<1>", "<7>"]),
        ("ids", lambda name, digest, ids: None, ["#4", "#1", "#7"]),
    ):
        source = ExportSource(
            connect(store, store.snapshot()), store, store.snapshot(), decode, known.sae(),
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
    assert all(f["index"] == i and f["transcoder_id"] == known.sae().name
               for i, f in found.items())  # fmt: skip
    oracle = expected(known, "chats", bos=False)
    assert len(found[3]["examples_quantiles"][0]["examples"]) == len(oracle[3])


@pytest.mark.parametrize("features", [None, [0, 5], [SILENT]])
def test_a_dataset_has_firings_contexts_features_and_labels(known, source_of, tmp_path, features):
    from datasets import get_dataset_config_names, load_dataset

    export(source_of("plain", features), "datasets", tmp_path / "out", ExportOptions())

    def load(name):
        folder, cache = str(tmp_path / "out"), str(tmp_path / "cache")
        return load_dataset(folder, name, split="train", cache_dir=cache).to_list()

    wanted = set(range(WIDTH)) if features is None else set(features)
    rows = [
        (r.feature, r.context, r.position, r.activation, r.kind)
        for r in known.rows
        if (r.sae, r.corpus) == (known.sae().name, "plain") and r.feature in wanted
    ]
    labels = [row for row in LABELS if row[0] in wanted]
    configs = {"contexts", "features"} | ({"firings"} if rows else set())
    configs |= {"labels"} if labels else set()
    assert set(get_dataset_config_names(str(tmp_path / "out"))) == configs
    if rows:
        assert [tuple(r.values()) for r in load("firings")] == sorted(rows)
    if labels:
        assert [tuple(r.values()) for r in load("labels")] == labels
    assert {r["feature"] for r in load("features")} == wanted
    contexts = load("contexts")
    assert [r["text"] for r in contexts] == ["".join(c.pieces) for c in contexts_of(known, "plain")]
    assert [r["roles"] for r in contexts] == [c.roles for c in contexts_of(known, "plain")]
    (path,) = (tmp_path / "out" / "contexts").iterdir()
    facts = json.loads(pq.read_schema(path).metadata[b"scopelake"])
    assert (facts["sae"], facts["sae_digest"]) == (known.sae().name, "xxh3:abc")


@pytest.mark.parametrize("form", FORMATS)
def test_exports_are_the_same_whatever_is_read_at_once(source_of, tmp_path, form):
    small = source_of("plain", rows_at_once=300)
    sizes = [(len(chunk), len(chunk.features)) for chunk in small.chunks()]
    assert len(sizes) > 3
    assert all(n <= 300 or n_features == 1 for n, n_features in sizes)
    assert sum(n_features for _, n_features in sizes) == WIDTH
    export(small, form, tmp_path / "small", ExportOptions())
    export(source_of("plain"), form, tmp_path / "large", ExportOptions())
    files = sorted(p.relative_to(tmp_path / "large") for p in (tmp_path / "large").rglob("*.*"))
    assert files == sorted(
        p.relative_to(tmp_path / "small") for p in (tmp_path / "small").rglob("*.*")
    )
    for name in files:
        one, other = tmp_path / "small" / name, tmp_path / "large" / name
        if name.suffix == ".parquet":
            assert pq.read_table(one).equals(pq.read_table(other)), name
        elif one.is_file():
            assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_says_what_it_is_of_and_shows_progress(known, source_of, tmp_path, form):
    seen = defaultdict(list)
    done = export(
        source_of("chats", [0, 5]), form, tmp_path / "out", ExportOptions(),
        lambda what, n, of: seen[what].append((n, of)),
    )  # fmt: skip
    assert seen["features"]
    assert all(steps[-1][0] == steps[-1][1] and steps == sorted(steps) for steps in seen.values())
    manifest = json.loads((tmp_path / "out" / "scopelake.json").read_text())
    assert (manifest["format"], manifest["sae"]) == (form, known.sae().name)
    assert (manifest["sae_digest"], manifest["corpus"]) == ("xxh3:abc", "chats")
    assert (manifest["features"], manifest["snapshot"]) == ([0, 5], known.snapshot.id)
    oracle = expected(known, "chats", [0, 5])
    of_all = sum(len(p) for cs in oracle.values() for p in cs.values())
    assert manifest["n_firings"] == of_all
    on_bos = [r for r in known.rows if (r.sae, r.corpus, r.kind) == (known.sae().name, "chats",
              "bos") and r.feature in (0, 5)]  # fmt: skip
    assert manifest["n_firings_on_bos"] == len(on_bos)
    assert manifest["left_out"] == list(done.left_out) != []
    readme = (tmp_path / "out" / "README.md").read_text()
    assert known.sae().name in readme
    assert "xxh3:abc" in readme
    assert all(f"- {one}\n" in readme for one in done.left_out)
    paths = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert (done.n_files, done.n_bytes) == (len(paths), sum(p.stat().st_size for p in paths))
    assert "left out: " in str(done)


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_fails_leaves_nothing(source_of, tmp_path, monkeypatch, form):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "_readme", fail)
    with pytest.raises(KeyboardInterrupt):
        export(source_of(), form, tmp_path / "out", ExportOptions())
    assert list(tmp_path.iterdir()) == []


def test_damage_is_refused_and_nothing_is_left(known, tmp_path):
    store = LakeStore.open(shutil.copytree(known.store.root.url, tmp_path / "lake"))
    file = store.data_files("postings", store.snapshot(), known.sae().name, "plain")[0]
    path = tmp_path / "lake" / file.path
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    source = ExportSource(
        connect(store, store.snapshot()), store, store.snapshot(), lambda *_: None, known.sae(),
        "plain",
    )  # fmt: skip
    for form in FORMATS:
        with pytest.raises(DamagedFileError):
            export(source, form, tmp_path / "out", ExportOptions())
    assert [p.name for p in tmp_path.iterdir()] == ["lake"]


def test_targets_that_are_there_or_cannot_be_are_refused(source_of, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for path in (taken, link):
        with pytest.raises(InvalidArgumentError, match="it is there already"):
            export(source_of(), "delphi", path, ExportOptions())
    with pytest.raises(InvalidArgumentError, match="is no folder; make it first"):
        export(source_of(), "delphi", tmp_path / "no" / "out", ExportOptions())
    with pytest.raises(InvalidArgumentError, match="a folder of this machine"):
        export(source_of(), "delphi", export_module.Path("s3://bucket/out"), ExportOptions())
    assert list(taken.iterdir()) == []


def test_options_belong_to_formats_and_have_ranges():
    for form, options, message in (
        ("delphi", ExportOptions(k=3), "k=3 .* as delphi; its options are n_splits"),
        ("datasets", ExportOptions(window="all"), "window=all .* its options are none"),
        ("neuronpedia", ExportOptions(n_splits=2), "its options are k, window"),
        ("neuronpedia", ExportOptions(k=0), "give 1 or more"),
        ("circuit-tracer", ExportOptions(window=-1), "give 0 or more"),
        ("delphi", ExportOptions(n_splits=0), "give 1 or more"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            options.check(exporter_of(form))
    with pytest.raises(InvalidArgumentError, match="formats are delphi, neuronpedia, circuit-tr"):
        exporter_of("sae_vis")


def test_what_is_not_whole_is_refused(known):
    connection, sae = known.connection, known.sae()
    assert corpus_to_export(connection, sae, "plain") == "plain"
    with pytest.raises(InvalidArgumentError, match="it was run on chats, plain, and an export is"):
        corpus_to_export(connection, sae, None)
    with pytest.raises(CorpusNotFoundError):
        corpus_to_export(connection, sae, "none")
    half = replace(sae, name=HALF)
    with pytest.raises(NotIngestedError, match="incomplete, 1 of 3 shards"):
        corpus_to_export(connection, half, None)
    with pytest.raises(NotIngestedError, match="it was not run there"):
        corpus_to_export(connection, half, "chats")
    partial = replace(sae, partial={"plain": Partial(5)})
    with pytest.raises(QueryError, match="published examples only"):
        corpus_to_export(connection, partial, "plain")
    assert features_to_export(sae, None) is None
    assert features_to_export(sae, [5, 0, 5]) == [0, 5]
    for wrong in ([], [WIDTH], [-1]):
        with pytest.raises((FeatureNotFoundError, InvalidArgumentError)):
            features_to_export(sae, wrong)
