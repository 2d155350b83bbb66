"""Loading Gemma 3: a local folder or a hub id, in bfloat16 or float32."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch

from scopelake.errors import InvalidArgumentError, MissingDependencyError, ModelError
from scopelake.ingest.attention import register
from scopelake.ingest.digest import digest_files
from scopelake.ingest.hub import fetch_snapshot, is_local, repo_of_cached
from scopelake.names import counted

_ARCHITECTURES = ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")
TEXT_KEYS: Final = {r"^(?:model\.)?language_model\.(?:model\.)?": "model."}
"""From the text decoder's names in a checkpoint of the multimodal class to those in its own."""
_TOKENIZER_FILES = ["*.json", "tokenizer.model", "*.jinja"]
_FILES = [*_TOKENIZER_FILES, "*.safetensors"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


ROUNDED: Final = "bfloat16 of float32"
"""Precision of activations of a float32 model that were stored as bfloat16."""


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies and what it is called."""

    path: Path
    name: str
    """Hub id, or the name that coders know it by."""
    revision: str


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """What is known of a model whose activations are at hand."""

    name: str
    revision: str
    digest: str
    """Of its weights and its configuration."""
    architecture: str
    n_layers: int
    d_model: int
    attention_width: int
    """Heads times head_dim: the input width of ``o_proj``."""
    dtype: str
    """Precision of its activations."""
    device: torch.device
    """Where token ids go in and activations come out; its modules may lie elsewhere."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel(ModelIdentity):
    """A Gemma 3 ready for capture."""

    module: Any
    """The transformers model, in eval mode, on its device."""
    vocab_size: int
    max_positions: int
    """Most tokens in a context."""
    layer_floats: int
    """Numbers that a layer holds of each token while it runs: its stream, heads and MLP."""


def find_model(model: str | Path, *, tokenizer_only: bool = False) -> ModelFiles:
    """Return the local files of a model, fetching a hub id if it is not a folder.

    Args:
        model: a folder, or ``<org>/<name>[@<revision>]``.
        tokenizer_only: fetch no weights.

    Raises:
        ModelError: no such folder.
        HubError: the repository is missing, gated or out of reach.
    """
    path = Path(model)
    if path.is_dir():
        name = repo_of_cached(path.resolve()) or path.resolve().name
        return ModelFiles(path, name, "local")
    name, revision = split_hub_id(model)
    patterns = _TOKENIZER_FILES if tokenizer_only else _FILES
    fetched = fetch_snapshot(name, patterns, revision)
    return ModelFiles(fetched, name, fetched.name)


def split_hub_id(model: str | Path) -> tuple[str, str | None]:
    """Return name and revision of a model that is no local folder.

    Raises:
        ModelError: it is no hub id, either.
    """
    name, _, revision = str(model).partition("@")
    is_path = Path(model).is_absolute() or name.startswith((".", "~")) or is_local(name)
    if is_path or name.count("/") != 1:
        raise ModelError(
            f"model {str(model)!r} was asked for; there is no such folder; name a folder or a hub "
            "id such as google/gemma-3-1b-it"
        )
    return name, revision or None


def choose_device(device: str, others: Iterable[str] = ()) -> torch.device:
    """Return the torch device that ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` names.

    Args:
        device: its name.
        others: names that whoever asks could have given, too.

    Raises:
        ModelError: the device is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        *known, last = ("cpu", *others, "auto")
        raise ModelError(
            f"device {device!r} was asked for; torch cannot use it; choose "
            f"{', '.join(map(repr, known))} or {last!r}"
        ) from error
    return chosen


DeviceMap = str | Mapping[str, int | str] | None


def load_model(
    files: ModelFiles,
    *,
    device: str = "auto",
    dtype: str = "auto",
    device_map: DeviceMap = None,
) -> LoadedModel:
    """Load a Gemma 3 for capture.

    Args:
        files: from `find_model`.
        device: ``auto`` takes a GPU where there is one.
        dtype: ``float32``, ``bfloat16``, or ``auto``: float32 on a CPU, bfloat16 on a GPU.
        device_map: for a model larger than a device, as transformers takes it: ``auto``, or a
            device (``cpu``, ``disk``, a GPU's number) by module, such as ``model.layers.0``.

    Raises:
        ModelError: not a Gemma 3, unusable files, or float16.
        InvalidArgumentError: both a device and a device map.
        MissingDependencyError: a device map without accelerate.
    """
    check_device_map(device_map, device)
    target = choose_device(device)
    name = ("float32" if target.type == "cpu" else "bfloat16") if dtype == "auto" else dtype
    if name not in _DTYPES:
        raise ModelError(
            f"dtype {dtype!r} was asked for; Gemma 3's activations pass 65504, which float16 "
            "cannot hold; choose 'bfloat16' or 'float32'"
        )
    config = read_config(files)
    module = _load_text_model(files, _DTYPES[name], device_map)
    if device_map is None:
        module.to(target)
    module.eval().requires_grad_(False)
    text = module.config.get_text_config()
    return LoadedModel(
        module=module,
        name=files.name,
        revision=files.revision,
        digest=weights_digest(files),
        architecture=config["architectures"][0],
        n_layers=int(text.num_hidden_layers),
        d_model=int(text.hidden_size),
        attention_width=int(text.num_attention_heads * text.head_dim),
        vocab_size=int(text.vocab_size),
        max_positions=int(text.max_position_embeddings),
        layer_floats=floats_of_layer(
            int(text.intermediate_size), int(text.hidden_size),
            int(text.num_attention_heads * text.head_dim),
        ),
        dtype=name,
        device=target,
    )  # fmt: skip


def floats_of_layer(ffn: int, d_model: int, attention_width: int) -> int:
    """Return how many numbers a layer holds of each token while it runs."""
    return 3 * ffn + 8 * d_model + 4 * attention_width


def weights_digest(files: ModelFiles) -> str:
    """Return the digest of a model's weights and its configuration."""
    return digest_files([*files.path.glob("*.safetensors"), files.path / "config.json"])


def check_vocabulary(
    model: LoadedModel, contexts: Sequence[npt.NDArray[np.int32]], corpus: str
) -> None:
    """Refuse token ids that the model does not know.

    Raises:
        ModelError: one of `contexts` has such an id.
    """
    highest = max((int(ids.max()) for ids in contexts), default=0)
    if highest >= model.vocab_size:
        raise ModelError(
            f"corpus {corpus!r} has token id {highest}; {model.name} knows {model.vocab_size} "
            "tokens; use a model of the corpus's tokenizer"
        )


def weight_of(model: LoadedModel, module: Any) -> torch.Tensor:  # noqa: ANN401
    """Return a module's weight, float32, on the model's device, wherever it is kept."""
    if not module.weight.is_meta:
        return cast("torch.Tensor", module.weight.to(model.device, torch.float32))
    from accelerate.utils import align_module_device

    with align_module_device(module, model.device):
        return cast("torch.Tensor", module.weight.float().clone())


def check_device_map(device_map: DeviceMap, device: str) -> None:
    """Refuse a device map that cannot be followed.

    Raises:
        InvalidArgumentError: a device is given too.
        MissingDependencyError: accelerate is not installed.
    """
    if device_map is None:
        return
    if device != "auto":
        raise InvalidArgumentError(
            f"device {device!r} and a device map were asked for; the map says where each module "
            "goes; give one of them"
        )
    if find_spec("accelerate") is None:
        raise MissingDependencyError(
            "a device map was asked for; the package accelerate, which places the modules, is not "
            "installed; run pip install 'scopelake[device-map]'"
        )


def _load_text_model(files: ModelFiles, dtype: torch.dtype, device_map: DeviceMap) -> Any:  # noqa: ANN401
    """Load the text decoder of either class; a vision tower's weights are never read."""
    from transformers import AutoConfig, Gemma3ForCausalLM  # heavy: only when a model is loaded

    attention = register()
    try:
        with _quiet():
            # Not given, transformers asks on the terminal whether to run code from the files.
            config = AutoConfig.from_pretrained(str(files.path), trust_remote_code=False)
            text = config.get_text_config()
            module, report = Gemma3ForCausalLM.from_pretrained(
                str(files.path),
                config=text,
                dtype=dtype,
                key_mapping=TEXT_KEYS,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                device_map=device_map,
                attn_implementation=attention,
            )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {files.name!r} was asked for; {files.path} cannot be loaded "
            f"({' '.join(str(error).split())}); check that its files are complete"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"model {files.name!r} was asked for; {files.path} lacks "
            f"{counted(len(missing), 'tensor')} "
            f"({missing[0]}, ...); check that its files are complete"
        )
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bar and its report of unread vision weights off stderr."""
    from transformers.utils import logging

    enabled, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if enabled:
            logging.enable_progress_bar()


def read_config(files: ModelFiles) -> dict[str, Any]:
    """Return a model's config.json.

    Raises:
        ModelError: it is missing, or not a Gemma 3's.
    """
    path = files.path / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {files.name!r} was asked for; {path} is missing or not JSON; name the folder "
            "of a Gemma 3 model"
        ) from error
    found = (config.get("architectures") or ["none"])[0]
    if found not in _ARCHITECTURES:
        raise ModelError(
            f"model {files.name!r} was asked for; its architecture is {found}; scopelake reads "
            f"{' and '.join(_ARCHITECTURES)}"
        )
    return config
