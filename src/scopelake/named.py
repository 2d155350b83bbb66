"""From what a user names to files; the bundled model and coders go by their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from scopelake import tiny
from scopelake.errors import InvalidArgumentError
from scopelake.names import Site, SiteLayer, check_filled, check_whole

if TYPE_CHECKING:
    from scopelake.ingest.model import ModelFiles
    from scopelake.ingest.tokens import Tokenizer
    from scopelake.ingest.vocabulary import Vocabulary


def model_files(
    model: str | Path, name: str | None = None, *, tokenizer_only: bool = False
) -> ModelFiles:
    """Return the files of a model, known as `name` if that is given; no weights if so asked.

    Raises:
        ModelError, HubError: it cannot be found.
        InvalidArgumentError: it is no text and no path, or empty.
    """
    from scopelake.ingest.model import find_model

    if not isinstance(model, Path):
        check_filled("model", model)
    is_tiny = str(model) == tiny.MODEL_NAME
    files = find_model(tiny.model_path() if is_tiny else model, tokenizer_only=tokenizer_only)
    return replace(files, name=name or (tiny.MODEL_NAME if is_tiny else files.name))


def model_called(model: str | Path, name: str | None = None) -> str:
    """Return what `model_files` will call a model, without fetching it.

    Raises:
        ModelError: it is neither a folder nor a hub id.
        InvalidArgumentError: it is no text and no path, or empty.
    """
    from scopelake.ingest.model import split_hub_id

    if not isinstance(model, Path):
        check_filled("model", model)
    if str(model) == tiny.MODEL_NAME or Path(model).is_dir():
        return model_files(model, name).name
    hub_name, _ = split_hub_id(model)
    return name or hub_name


def load_tokenizer(tokenizer: str | Path) -> Tokenizer:
    """Return the tokenizer of a model, whose weights are not fetched.

    Raises:
        ModelError, HubError: it cannot be found or used.
        InvalidArgumentError: it is no text and no path, or empty.
    """
    from scopelake.ingest.tokens import Tokenizer

    if not isinstance(tokenizer, Path):
        check_filled("tokenizer", tokenizer)
    files = model_files(tokenizer, tokenizer_only=True)
    return Tokenizer.load(files.path, files.name)


def decode(tokenizer: str, digest: str, ids: Sequence[int]) -> list[str] | None:
    """Return the texts of token ids, if the tokenizer of that name and digest is on this machine.

    Nothing is fetched, and only the tokenizer's own file is read.
    """
    vocabulary = _vocabulary(tokenizer)
    if vocabulary is None or vocabulary.digest != digest:
        return None
    return vocabulary.texts(ids)


@cache
def _vocabulary(tokenizer: str) -> Vocabulary | None:
    from scopelake.ingest.vocabulary import Vocabulary, find_cached_tokenizer

    if tokenizer == tiny.MODEL_NAME:
        file: Path | None = tiny.model_path() / "tokenizer.json"
    else:
        file = find_cached_tokenizer(tokenizer)
    return None if file is None else Vocabulary(file)


def coder_specs(saes: str | Path | Sequence[str | Path]) -> list[str | Path]:
    """Return `saes`, one or several, as a list.

    Raises:
        InvalidArgumentError: one is no text or path.
    """
    saes = [saes] if isinstance(saes, (str, Path)) else saes
    if not isinstance(saes, Iterable):
        raise InvalidArgumentError(
            f"SAEs {saes!r} were asked for; that is of type {type(saes).__name__}; give text, a "
            "path, or a list of these"
        )
    saes = list(saes)
    for spec in saes:
        if not isinstance(spec, Path):
            check_filled("SAE", spec)
    return saes


def bundled_coders() -> dict[str, Path]:
    """Return the folder of the coders that ship here, by the name that they go by."""
    return {tiny.CODERS_REPO: tiny.coders_path()}


def site_layers(dense: Sequence[tuple[Site, int] | str]) -> tuple[SiteLayer, ...]:
    """Return the sites that pairs of site and layer, or texts such as ``resid_post/3``, name.

    Raises:
        InvalidArgumentError: one is neither.
    """
    if isinstance(dense, str):
        dense = [dense]
    found = []
    for one in dense:
        if isinstance(one, str):
            found.append(SiteLayer.parse(one))
            continue
        try:
            site, layer = one
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(
                f"dense site {one!r} was asked for; it is no pair of site and layer; give for "
                "example ('resid_post', 3)"
            ) from error
        found.append(SiteLayer(site, check_whole("layer", layer)))
    return tuple(found)
