"""Builders for corpora, models and coders in their real formats, small and random."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scopelake import tiny
from scopelake.ingest.documents import Document


@pytest.fixture(scope="session")
def tokenizer():
    from scopelake.ingest.tokens import Tokenizer

    return Tokenizer.load(tiny.model_path(), tiny.MODEL_NAME)


@pytest.fixture(scope="session")
def tiny_model():
    from scopelake.ingest.model import ModelFiles, load_model

    files = ModelFiles(tiny.model_path(), tiny.MODEL_NAME, "local")
    return load_model(files, device="cpu", dtype="float32")


@pytest.fixture
def write_coder():
    """Return a function that writes a coder folder in Gemma Scope 2's layout."""

    def write(root, family="resid_post_all", folder="layer_1_width_64_l0_small", *, d_in=128,
              width=64, d_out=None, config=None, drop=(), **tensors):  # fmt: skip
        d_out = d_in if d_out is None else d_out
        generator = torch.Generator().manual_seed(0)
        values = {
            "w_enc": torch.randn(d_in, width, generator=generator),
            "b_enc": torch.zeros(width),
            "threshold": torch.rand(width, generator=generator) + 1,
            "w_dec": torch.nn.functional.normalize(
                torch.randn(width, d_out, generator=generator), dim=1
            ),
            "b_dec": torch.zeros(d_out),
        } | tensors
        target = root / "gemma-scope-2-test" / family / folder
        target.mkdir(parents=True)
        save_file({k: v for k, v in values.items() if k not in drop}, target / "params.safetensors")
        if config is None:
            config = {"model_name": tiny.MODEL_NAME, "architecture": "jump_relu", "l0": 10}
        if config is not False:
            (target / "config.json").write_text(json.dumps(config))
        return target

    return write


EXAMPLES_DEPTH, EXAMPLES_LENGTH = 30, 40
CHAT = ({"role": "user", "content": "What is a 🦜?"}, {"role": "assistant", "content": "A bird."})


def _top_firings(codes, is_shown, depth):
    """The strongest `depth` firings of each feature in dense codes [context, position, feature].

    Written out: sorted by activation, padded with zeros, as the publisher's files are.
    """
    n_contexts, length, width = codes.shape
    found = {
        "activations": np.zeros((width, depth), dtype=np.float32),
        "seq_ids": np.zeros((width, depth), dtype=np.int64),
        "positions": np.zeros((width, depth), dtype=np.int32),
    }
    for feature in range(width):
        rows = sorted(
            (-codes[c, p, feature], c, p)
            for c in range(n_contexts)
            for p in range(length)
            if is_shown[c, p] and codes[c, p, feature] > 0
        )[:depth]
        for i, (minus, context, position) in enumerate(rows):
            found["activations"][feature, i] = -minus
            found["seq_ids"][feature, i] = context
            found["positions"][feature, i] = position
    return found


def _make_rows(tokenizer):
    """Rows of ids without padding, of many lengths, one a chat."""
    texts = [f"import os\n\nclass Lake{i}:\n    depth = {i}  # naïve 漢字\n" for i in range(12)]
    rows = [[2, *t.token_ids.tolist()][: EXAMPLES_LENGTH - i] for i, t in
            enumerate(tokenizer.encode_texts(texts))]  # fmt: skip
    rows.append(tokenizer.encode_chat(Document("d", "here", messages=CHAT)).token_ids.tolist())
    return [row[:EXAMPLES_LENGTH] for row in rows]


def _padded(rows):
    """A rectangle: the third row is padded on the left, the others on the right."""
    tokens = np.zeros((len(rows), EXAMPLES_LENGTH), dtype=np.int32)
    columns = []
    for i, row in enumerate(rows):
        start = EXAMPLES_LENGTH - len(row) if i == 2 else 0
        tokens[i, start : start + len(row)] = row
        columns.append(range(start, start + len(row)))
    return tokens, columns


def _dense_codes(rows, columns, weights):
    """Codes of every row by plain transformers and the written-out maths [row, column, feature]."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(tiny.model_path()), dtype=torch.float32)
    seen = {}
    model.model.layers[1].register_forward_hook(
        lambda m, args, out: seen.__setitem__("x", out[0] if isinstance(out, tuple) else out)
    )
    codes = np.zeros((len(rows), EXAMPLES_LENGTH, weights["w_enc"].shape[1]), dtype=np.float32)
    for i, row in enumerate(rows):
        with torch.no_grad():
            model(input_ids=torch.tensor([row]))
        pre = seen["x"].view(len(row), -1) @ weights["w_enc"] + weights["b_enc"]
        codes[i, list(columns[i])] = torch.where(pre > weights["threshold"], pre.relu(), 0.0)
    return codes


@pytest.fixture
def published(tmp_path, tokenizer, write_coder, write_examples):
    """A coder with its examples, made by an oracle."""
    folder = write_coder(tmp_path)
    rows = _make_rows(tokenizer)
    tokens, columns = _padded(rows)
    codes = _dense_codes(rows, columns, load_file(folder / "params.safetensors"))
    firings = _top_firings(codes, tokens >= 0, EXAMPLES_DEPTH)
    tensors = write_examples(folder, tokens, firings)
    return SimpleNamespace(
        folder=folder, rows=rows, columns=columns, codes=codes, tokens=tokens, firings=firings,
        tensors=tensors,
    )  # fmt: skip


@pytest.fixture
def write_examples():
    """Return a function that writes examples.safetensors beside a coder."""

    def write(folder, tokens, firings, *, drop=(), changed=None):
        from safetensors.numpy import save_file as save

        width, depth = firings["activations"].shape
        generator = np.random.default_rng(1)
        tensors = {
            "tokens": tokens.astype(np.int32),
            **firings,
            "logit_effects": np.zeros((width, depth), dtype=np.float32),
            "feature_frequencies": generator.random(width),
            "top_tokens": generator.integers(0, 4096, (width, 10), dtype=np.int32),
            "bottom_tokens": generator.integers(0, 4096, (width, 10), dtype=np.int32),
            "top_logits": generator.random((width, 10), dtype=np.float32),
            "bottom_logits": -generator.random((width, 10), dtype=np.float32),
        } | (changed or {})
        folder.mkdir(parents=True, exist_ok=True)
        kept = {k: np.ascontiguousarray(v) for k, v in tensors.items() if k not in drop}
        save(kept, folder / "examples.safetensors")
        return tensors

    return write


@pytest.fixture
def write_multi_layer():
    """Return a function that writes a crosscoder or CLT, a file for each layer."""

    def write(root, family, folder, *, n_layers, d_in=128, width=16, scale=0.1, affine=False,
              repo="gemma-scope-2-test"):  # fmt: skip
        target = root / repo / family / folder
        target.mkdir(parents=True)
        generator = torch.Generator().manual_seed(n_layers)
        for layer in range(n_layers):
            w_dec = torch.randn(width, n_layers, d_in, generator=generator)
            w_dec[:, :layer] = 0.0
            tensors = {
                "w_enc": torch.randn(d_in, width, generator=generator) * scale,
                "b_enc": torch.randn(width, generator=generator) * scale,
                "threshold": torch.rand(width, generator=generator) + 3.0,
                "w_dec": w_dec,
                "b_dec": torch.randn(d_in, generator=generator),
            }
            if affine:
                tensors["affine_skip_connection"] = torch.randn(d_in, d_in, generator=generator)
            save_file(tensors, target / f"params_layer_{layer}.safetensors")
        # The hook points as Google's files have them: braces, and "all" instead of a CLT's layers.
        layers = re.match(r"layer_([\d_]+)_width", folder)
        layers = "{all}" if layers is None else f"{{{layers[1].replace('_', ',')}}}"
        inner = ("pre_feedforward_layernorm.", "post_feedforward_layernorm.")
        ends = inner if family == "clt" else ("", "")
        config = {
            "model_name": tiny.MODEL_NAME, "architecture": "jump_relu", "type": family,
            "width": width * n_layers, "affine_connection": affine, "l0": 50,
            "hf_hook_point_in": f"model.layers.{layers}.{ends[0]}output",
            "hf_hook_point_out": f"model.layers.{layers}.{ends[1]}output",
        }  # fmt: skip
        (target / "config.json").write_text(json.dumps(config))
        return target

    return write


REPO = "google/gemma-scope-2-1b-it"
FOLDER = "resid_post_all/layer_1_width_1024_l0_small"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as listing and fetching need."""

    files: dict = {}
    fetched: list = []
    revisions: list = []
    sent: dict = {}
    """Bytes of each file, over all answers."""
    lies: dict = {}
    resolved: set = set()
    reached = released = threading.Event()
    cut = "nothing"
    cut_after = 9
    hangs = False
    has_ranges = True

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        raw = urlsplit(self.path).path
        path = unquote(raw)
        if "gated" in path:
            return self.send(403, b"", {"X-Error-Code": "GatedRepo"})
        if REPO not in path:
            return self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if path.startswith(f"/api/models/{REPO}/revision/"):
            self.revisions.append(unquote(raw.rsplit("/", 1)[1]))
            found = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": f} for f in self.files]}
            return self.send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})
        if path.startswith(f"/api/models/{REPO}/tree/"):
            revision, _, inner = raw.removeprefix(f"/api/models/{REPO}/tree/").partition("/")
            revision, inner = unquote(revision), unquote(inner)
            if revision not in ("main", "v2", "refs/pr/1", COMMIT):
                return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": COMMIT}
                for name, data in self.files.items()
                if name.startswith(inner)
            ]
            if not tree:
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return self.send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        revision, name = map(unquote, raw.split("/resolve/", 1)[1].split("/", 1))
        Hub.resolved.add(revision)
        if name not in self.files:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        if body:
            self.fetched.append(name)
        data = self.files[name]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        asked = self.headers.get("Range", "bytes=-").removeprefix("bytes=")
        start, stop = (int(n) if n else None for n in asked.split("-"))
        status, data = 200, Hub.lies.get(name, data)
        if self.has_ranges and start is not None:
            part = data[start : None if stop is None else stop + 1]
            headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
            status, data = 206, part
        cut = self.cut_after if body and name.endswith(self.cut) else len(data)
        self.sent[name] = self.sent.get(name, 0) + (min(cut, len(data)) if body else 0)
        if cut >= len(data):
            return self.send(status, data, headers, body=body)
        self.send(status, data, headers, body=False)
        self.wfile.write(data[:cut])
        self.wfile.flush()
        if self.hangs:
            Hub.reached.set()
            Hub.released.wait(30)
        return None

    def send(self, status, data, headers, *, body=True):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        """Nothing: the tests read what was fetched."""


@pytest.fixture
def hub(tmp_path):
    """A running hub with one coder, and a function that runs Python against it."""
    source = tiny.coders_path() / FOLDER
    Hub.files = {f"{FOLDER}/{f.name}": f.read_bytes() for f in source.iterdir()}
    Hub.files[f"{FOLDER}/examples.safetensors"] = b"large"
    Hub.files["README.md"] = b"card"
    Hub.fetched, Hub.revisions, Hub.sent, Hub.lies, Hub.resolved = [], [], {}, {}, set()
    Hub.cut, Hub.cut_after, Hub.hangs, Hub.has_ranges = "nothing", 9, False, True
    Hub.reached, Hub.released = threading.Event(), threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-P", *arguments], capture_output=True, text=True, check=False,
            env=environment, cwd=tmp_path,
        )  # fmt: skip

    run.environment, run.server = environment, Hub
    yield run
    Hub.released.set()
    server.shutdown()
    server.server_close()
    thread.join()
