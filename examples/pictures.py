"""Draws the pictures in docs/pictures from the lake that `make demo` builds.

python examples/pictures.py [demo-lake]
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text

import scopelake
from scopelake import tiny
from scopelake.demo import SHOWN_SAE, interesting_features

TARGET = Path(__file__).resolve().parent.parent / "docs" / "pictures"


def main() -> None:
    """Draw all pictures."""
    lake = scopelake.open(sys.argv[1] if len(sys.argv) > 1 else "demo-lake")
    for path in (draw_top_contexts(lake), draw_card(lake), draw_inspection(lake)):
        print(path)


def draw_card(lake: scopelake.Lake) -> Path:
    """Plot the card of the first of the demo's features."""
    card = lake.feature(interesting_features(lake)[0], sae=SHOWN_SAE)
    path = TARGET / "feature.png"
    card.plot().savefig(path, dpi=80, metadata={"Software": None})
    return path


def draw_inspection(lake: scopelake.Lake) -> Path:
    """Inspect a question and the tiny model's answer; Chromium draws the page."""
    found = lake.inspect(
        [{"role": "user", "content": "How do I reverse a list in Python?"}],
        model=tiny.MODEL_NAME, saes=tiny.coders_path(), generate=8, keep=False,
    )  # fmt: skip
    path = TARGET / "inspection.png"
    with TemporaryDirectory() as folder:
        page = found.to_html(Path(folder) / "page.html")
        subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={path}",
             "--window-size=1400,560", page.as_uri()], check=True, capture_output=True,
        )  # fmt: skip
    return path


def draw_top_contexts(lake: scopelake.Lake) -> Path:
    """Print the demo's three features as a terminal shows them, into a picture."""
    console = Console(record=True, width=104, file=io.StringIO())
    for feature in interesting_features(lake):
        found = lake.top_contexts(feature, sae=SHOWN_SAE, corpus="stdlib", k=4, window=10)
        console.print(Text.from_ansi(found.to_text(color=True)), no_wrap=True, crop=True)
        console.print()
    svg = console.export_svg(title="scopelake demo")
    # Web fonts would be fetched from elsewhere; the reader's own fixed-width font will do.
    path = TARGET / "top-contexts.svg"
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))
    return path


if __name__ == "__main__":
    main()
