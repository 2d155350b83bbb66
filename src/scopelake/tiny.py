"""The bundled tiny model, its coders and its chats: names, folders and the text they use.

Only the standard library is imported here, so that asking for a path stays cheap.
"""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

MODEL_NAME = "scopelake/gemma-3-tiny"
CODERS_REPO = "gemma-scope-2-tiny"

HELD_OUT_PERCENT = 10
MIN_BYTES = 1_000
MAX_BYTES = 200_000
_SKIPPED_DIRS = frozenset(
    {
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "idle_test",
        "__pycache__",
    }
)


def data_path() -> Path:
    """Folder of the bundled data."""
    return Path(__file__).resolve().parent / "data" / "tiny"


def model_path() -> Path:
    """Folder of the tiny Gemma 3 model and its tokenizer."""
    return data_path() / "gemma-3-tiny"


def coders_path() -> Path:
    """Folder of the coder repository, laid out like a Gemma Scope 2 repository."""
    return data_path() / CODERS_REPO


def chats_path() -> Path:
    """JSON-lines file of the synthetic chats."""
    return data_path() / "chats.jsonl"


def _is_held_out(relative: str) -> bool:
    digest = hashlib.sha1(relative.encode("utf-8"), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def _is_usable(path: Path) -> bool:
    try:
        if not MIN_BYTES <= path.stat().st_size <= MAX_BYTES:
            return False
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return True


def stdlib_files(held_out: bool) -> list[Path]:
    """Usable source files of the running interpreter's standard library, one side of the split.

    A file's side depends only on the SHA-1 of its path below the standard library's folder, so
    it stays the same on every machine and for every order of the folder's entries.
    """
    root = Path(sysconfig.get_path("stdlib"))
    chosen: list[tuple[str, Path]] = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if _SKIPPED_DIRS.intersection(relative.parts[:-1]):
            continue
        name = relative.as_posix()
        if _is_held_out(name) == held_out and _is_usable(path):
            chosen.append((name, path))
    return [path for _, path in sorted(chosen)]
