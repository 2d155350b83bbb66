"""Google's own examples of a coder's features: what ``examples.safetensors`` holds.

The file lies beside a single-layer coder's weights. It has a corpus of token ids, each feature's
strongest firings on it (sorted, padded with zeros), how often each feature fires, and the tokens
that its decoder promotes and suppresses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from scopelake.errors import CoderFileError
from scopelake.ingest.coder_identity import CoderIdentity, check_folder, read_identity
from scopelake.ingest.coders import PARAMS, CoderFiles, read_coder
from scopelake.names import SiteLayer

EXAMPLES: Final = "examples.safetensors"

_DTYPES: Final = {
    "tokens": "I32",
    "activations": "F32",
    "seq_ids": "I64",
    "positions": "I32",
    "feature_frequencies": "F64",
    "top_tokens": "I32",
    "top_logits": "F32",
    "bottom_tokens": "I32",
    "bottom_logits": "F32",
}
TOKEN_COLUMNS: Final = ("top_tokens", "top_logits", "bottom_tokens", "bottom_logits")
"""Those that some files lack, all four together."""


@dataclass(frozen=True)
class Examples:
    """An examples file, known by its safetensors header."""

    file: Path
    identity: CoderIdentity
    weights: CoderFiles | None
    """The coder itself, where its weights lie beside the file."""
    n_features: int
    depth: int
    """Most firings that the file gives for a feature."""
    n_contexts: int
    context_length: int
    """Of its corpus, padding included."""
    has_tokens: bool
    """Whether it has TOKEN_COLUMNS."""

    @property
    def name(self) -> str:
        """The coder's name."""
        return self.identity.name

    @property
    def path(self) -> Path:
        """The coder's folder."""
        return self.file.parent

    @property
    def sites(self) -> tuple[SiteLayer, ...]:
        """What the coder reads."""
        return self.identity.sites


@dataclass(frozen=True)
class FiringBlock:
    """Firings of a range of features, as the file has them: arrays [n_features, depth]."""

    first_feature: int
    activations: npt.NDArray[np.float32]
    """0 where a feature has fewer."""
    contexts: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int32]
    """Of the corpus's rectangle, padding included."""


def read_examples(path: Path, repo: str | None = None) -> Examples:
    """Read the header of the examples of the coder in folder `path`.

    Args:
        path: the coder's folder.
        repo: the repository's name, if the folder's grandparent is not called so.

    Raises:
        CoderFileError: no such file, wrong tensors, or a coder of several layers.
    """
    path = path.resolve()
    parsed = check_folder(path)
    if parsed.family.is_multi_layer or parsed.layers is None:
        raise CoderFileError(
            f"examples of {path.parent.name}/{path.name} were asked for; it reads several layers; "
            "examples are published for coders of one layer: name one of these"
        )
    file = path / EXAMPLES
    shapes = _check_header(file)
    (n_features, depth), (n_contexts, length) = shapes["activations"], shapes["tokens"]
    weights = read_coder(path, repo) if (path / PARAMS).is_file() else None
    if weights is not None and weights.width != n_features:
        raise CoderFileError(
            f"{file} has examples of {n_features} features; the coder beside it has "
            f"{weights.width}; fetch both again"
        )
    return Examples(
        file=file,
        identity=read_identity(path, repo, parsed.layers),
        weights=weights,
        n_features=n_features,
        depth=depth,
        n_contexts=n_contexts,
        context_length=length,
        has_tokens="top_tokens" in shapes,
    )


def token_rows(examples: Examples, rows: int = 4096) -> Iterator[npt.NDArray[np.int32]]:
    """Yield the corpus in parts [at most `rows`, context_length], padding included."""
    for _, (tokens,) in _parts(examples.file, ("tokens",), examples.n_contexts, rows):
        yield tokens


def firing_blocks(examples: Examples, features: int = 4096) -> Iterator[FiringBlock]:
    """Yield the firings of at most `features` features at a time, in order."""
    names = ("activations", "seq_ids", "positions")
    for start, block in _parts(examples.file, names, examples.n_features, features):
        yield FiringBlock(start, *block)


def feature_columns(examples: Examples) -> dict[str, npt.NDArray[Any]]:
    """Return feature_frequencies [n_features] and, if they are there, TOKEN_COLUMNS [.., 10]."""
    names = ["feature_frequencies", *(TOKEN_COLUMNS if examples.has_tokens else ())]
    with _open(examples.file) as file:
        return {name: file.get_tensor(name) for name in names}


def _open(file: Path) -> Any:  # noqa: ANN401
    return safe_open(file, framework="numpy")


def _parts(
    file: Path, names: tuple[str, ...], n_rows: int, step: int
) -> Iterator[tuple[int, list[npt.NDArray[Any]]]]:
    """Yield (first row, rows of each tensor); an open file would keep what was read mapped."""
    for start in range(0, n_rows, step):
        with _open(file) as opened:
            rows = [opened.get_slice(name)[start : min(start + step, n_rows)] for name in names]
        yield start, rows


def _check_header(file: Path) -> dict[str, list[int]]:
    """Return shapes by tensor, after checking them and the dtypes."""
    try:
        with _open(file) as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
            shapes = {key: list(s.get_shape()) for key, s in slices.items()}
            dtypes = {key: s.get_dtype() for key, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CoderFileError(
            f"{file} was asked for; it is no whole safetensors file ({error}); fetch it again"
        ) from error
    optional = set(TOKEN_COLUMNS) if not set(TOKEN_COLUMNS) & set(shapes) else set()
    required = [key for key in _DTYPES if key not in optional]
    if missing := [key for key in required if key not in shapes]:
        raise CoderFileError(
            f"{file} was asked for; it holds {', '.join(sorted(shapes))} and lacks "
            f"{', '.join(missing)}; fetch it again"
        )
    n_features, depth = (*shapes["activations"], 0, 0)[:2]
    n_contexts, length = (*shapes["tokens"], 0, 0)[:2]
    n_shown = (*shapes.get("top_tokens", []), 0, 0)[1]
    expected = {
        "tokens": [n_contexts, length],
        **dict.fromkeys(("activations", "seq_ids", "positions"), [n_features, depth]),
        "feature_frequencies": [n_features],
        **dict.fromkeys(TOKEN_COLUMNS, [n_features, n_shown]),
    }
    for key in required:
        if shapes[key] != expected[key] or dtypes[key] != _DTYPES[key] or 0 in shapes[key]:
            raise CoderFileError(
                f"{file} was asked for; its {key} is {dtypes[key]} {shapes[key]}, expected "
                f"{_DTYPES[key]} {expected[key]}; fetch it again"
            )
    return shapes
