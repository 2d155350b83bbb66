"""Draws docs/pictures/top-contexts.svg from the lake that `make demo` builds.

python examples/pictures.py [demo-lake]
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

import scopelake
from scopelake.demo import SHOWN_SAE, interesting_features

TARGET = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "top-contexts.svg"


def main() -> None:
    """Print the demo's three features as a terminal shows them, into a picture."""
    lake = scopelake.open(sys.argv[1] if len(sys.argv) > 1 else "demo-lake")
    console = Console(record=True, width=104, file=io.StringIO())
    for feature in interesting_features(lake):
        found = lake.top_contexts(feature, sae=SHOWN_SAE, corpus="stdlib", k=4, window=10)
        console.print(Text.from_ansi(found.to_text(color=True)), no_wrap=True, crop=True)
        console.print()
    svg = console.export_svg(title="scopelake demo")
    # Web fonts would be fetched from elsewhere; the reader's own fixed-width font will do.
    TARGET.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))
    print(TARGET)


if __name__ == "__main__":
    main()
