"""Exports are loaded by the code of those that they are for: delphi, SAEDashboard, circuit-tracer.

`make parity` installs them beside this package's environment and runs these tests.
"""

import gzip
import json
import struct
import urllib.error
import urllib.request
import zlib

import deltalake
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import scopelake
from scopelake import tiny

pytestmark = pytest.mark.parity
REASON = "needs peers' packages: run `make parity`"
delphi_latents = pytest.importorskip("delphi.latents", reason=REASON)
delphi_config = pytest.importorskip("delphi.config", reason=REASON)
dashboard = pytest.importorskip("sae_dashboard.neuronpedia.neuronpedia_dashboard", reason=REASON)
feature_models = pytest.importorskip("circuit_tracer.frontend.feature_models", reason=REASON)
graph_models = pytest.importorskip("circuit_tracer.frontend.graph_models", reason=REASON)
local_server = pytest.importorskip("circuit_tracer.frontend.local_server", reason=REASON)

SAE = "gemma-scope-2-tiny/resid_post_all/layer_3_width_1024_l0_small"
MODULE = SAE.replace("/", "~")
LENGTH = 64


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    texts = [f"def depth_{i}(lake):\n    return lake[{i}] * {i}  # é日本\n" * 6 for i in range(24)]
    rows = [json.dumps({"id": f"d{i}", "text": text}) for i, text in enumerate(texts)]
    (folder / "text.jsonl").write_text("\n".join(rows))
    lake = scopelake.create(folder / "lake")
    lake.add_corpus("text", folder / "text.jsonl", tokenizer=tiny.MODEL_NAME, context_length=LENGTH)
    lake.ingest("text", model=tiny.MODEL_NAME, saes=[SAE], device="cpu")
    return lake


@pytest.fixture(scope="module")
def firings(lake):
    """By feature and context the activation at each position, from the files; BOS apart."""
    spoken, on_bos = {}, {}
    table = deltalake.DeltaTable(f"{lake.path}/tables/codes").to_pyarrow_table()
    for row in table.to_pylist():
        into = on_bos if row["kind"] == 2 else spoken
        at = into.setdefault(row["feature"], {}).setdefault(row["context"], {})
        at[row["position"]] = row["activation"]
    return spoken, on_bos


def everything(firings, feature):
    spoken, on_bos = firings
    found = {context: dict(at) for context, at in spoken.get(feature, {}).items()}
    for context, at in on_bos.get(feature, {}).items():
        found.setdefault(context, {}).update(at)
    return found


class Words:
    """What delphi needs of a tokenizer."""

    def batch_decode(self, ids):
        return [f"<{i}>" for i in ids.tolist()]


def delphi_dataset(folder, features=None, **asked):
    return delphi_latents.LatentDataset(
        folder / "latents",
        delphi_config.SamplerConfig(n_examples_train=10**6, n_examples_test=0, train_type="top"),
        delphi_config.ConstructorConfig(
            example_ctx_len=LENGTH, min_examples=1, n_non_activating=0, **asked
        ),
        tokenizer=Words(),
        latents=None if features is None else {MODULE: torch.tensor(features)},
        modules=None if features is None else [MODULE],
    )


@pytest.fixture(scope="module")
def cache(lake, tmp_path_factory):
    path = tmp_path_factory.mktemp("delphi") / "out"
    lake.export("delphi", path, sae=SAE)
    return path


def test_delphi_reads_every_firing_of_every_feature(cache, firings):
    contexts = {r["row"]: r["context"] for r in pq.read_table(cache / "rows.parquet").to_pylist()}
    found = {}
    for buffer in delphi_dataset(cache).buffers:
        for latent in buffer:
            locations, activations = latent.activation_data
            feature = latent.latent.latent_index
            assert latent.latent.module_name == MODULE
            for (row, position, named), value in zip(
                locations.tolist(), activations.tolist(), strict=True
            ):
                assert named == feature
                at = found.setdefault(feature, {}).setdefault(contexts[row], {})
                at[position] = value
    features = {*firings[0], *firings[1]}
    assert found == {feature: everything(firings, feature) for feature in features}


def test_delphi_makes_examples_of_the_lakes_tokens(lake, cache, firings):
    busiest = sorted(firings[0], key=lambda f: -sum(map(len, firings[0][f].values())))[:3]
    data = delphi_dataset(cache, sorted(busiest))
    rows = deltalake.DeltaTable(f"{lake.path}/tables/contexts").to_pyarrow_table().to_pylist()
    ids = {row["context"]: row["token_ids"] for row in rows}
    assert data.cache_config["model_name"] == tiny.MODEL_NAME
    assert data.cache_config["scopelake"]["sae"] == SAE
    records = {record.latent.latent_index: record for record in data}
    assert set(records) == set(busiest)
    for feature, record in records.items():
        expected = sorted(
            (
                tuple(ids[context] + [0] * (LENGTH - len(ids[context]))),
                tuple(at.get(p, 0.0) for p in range(LENGTH)),
            )
            for context, at in everything(firings, feature).items()
        )
        found = [(tuple(e.tokens.tolist()), tuple(e.activations.tolist())) for e in record.examples]
        assert sorted(found) == expected
        highest = [e.max_activation for e in record.examples]
        assert highest == sorted(highest, reverse=True)


def test_delphi_reads_a_cache_of_few_features_in_one_split(lake, firings, tmp_path):
    feature = min(firings[0])
    lake.export("delphi", tmp_path / "out", sae=SAE, features=[feature], n_splits=7)
    (record,) = delphi_dataset(tmp_path / "out", [feature])
    assert record.latent.latent_index == feature
    assert len(record.examples) == len(everything(firings, feature))


def test_saedashboard_reads_every_batch(lake, firings, tmp_path):
    lake.export("neuronpedia", tmp_path / "out", sae=SAE, k="all", window="all")
    contexts = {
        (r["feature"], r["rank"]): r["context"]
        for r in pq.read_table(tmp_path / "out" / "examples.parquet").to_pylist()
    }
    found, features = {}, []
    for path in (tmp_path / "out").glob("batch-*.json"):
        given = json.loads(path.read_text())
        batch = dashboard.NeuronpediaDashboardBatch(**given)
        assert batch.to_dict() == given  # every field is one of theirs, and none is missing
        for feature in batch.features:
            features.append(feature.feature_index)
            for rank, shown in enumerate(feature.activations):
                context = contexts[feature.feature_index, rank]
                at = {p: v for p, v in enumerate(shown.values) if v}
                found.setdefault(feature.feature_index, {})[context] = at
                assert shown.values[shown.qualifying_token_index] == max(shown.values)
                assert len(shown.tokens) == len(shown.values)
    assert sorted(features) == list(range(1024))
    assert found == firings[0]


def test_circuit_tracer_validates_every_feature_of_the_packed_files(lake, firings, tmp_path):
    lake.export("circuit-tracer", tmp_path / "out", sae=SAE, k="all", window="all")
    folder = tmp_path / "out" / "features"
    index = json.loads(gzip.decompress((folder / "index.json.gz").read_bytes()))["3"]
    data = (folder / index["filename"]).read_bytes()
    assert len(index["offsets"]) == 1025
    for feature in range(1024):
        start, end = index["offsets"][feature : feature + 2]
        (length,) = struct.unpack_from("<I", data, start)
        assert start + 4 + length == end
        text = zlib.decompress(data[start + 4 : end])
        model = feature_models.Model.model_validate_json(text, strict=True)
        assert model.model_dump() == json.loads(text)
        shown = model.examples_quantiles[0].examples
        values = sorted(v for e in shown for v in e.tokens_acts_list if v)
        oracle = firings[0].get(feature, {})
        assert values == sorted(v for at in oracle.values() for v in at.values())
        if values:
            assert (model.act_min, model.act_max) == (values[0], values[-1])
            assert model.quantile_values[49] == pytest.approx(np.median(values))


def test_circuit_tracers_server_gives_the_files_of_chosen_features(lake, firings, tmp_path):
    features = sorted(firings[0])[:3]
    lake.export("circuit-tracer", tmp_path / "out", sae=SAE, features=features)
    server = local_server.serve(tmp_path, port=0)
    try:
        port = server.httpd.server_address[1]
        url = f"http://127.0.0.1:{port}/data/out/features"
        for feature in features:
            node = graph_models.Node.feature_node(3, 0, feature)
            with urllib.request.urlopen(f"{url}/{node.feature}.json") as answer:
                model = feature_models.Model.model_validate_json(answer.read())
            assert (model.transcoder_id, model.index) == (SAE, feature)
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{url}/1.json")
    finally:
        server.stop()
