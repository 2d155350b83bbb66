"""A delphi cache becomes a corpus and a coder's firings, in one commit, or not at all."""

import json
import shutil
from collections import defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

import scopelake
from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import (
    CoderFileError,
    CoderMismatchError,
    CorpusExistsError,
    InvalidArgumentError,
)
from scopelake.store.commit import Writer

SAE = "mine/resid_post/layer_3_width_20"
ROWS, LENGTH, WIDTH = 9, 16, 20
BOS, PAD = 2, 0
ASKED = {"sae": SAE, "layer": 3, "site": "resid_post", "tokenizer": tiny.MODEL_NAME}


def make_cache(seed=3):
    """Tokens, padded on either side or not, and a firing by address."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(110, 4_000, (ROWS, LENGTH))
    tokens[:, 0] = BOS
    tokens[1, 10:] = PAD
    tokens[2, :3], tokens[2, 3] = PAD, BOS
    firings = {
        (row, position, feature): float(np.float16(rng.random() + 0.1))
        for row in range(ROWS)
        for position in range(LENGTH)
        for feature in range(WIDTH - 1)
        if tokens[row, position] != PAD and rng.random() < 0.15
    }
    return tokens, firings


def write_cache(folder, tokens, firings, edges=((0, 6), (7, 13), (14, 19)), dtype=np.float16):
    """As LatentCache.save_splits and save_config of delphi write it."""
    folder.mkdir(parents=True)
    rows = sorted(firings)
    for first, last in edges:
        of_split = [where for where in rows if first <= where[2] <= last]
        locations = np.array(of_split, np.int64).reshape(-1, 3)
        locations[:, 2] -= first
        values = np.array([firings[where] for where in of_split], dtype)
        split = {"locations": locations.astype(np.uint16), "activations": values,
                 "tokens": tokens.astype(np.int64)}  # fmt: skip
        save_file(split, folder / f"{first}_{last}.safetensors")
    config = {"dataset_repo": "some/text", "model_name": "google/gemma-3-1b-pt"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def codes(lake, sae=SAE):
    rows = lake.sql("SELECT * FROM codes WHERE sae = ?", [sae]).to_pylist()
    found = {(r["context"], r["position"], r["feature"]): r["activation"] for r in rows}
    assert len(found) == len(rows)
    return found


def shifted(tokens, firings):
    """The firings by their positions in the lake, which counts from the first token."""
    first = [int(np.flatnonzero(row != PAD)[0]) for row in tokens]
    return {(r, p - first[r], f): value for (r, p, f), value in firings.items()}


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return scopelake.create(tmp_path_factory.mktemp("delphi") / "lake").path


@pytest.fixture
def lake(empty, tmp_path):
    return scopelake.open(shutil.copytree(empty, tmp_path / "lake"))


def test_every_token_and_firing_comes_in(lake, tmp_path):
    tokens, firings = make_cache()
    seen = defaultdict(list)
    done = lake.import_delphi(
        write_cache(tmp_path / "cache", tokens, firings), "text", **ASKED,
        progress=lambda what, n, of: seen[what].append((n, of)),
    )  # fmt: skip
    oracle = shifted(tokens, firings)
    assert codes(lake) == oracle
    n_tokens = int(np.count_nonzero(tokens != PAD))
    assert (done.n_firings, done.n_zero, done.n_on_padding) == (len(oracle), 0, 0)
    assert (done.n_contexts, done.n_tokens, done.width) == (ROWS, n_tokens, WIDTH)
    contexts = lake.sql("SELECT * FROM contexts ORDER BY context").to_pylist()
    assert [c["token_ids"] for c in contexts] == [[i for i in r if i != PAD] for r in tokens]
    for row in lake.sql("SELECT * FROM features").to_pylist():
        spoken = [v for (_, p, f), v in oracle.items() if f == row["feature"] and p > 0]
        assert row["firings"] == len(spoken)
        assert row["density"] == pytest.approx(len(spoken) / (n_tokens - ROWS))
        assert row["max"] == (max(spoken) if spoken else None)
    highest = max((v, -r, -p) for (r, p, f), v in oracle.items() if f == 4 and p > 0)
    top = lake.top_contexts(4, layer=3, k=1).table.to_pylist()[0]
    assert (top["activation"], -top["context"], -top["position"]) == highest
    assert all(steps[-1][0] == steps[-1][1] for steps in seen.values())
    assert set(seen) == {"contexts", "firings", "shards"}
    assert lake.verify().is_whole
    assert lake.sql("SELECT model FROM saes")["model"].to_pylist() == ["google/gemma-3-1b-pt"]


def test_firings_of_nothing_and_on_padding_are_left_out_and_counted(lake, tmp_path):
    tokens, firings = make_cache()
    extra = {(0, 1, 19): 0.0, (1, 12, 19): 1.0, (2, 0, 19): 1.0}
    done = lake.import_delphi(
        write_cache(tmp_path / "cache", tokens, firings | extra), "text", **ASKED
    )
    assert (done.n_zero, done.n_on_padding) == (1, 2)
    assert "1 of activation 0 left out, 2 on padding left out" in str(done)
    assert codes(lake) == shifted(tokens, firings)


def test_caches_of_the_same_tokens_share_a_corpus(lake, tmp_path):
    tokens, firings = make_cache()
    path = write_cache(tmp_path / "one", tokens, firings)
    lake.import_delphi(path, "text", **ASKED)
    other = "mine/mlp_out/layer_3_width_20"
    asked = ASKED | {"sae": other, "site": "mlp_out"}
    lake.import_delphi(path, "text", **asked)
    assert codes(lake, other) == codes(lake)
    assert lake.sql("FROM corpora").num_rows == 1
    with pytest.raises(InvalidArgumentError, match="the lake has its firings there"):
        lake.import_delphi(path, "text", **ASKED)
    again = write_cache(tmp_path / "two", make_cache(4)[0], firings)
    with pytest.raises(CorpusExistsError, match="the lake has another one of that name"):
        lake.import_delphi(again, "text", **asked | {"sae": "mine/mlp_out/other"})
    with pytest.raises(CoderMismatchError, match="at mlp_out/3; choose another name"):
        lake.import_delphi(again, "other", **asked | {"layer": 4})
    assert lake.verify().is_whole
    assert not lake.verify().left_over


def test_two_writers_of_one_coder_leave_one_row(lake, tmp_path, monkeypatch):
    path = write_cache(tmp_path / "cache", *make_cache())
    commit = Writer.commit
    late = []

    def other_comes_first(self, *given, **asked):
        if not late:
            late.append(True)
            scopelake.open(lake.path).import_delphi(path, "theirs", **ASKED)
        return commit(self, *given, **asked)

    monkeypatch.setattr(Writer, "commit", other_comes_first)
    lake.import_delphi(path, "ours", **ASKED)
    lake = scopelake.open(lake.path)
    assert lake.sql("SELECT sae FROM saes")["sae"].to_pylist() == [SAE]
    for corpus in ("ours", "theirs"):
        assert lake.top_contexts(4, sae=SAE, corpus=corpus, k=1).table.num_rows == 1
    assert lake.verify().is_whole


def test_what_was_exported_comes_back(lake, tmp_path):
    tokens, firings = make_cache()
    lake.import_delphi(write_cache(tmp_path / "cache", tokens, firings), "text", **ASKED)
    lake.export("delphi", tmp_path / "out", sae=SAE, n_splits=4)
    (module,) = (tmp_path / "out" / "latents").iterdir()
    lake.import_delphi(module, "again", **ASKED | {"sae": "mine/resid_post/again"})
    row_of = {r["context"]: r["row"] for r in pq.read_table(tmp_path / "out" / "rows.parquet")
              .to_pylist()}  # fmt: skip
    expected = {(row_of[c], p, f): v for (c, p, f), v in codes(lake).items()}
    assert codes(lake, "mine/resid_post/again") == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_activations_come_in_as_the_cache_has_them(lake, tmp_path, dtype):
    tokens, firings = make_cache()
    cache = write_cache(tmp_path / "cache", tokens, firings, dtype=np.float32)
    for path in cache.glob("*.safetensors"):
        tensors = load_torch(path)
        save_torch(tensors | {"activations": tensors["activations"].to(dtype)}, path)
    lake.import_delphi(cache, "text", **ASKED)
    rounded = {w: torch.tensor(v).to(dtype).item() for w, v in shifted(tokens, firings).items()}
    assert codes(lake) == rounded


def spoil(folder, **changed):
    """Write one split of a cache anew with other tensors."""
    from safetensors.numpy import load_file

    path = folder / "7_13.safetensors"
    save_file({k: v for k, v in (load_file(path) | changed).items() if v is not None}, path)


def locations(folder, at, value):
    from safetensors.numpy import load_file

    found = load_file(folder / "7_13.safetensors")["locations"].astype(np.int64)
    found[at] = value
    spoil(folder, locations=found)


def values(folder, value):
    from safetensors.numpy import load_file

    found = load_file(folder / "7_13.safetensors")["activations"]
    found[0] = value
    spoil(folder, activations=found)


REFUSED = {
    "a negative value": (lambda c: values(c, -1.0), "negative or not finite"),
    "an infinite value": (lambda c: values(c, np.inf), "float16 cannot hold values above 65,504"),
    "no number": (lambda c: values(c, np.nan), "negative or not finite"),
    "a row beyond": (lambda c: locations(c, (0, 0), ROWS), "outside its 9 rows of 16 tokens"),
    "a position beyond": (lambda c: locations(c, (0, 1), LENGTH), "outside its 9 rows"),
    "a feature beyond": (lambda c: locations(c, (0, 2), 300), "outside its 9 rows"),
    "a feature of the next split": (lambda c: locations(c, (0, 2), 7), "features 7 to 13 of their"),
    "the last feature of all": (lambda c: locations(c, (0, 2), 2**63 - 1), "outside its 9 rows"),
    "a row before": (lambda c: locations(c, (0, 0), -1), "outside its 9 rows"),
    "a position before": (lambda c: locations(c, (0, 1), -1), "outside its 9 rows"),
    "a feature before": (lambda c: locations(c, (0, 2), -1), "outside its 9 rows"),
    "a firing twice": (lambda c: locations(c, 1, [0, 1, 0]) or locations(c, 2, [0, 1, 0]),
                       "fires twice"),
    "a split missing": (lambda c: (c / "7_13.safetensors").unlink(), "begins with feature 7 is"),
    "no splits": (lambda c: [p.unlink() for p in c.glob("*.safetensors")], "folder of one module"),
    "no tokens": (lambda c: spoil(c, tokens=None), "has no tokens; cache it with save_tokens"),
    "other tokens": (lambda c: spoil(c, tokens=make_cache(4)[0]), "splits have different tokens"),
    "fewer values": (lambda c: spoil(c, activations=np.ones(3, np.float16)), "are of shapes"),
    "values of 64 bits": (lambda c: spoil(c, activations=np.ones(3, np.float64)),
                          "activations are of type F64; they have to be of F16, BF16, F32"),
    "places that are not whole": (lambda c: spoil(c, locations=np.ones((3, 3), np.float32)),
                                  "locations are of type F32"),
    "tokens that are not whole": (lambda c: spoil(c, tokens=np.ones((9, 16), np.float32)),
                                  "tokens are of type F32"),
    "half a file": (lambda c: (c / "7_13.safetensors").write_bytes(b"half"), "no whole safetens"),
    "no config": (lambda c: (c / "config.json").unlink(), "config.json cannot be"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_lake_can_hold_is_refused_and_nothing_stays(lake, tmp_path, what):
    damage, message = REFUSED[what]
    cache = write_cache(tmp_path / "cache", *make_cache())
    damage(cache)
    with pytest.raises(CoderFileError, match=message) as refused:
        lake.import_delphi(cache, "text", **ASKED)
    assert "\n" not in str(refused.value)
    assert scopelake.open(lake.path).snapshot == lake.snapshot
    assert not [p for p in lake.path.glob("tables/*/*/**/*.parquet") if "_delta_log" not in p.parts]


def test_tokens_of_another_tokenizer_and_unusable_names_are_refused(lake, tmp_path):
    tokens, firings = make_cache()
    tokens[4, 5] = 300_000
    cache = write_cache(tmp_path / "cache", tokens, firings)
    with pytest.raises(CoderFileError, match="knows 4096 tokens; give the one that made them"):
        lake.import_delphi(cache, "text", **ASKED)
    with pytest.raises(InvalidArgumentError, match="<repo>/<family>/<folder>"):
        lake.import_delphi(cache, "text", **ASKED | {"sae": "mine"})
    with pytest.raises(InvalidArgumentError, match="corpus name"):
        lake.import_delphi(cache, "a text", **ASKED)


def test_the_shell_imports(lake, tmp_path, capsys):
    tokens, firings = make_cache()
    cache = write_cache(tmp_path / "cache", tokens, firings, dtype=np.float32)
    command = ["import-delphi", str(lake.path), str(cache), "text", "--sae", SAE, "--layer", "3",
               "--site", "resid_post", "--tokenizer", tiny.MODEL_NAME]  # fmt: skip
    assert main(command) == 0
    assert f"{SAE} on corpus text: {len(firings):,} firings of 20 features" in (
        capsys.readouterr().out
    )
    assert main(command) == 2
    assert "the lake has its firings there" in capsys.readouterr().err
