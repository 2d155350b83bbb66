"""Runs the guides in docs/guides, and writes what they print and draw into their pages.

python examples/guides.py [GUIDE.md ...]

The python blocks of a page are run in order by one process, in an empty folder; what a block
prints stands in the text block that follows it. Pictures that a page shows lie in `pictures`
beside it, and its code saves each under the same name.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

GUIDES = Path(__file__).resolve().parent.parent / "docs" / "guides"
_BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<shown>.*?)```\n)?", re.DOTALL)
_PICTURE = re.compile(r"!\[[^\]]+\]\((pictures/[^)]+)\)")
_DRIVER = """\
import contextlib, io, json, sys
namespace, printed = {"__name__": "__main__"}, []
for number, code in enumerate(json.load(sys.stdin)):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, f"block {number}", "exec"), namespace)
    printed.append(out.getvalue())
print(json.dumps(printed))
"""


@dataclass(frozen=True)
class Block:
    """A python block of a guide."""

    code: str
    shown: str
    """What the page says that it prints."""


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page, in order."""
    return [Block(m["code"], m["shown"] or "") for m in _BLOCK.finditer(page)]


def pictures(page: str) -> list[str]:
    """Return the pictures of a page, as it names them: ``pictures/<name>``."""
    return _PICTURE.findall(page)


def run(page: str, folder: Path) -> list[str]:
    """Run the blocks of a page in a folder; return what each of them prints.

    Raises:
        RuntimeError: a block fails.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", _DRIVER],
        input=json.dumps([block.code for block in blocks(page)]),
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    printed: list[str] = json.loads(done.stdout)
    # Spaces at the ends of lines are not worth keeping in a page.
    return ["".join(f"{line.rstrip()}\n" for line in text.splitlines()) for text in printed]


def with_output(page: str, printed: list[str]) -> str:
    """Return a page with what its blocks print."""
    left = iter(printed)

    def filled(match: re.Match[str]) -> str:
        text = next(left)
        return f"```python\n{match['code']}```\n" + (f"\n```text\n{text}```\n" if text else "")

    return _BLOCK.sub(filled, page)


def main() -> None:
    """Run the guides that are named, or all."""
    for path in map(Path, sys.argv[1:] or sorted(GUIDES.glob("*.md"))):
        page = path.read_text()
        with TemporaryDirectory() as folder:
            path.write_text(with_output(page, run(page, Path(folder))))
            (path.parent / "pictures").mkdir(exist_ok=True)
            for name in pictures(page):
                shutil.copy(Path(folder) / Path(name).name, path.parent / name)
        print(path)


if __name__ == "__main__":
    main()
