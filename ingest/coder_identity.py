"""What a coder is, from its path and its config.json alone: no file of weights is needed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

from scopelake.errors import CoderFileError, CoderMismatchError
from scopelake.ingest.families import FolderName, hook_points, is_hook_point, parse_folder
from scopelake.ingest.hub import repo_of_cached
from scopelake.names import SiteLayer

_ARCHITECTURE: Final = "jump_relu"
_REPO: Final = re.compile(r"gemma-scope-2-(?P<model>\w+-(?:pt|it))\Z")


@dataclass(frozen=True, kw_only=True)
class CoderIdentity:
    """A coder's name and what it was trained on."""

    name: str
    """``<repo>/<family>/<folder>``"""
    repo: str
    family: str
    folder: str
    type: str
    """``sae``, ``transcoder``, ``crosscoder`` or ``clt``"""
    sites: tuple[SiteLayer, ...]
    """What its encoders read, one each, by layer."""
    targets: tuple[SiteLayer, ...]
    """What it reconstructs."""
    l0: float | None
    affine: bool
    model_name: str | None
    """The model it was trained on, as config.json or else the repo's name says."""
    hook_in: str
    hook_out: str


def check_folder(path: PurePath) -> FolderName:
    """Return what the names of a coder's two folders say.

    Raises:
        CoderFileError: they are not Gemma Scope 2's.
    """
    parsed = parse_folder(path.parent.name, path.name)
    if parsed is None:
        raise CoderFileError(
            f"coder {path.parent.name}/{path.name} was asked for; its name is not Gemma Scope 2's "
            "(<family>/layer_<N>_width_<W>_l0_<label>); keep the published folder names"
        )
    return parsed


def read_identity(path: Path, repo: str | None, layers: tuple[int, ...]) -> CoderIdentity:
    """Read what the coder in folder `path` is.

    Args:
        path: its folder, resolved.
        repo: the repository's name, if neither the hub's cache nor the folder's grandparent says.
        layers: those that it reads.

    Raises:
        CoderFileError: the folder's name is not Gemma Scope 2's, or config.json is not JSON.
    """
    repo = repo or (repo_of_cached(path) or path.parent.parent.name).rsplit("/", 1)[-1]
    return identify(path, repo, read_config(path), layers)


def identify(
    path: PurePath, repo: str, config: dict[str, Any], layers: tuple[int, ...]
) -> CoderIdentity:
    """Return what the coder ``.../<family>/<folder>`` of a repository is, given its config.json.

    Raises:
        CoderFileError: the folder's name is not Gemma Scope 2's, or config.json says otherwise.
    """
    parsed, family, folder = check_folder(path), path.parent.name, path.name
    name = f"{repo}/{family}/{folder}"
    hook_in, hook_out = hook_points(parsed.family, layers)
    _check_config(name, config, {"hf_hook_point_in": hook_in, "hf_hook_point_out": hook_out})
    return CoderIdentity(
        name=name,
        repo=repo,
        family=family,
        folder=folder,
        type=parsed.family.type,
        sites=tuple(SiteLayer(parsed.family.site, layer) for layer in layers),
        targets=tuple(SiteLayer(parsed.family.target, layer) for layer in layers),
        l0=None if config.get("l0") is None else float(config["l0"]),
        affine=parsed.affine,
        model_name=config.get("model_name") or _model_of_repo(repo),
        hook_in=str(config.get("hf_hook_point_in", hook_in)),
        hook_out=str(config.get("hf_hook_point_out", hook_out)),
    )


def _check_config(name: str, config: dict[str, Any], hooks: dict[str, str]) -> None:
    architecture = str(config.get("architecture", _ARCHITECTURE))
    if architecture.lower().replace("_", "") != _ARCHITECTURE.replace("_", ""):
        raise CoderFileError(
            f"coder {name} was asked for; its config.json says architecture {architecture!r}; "
            f"scopelake reads {_ARCHITECTURE!r}"
        )
    for key, derived in hooks.items():
        written = str(config.get(key, derived))
        if not is_hook_point(written, derived):
            raise CoderFileError(
                f"coder {name} was asked for; its folder's name says {derived} and its "
                f"config.json, as {key}, {written}; fetch it again into a folder of its own"
            )


def contradictions(config: dict[str, Any], *, type: str, affine: bool, width: int) -> list[str]:
    """Return, in words, where config.json says otherwise than folder and files, which are taken."""
    facts = {"type": type, "affine_connection": affine, "width": width}
    return [
        f"{key} {config[key]!r}, not {fact!r}"
        for key, fact in facts.items()
        if config.get(key) is not None and config[key] != fact
    ]


def plain_model(name: str) -> str:
    """Return a model's name without its org, ``-v3`` for ``-3``, and 270m's absent ``-pt``."""
    plain = name.rsplit("/", 1)[-1].lower().replace("-v3", "-3")
    return "gemma-3-270m" if plain == "gemma-3-270m-pt" else plain


def check_model(coder: CoderIdentity, model_name: str) -> None:
    """Refuse a coder that was trained on another model.

    Raises:
        CoderMismatchError: another size, or pt and it crossed.
    """
    if coder.model_name is not None and plain_model(coder.model_name) != plain_model(model_name):
        raise CoderMismatchError(
            f"coder {coder.name} was trained on {coder.model_name}; the model given is "
            f"{model_name}; use that model, or give model_name={coder.model_name!r} if this "
            "folder is a copy of it"
        )


def read_config(path: Path) -> dict[str, Any]:
    """Return what config.json in folder `path` says; {} if there is none.

    Some published folders lack it; its facts then come from the folder's name.

    Raises:
        CoderFileError: it is no JSON object.
    """
    file = path / "config.json"
    if not file.exists():
        return {}
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CoderFileError(f"{file} was read; it is not JSON; fetch it again") from error
    if not isinstance(config, dict):
        raise CoderFileError(f"{file} was read; it is no JSON object; fetch it again")
    return config


def _model_of_repo(repo: str) -> str | None:
    match = _REPO.match(repo)
    return f"gemma-3-{match['model']}" if match else None
