"""What one process of peers.py does: store the firings of a corpus, or ask for top contexts.

A peer's packages are imported where they are used, so that each process holds its own alone.

    python peers_inside.py PEER CODERS PLACE      store; JSON to stdout, last line
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import numpy.typing as npt
from record import peak_mib

CORPUS: Final = "code"
ROWS: Final = 32
"""Contexts in a forward pass, delphi's default; ours gets as many tokens."""
LENGTH: Final = 256
K: Final = 20
WINDOW: Final = 16
"""Tokens on either side of a peak."""
SPLITS: Final = 5
"""delphi's default."""
ASKED: Final = "resid_post_all/layer_3_width_1024_l0_small"
"""The coder that is asked about."""

Top = list[tuple[float, int, list[str]]]
"""Of each of the strongest contexts its activation, its row, the texts around its peak."""
Codes = tuple[int, str, Any]
"""First row of a batch, name of the coder, dense codes [n_tokens, width]."""

_MODULE: Final = {
    "resid_post": "layers.{}",
    "mlp_out": "layers.{}.post_feedforward_layernorm",
    "attn_out": "layers.{}.self_attn.o_proj",
    "mlp_in": "layers.{}.mlp",
}
"""Where the sites are, by transformers' names."""


@dataclass(frozen=True)
class Coder:
    """One coder, so that no peer needs ours to find it."""

    name: str
    path: str
    """The folder."""
    params: str
    """The file of weights."""
    site: str
    layer: int
    width: int
    d_in: int

    @property
    def module(self) -> str:
        """The module whose output or input it reads."""
        return _MODULE[self.site].format(self.layer)

    @property
    def reads_input(self) -> bool:
        """Whether it reads the input of its module."""
        return self.site in ("attn_out", "mlp_in")


def coders_of(place: Path, which: str) -> list[Coder]:
    """The residual stream's coders or all."""
    return [Coder(**c) for c in json.loads((place / "coders.json").read_text())[which]]


def asked_coder(place: Path) -> Coder:
    """The coder that is asked about."""
    return next(c for c in coders_of(place, "residual") if c.name.endswith(ASKED))


def load_model(place: Path) -> Any:  # noqa: ANN401
    """The model as transformers loads it, without its unembedding."""
    import torch
    from transformers import AutoModel

    return AutoModel.from_pretrained(model_path(place), dtype=torch.float32)


def model_path(place: Path) -> str:
    """Folder of the model and its tokenizer."""
    return str(json.loads((place / "coders.json").read_text())["model"])


def tokens_of(place: Path) -> npt.NDArray[np.int64]:
    """The corpus, [n_contexts, LENGTH]; each context begins with BOS."""
    found: npt.NDArray[np.int64] = np.load(place / "tokens.npy")
    return found


@contextmanager
def counted_tokens() -> Iterator[list[int]]:
    """Count the tokens that any model embeds."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    counts: list[int] = []

    def hook(module: Any, args: Any) -> None:  # noqa: ANN401
        if type(module).__name__ == "Gemma3TextScaledWordEmbedding":
            counts.append(args[0].numel())

    handle = register_module_forward_pre_hook(hook)
    try:
        yield counts
    finally:
        handle.remove()


def store_ours(which: str, place: Path) -> None:
    """`lake.ingest` with its defaults, as many tokens in a batch as the others."""
    import scopelake
    from scopelake import tiny

    scopelake.open(place / "lake").ingest(
        CORPUS, model=tiny.MODEL_NAME, saes=[c.path for c in coders_of(place, which)], device="cpu",
        batch_tokens=ROWS * LENGTH,
    )  # fmt: skip


def ask_ours(place: Path) -> Callable[[int], Top]:
    """`lake.top_contexts`; firings on BOS count, as they do for the others."""
    import scopelake

    lake = scopelake.open(place / "lake")

    def ask(feature: int) -> Top:
        found = lake.top_contexts(feature, sae=ASKED, k=K, window=WINDOW, bos=True).table
        columns = (found[c].to_pylist() for c in ("activation", "context", "tokens"))
        return list(zip(*columns, strict=True))

    return ask


def delphi_coder(coder: Coder) -> Any:  # noqa: ANN401
    """Weights in delphi's own JumpReLU SAE; its package of coders wants sparsify, this file not."""
    import delphi
    import torch
    from safetensors.torch import load_file

    file = Path(delphi.__path__[0]) / "sparse_coders/custom/gemmascope.py"
    spec = importlib.util.spec_from_file_location("delphi_gemmascope", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    weights = {k: v.float() for k, v in load_file(coder.params).items()}
    sae = module.JumpReluSae(coder.d_in, coder.width)
    named = {"w_enc": "W_enc", "w_dec": "W_dec"}
    state = {named.get(k, k): v for k, v in weights.items() if k != "affine_skip_connection"}
    sae.load_state_dict(state)
    return sae.to(torch.float32)


def store_delphi(which: str, place: Path) -> None:
    """delphi's LatentCache, a run for each width and side of a module that is read.

    One run takes one width, and reads either inputs or outputs.
    """
    import torch
    from delphi.config import CacheConfig
    from delphi.latents import LatentCache

    model = load_model(place)
    tokens = torch.from_numpy(tokens_of(place))

    def run_of(coder: Coder) -> tuple[bool, int]:
        return coder.reads_input, coder.width

    for (is_input, _), group in groupby(sorted(coders_of(place, which), key=run_of), key=run_of):
        encoders = {c.module: delphi_coder(c).encode for c in group}
        cache = LatentCache(model, encoders, batch_size=ROWS, transcode=is_input)
        cache.run(tokens.numel(), tokens)
        cache.save_splits(SPLITS, place / "delphi")
        config = CacheConfig(batch_size=ROWS, cache_ctx_len=LENGTH, n_splits=SPLITS)
        cache.save_config(place / "delphi", config, model_path(place))


def ask_delphi(place: Path) -> Callable[[int], Top]:
    """delphi's LatentDataset for one feature, spared what it would do beyond the question."""
    import torch
    from delphi.config import ConstructorConfig, SamplerConfig
    from delphi.latents import LatentDataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path(place))
    module = asked_coder(place).module
    rows = {row.tobytes(): i for i, row in enumerate(tokens_of(place))}

    def ask(feature: int) -> Top:
        data = LatentDataset(
            place / "delphi",
            SamplerConfig(n_examples_train=K, n_examples_test=0, train_type="top"),
            ConstructorConfig(example_ctx_len=LENGTH, min_examples=1, n_non_activating=0),
            tokenizer=tokenizer,
            modules=[module],
            latents={module: torch.tensor([feature])},
        )
        found: Top = []
        for example in (e for record in data for e in record.train):
            peak = int(example.activations.argmax())
            texts = example.str_tokens[max(0, peak - WINDOW) : peak + WINDOW + 1]
            row = rows[example.tokens.numpy().tobytes()]
            found.append((float(example.max_activation), row, texts))
        return found

    return ask


def sae_lens_coder(coder: Coder) -> Any:  # noqa: ANN401
    """A coder by SAELens' loader for Gemma Scope 2, from its folder instead of the hub."""
    import sae_lens
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from safetensors import safe_open

    def local_file(repo_id: str, filename: str, subfolder: str | None = None, **_: object) -> str:
        return str(Path(repo_id, subfolder or "", filename))

    def local_shapes(repo_id: str, filename: str) -> dict[str, tuple[int, ...]]:
        with safe_open(Path(repo_id, filename), framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118

    path = Path(coder.path)
    repo, inner = str(path.parents[1]), f"{path.parent.name}/{path.name}"
    with (
        mock.patch.object(loaders, "hf_hub_download", local_file),
        mock.patch.object(loaders, "get_safetensors_tensor_shapes", local_shapes),
    ):
        config, state, _ = loaders.gemma_3_sae_huggingface_loader(repo, inner)
    cls, config_cls = sae_lens.registry.get_sae_class(config["architecture"])
    sae = cls(config_cls.from_dict(config))
    sae.load_state_dict(state)
    return sae.eval()


def sae_lens_codes(coders: list[Coder], place: Path) -> Callable[[], Iterator[Codes]]:
    """Return a pass over the corpus.

    SAELens has no pass of its own that gives codes; activations come by hooks on transformers.
    """
    import torch

    model = load_model(place)
    model.layers = model.layers[: max(c.layer for c in coders) + 1]  # no more is needed
    found: dict[str, Any] = {}
    for coder in coders:
        model.get_submodule(coder.module).register_forward_hook(keeper(coder, found))
    saes = [(c.name, sae_lens_coder(c)) for c in coders]
    tokens = torch.from_numpy(tokens_of(place))

    def run() -> Iterator[Codes]:
        for start in range(0, len(tokens), ROWS):
            with torch.inference_mode():
                model(tokens[start : start + ROWS], use_cache=False)
                for name, sae in saes:
                    yield start, name, sae.encode(found[name].flatten(0, 1))

    return run


def keeper(coder: Coder, found: dict[str, Any]) -> Callable[[Any, Any, Any], None]:
    """A hook that keeps what the coder reads."""

    def hook(module: Any, args: Any, output: Any) -> None:  # noqa: ANN401
        if coder.reads_input:
            found[coder.name] = args[0]
        else:
            found[coder.name] = output[0] if isinstance(output, tuple) else output

    return hook


def store_sae_lens(which: str, place: Path) -> None:
    """Encode all, and keep nothing: SAELens has no store of codes."""
    for _ in sae_lens_codes(coders_of(place, which), place)():
        pass


def keep_sae_lens(which: str, place: Path) -> None:
    """Write the firings that SAELens' codes hold, to compare; not timed."""
    found: dict[str, list[tuple[Any, Any]]] = {}
    for start, name, codes in sae_lens_codes(coders_of(place, which), place)():
        token, feature = codes.nonzero(as_tuple=True)
        key = (start * LENGTH + token) * codes.shape[1] + feature
        found.setdefault(name, []).append((key.numpy(), codes[token, feature].numpy()))
    for name, pieces in found.items():
        keys, values = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        np.savez(place / f"{name.replace('/', '~')}.npz", keys=keys, values=values)


def ask_sae_lens(place: Path) -> Callable[[int], Top]:
    """Run the model again to the coder's layer, encode, keep the strongest of each context."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path(place))
    run = sae_lens_codes([asked_coder(place)], place)
    rows = tokens_of(place)

    def ask(feature: int) -> Top:
        of_feature = [codes[:, feature].reshape(-1, LENGTH).numpy() for _, _, codes in run()]
        activations = np.concatenate(of_feature)
        peaks, highest = activations.argmax(axis=1), activations.max(axis=1)
        found: Top = []
        for row in np.argsort(-highest, kind="stable")[:K].tolist():
            if highest[row] > 0:
                window = slice(max(0, peaks[row] - WINDOW), peaks[row] + WINDOW + 1)
                texts = [tokenizer.decode([i]) for i in rows[row, window].tolist()]
                found.append((float(highest[row]), row, texts))
        return found

    return ask


STORE: Final = {
    "scopelake": store_ours,
    "delphi": store_delphi,
    "saelens": store_sae_lens,
    "saelens firings": keep_sae_lens,
}
_MODEL: Final = "transformers.models.gemma3.modeling_gemma3"
IMPORTED: Final = {
    "scopelake": (_MODEL, "scopelake.lake", "scopelake.ingest.pipeline"),
    "delphi": (_MODEL, "delphi.latents"),
    "saelens": (_MODEL, "sae_lens"),
    "saelens firings": (),
}
"""What storing needs."""
ASK: Final = {"scopelake": ask_ours, "delphi": ask_delphi, "saelens": ask_sae_lens}


def import_for(peer: str) -> None:
    """Import what storing needs, so that it is not timed."""
    for name in IMPORTED[peer]:
        importlib.import_module(name)


def store(peer: str, which: str, place: Path) -> dict[str, float]:
    """Store a corpus; what it took, from the model's files on, imports apart."""
    import_for(peer)
    imported = peak_mib()
    with counted_tokens() as tokens:
        start = time.perf_counter()
        STORE[peer](which, place)
        seconds = time.perf_counter() - start
    passes = sum(tokens) / tokens_of(place).size
    return {"seconds": seconds, "passes": passes, "imported": imported, "peak": peak_mib()}


def ask(started: float, peer: str, place: Path, features: list[int]) -> dict[str, Any]:
    """Ask about features; the first from `started` on, by `time.perf_counter`."""
    asked = ASK[peer](place)
    tops, ends = [], []
    begun = time.perf_counter()
    for feature in features:
        tops.append(asked(feature))
        ends.append(time.perf_counter())
    warm = [b - a for a, b in zip(ends, ends[1:], strict=False)]
    first = {"first": ends[0] - started, "answer": ends[0] - begun}
    return {**first, "warm": warm, "peak": peak_mib(), "tops": tops}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=STORE)
    parser.add_argument("which", choices=("residual", "all"))
    parser.add_argument("place", type=Path)
    args = parser.parse_args()
    print(json.dumps(store(args.peer, args.which, args.place)))


if __name__ == "__main__":
    main()
