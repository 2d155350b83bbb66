"""The table of docs/performance.md from results/peers.csv, as Markdown.

python benchmarks/peers_table.py
"""

from __future__ import annotations

import csv
from typing import Final

from record import RESULTS

PEERS: Final = ("scopelake", "delphi", "saelens")
NONE: Final = "keeps none"
ROWS: Final = (
    ("{0}: firings in one order, B a firing", "{0}: firings{3}, {1}", 1, 2),
    ("{0}: firings as stored, B a firing", "{0}: firings{2}, {1}", 1, 2),
    ("{0}: all files, B a firing", "{0}: all files, {1}", 1, 2),
    ("{0}: passes over the corpus", "{0}: passes over the corpus, {1}", 1, 0),
    ("{0}: tokens/s, model and coders loaded within", "{0}: storing, {1}", 1, 0),
    ("{0}: peak memory, MiB", "{0}: peak memory, {1}", 1, 0),
    ("{0}: of that once imported, MiB", "{0}: peak memory once imported, {1}", 1, 0),
    ("top 20 of a feature, warm, ms", "top 20, warm, {1}", 1e3, 0),
    (
        "the first in a process, once imported and open, ms",
        "top 20, first answer once imported and open, {1}",
        1e3,
        0,
    ),
    ("from a new process' start, s", "top 20, new process with imports, {1}", 1, 1),
    ("peak memory of that process, MiB", "top 20, peak memory, {1}", 1, 0),
)
"""Label, measure (of a set and a peer), factor, decimals."""


def main() -> None:
    with (RESULTS / "peers.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    medians = {row["measure"]: float(row["median"]) for row in rows}
    sets = [s for s in ("residual", "all") if f"{s}: firings" in medians]
    print("| what | scopelake | delphi | SAELens |\n|---|---|---|---|")
    for label, measure, factor, decimals in ROWS:
        for which in sets if "{0}" in label else [""]:
            values = []
            for peer in PEERS:
                # delphi has one order; ours are told apart.
                orders = (" in both orders", " in one order") if peer == "scopelake" else ("", "")
                value = medians.get(measure.format(which, peer, *orders))
                values.append(NONE if value is None else f"{value * factor:,.{decimals}f}")
            name = {"residual": "6 residual coders", "all": "all 14 coders"}.get(which, "")
            print(f"| {label.format(name)} | {' | '.join(values)} |")
    print(f"\n{rows[0]['config']}; {rows[0]['machine']}; {rows[0]['versions']}; {rows[0]['date']}")
    for which in sets:
        for row in rows:
            if row["measure"].startswith((f"{which}: firings", f"{which}: at a threshold")):
                print(f"{row['measure']}: {row['median']} {row['unit']}")


if __name__ == "__main__":
    main()
