"""The same model, coders and corpus through our ingest, delphi's cache and SAELens' encode.

    make bench-peers                delphi and SAELens in an environment of their own
    python benchmarks/peers.py [--contexts 192] [--repeats 3] [--coders residual all]

First all store the corpus once, and their firings have to be the same; where they are not, nothing
is timed. Then each stores it in a process of its own, one after the other, in each repeat, and is
asked in another for the 20 strongest contexts of features. The corpus is source of the standard
library in contexts of 256 tokens, all full (delphi's are), each with a BOS, whose firings everyone
keeps and counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from peers_inside import ASKED, CORPUS, LENGTH, ROWS, SPLITS, Coder, Top, coders_of
from record import Measure, write_results
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import scopelake
from scopelake import tiny
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.find_coders import find_coders

PEERS: Final = ("scopelake", "delphi", "saelens")
SHARD: Final = 64
"""Contexts in a shard of ours, so that its stages overlap on a corpus as small as this."""
RTOL, ATOL = 1.1e-3, 1e-4
"""Of activations. Ours and delphi's keep 10 mantissa bits, rounded, so differ by at most 2**-10 of
themselves; the rest is float32 sums in another order, as is what falls on either side of a
threshold."""
FEATURES: Final = 9

_ASK: Final = """
import time
started = time.perf_counter()
import json, sys
from pathlib import Path
import peers_inside
features = json.loads(sys.argv[3])
print(json.dumps(peers_inside.ask(started, sys.argv[1], Path(sys.argv[2]), features)))
"""


@dataclass(frozen=True)
class Firings:
    """Firings of one coder, sorted by key."""

    keys: npt.NDArray[np.int64]
    """(row * LENGTH + position) * width + feature."""
    values: npt.NDArray[np.float32]

    @classmethod
    def sort(cls, keys: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> Firings:
        """In the order of keys."""
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], values[order].astype(np.float32))


def texts_of(n: int) -> list[str]:
    """`n` pieces of source, no two the same, of LENGTH - 1 tokens each."""
    tokenizer = Tokenizer.from_file(str(tiny.model_path() / "tokenizer.json"))
    found: dict[str, None] = {}
    for path in tiny.stdlib_files(held_out=True):
        text = path.read_text(encoding="utf-8")
        starts = [start for start, _ in tokenizer.encode(text, add_special_tokens=False).offsets]
        for a, b in pairwise(starts[:: LENGTH - 1]):
            piece = text[a:b]
            # Cut off from what was around it a piece may be other tokens, and more or fewer.
            if len(tokenizer.encode(piece, add_special_tokens=False).ids) == LENGTH - 1:
                found[piece] = None
        if len(found) >= n:
            return list(found)[:n]
    raise SystemExit(f"{n} contexts were asked for; there is text for {len(found)}; ask for fewer")


def describe(coder: CoderFiles) -> dict[str, object]:
    """A coder as the processes are told of it."""
    (site,) = coder.sites
    found = Coder(
        coder.name, str(coder.path), str(coder.params[0]), site.site, site.layer, coder.width,
        coder.d_in,
    )  # fmt: skip
    return asdict(found)


def prepare(place: Path, n: int) -> None:
    """A lake with the corpus, and for the others its tokens as a matrix, and the coders' files."""
    root = tiny.coders_path()
    sets = {"residual": find_coders([root / "resid_post_all"]), "all": find_coders([root])}
    given = {name: [describe(c) for c in coders] for name, coders in sets.items()}
    text = json.dumps({"model": str(tiny.model_path()), **given})
    (place / "coders.json").write_text(text, encoding="utf-8")
    records = [json.dumps({"id": f"{i:05}", "text": text}) for i, text in enumerate(texts_of(n))]
    (place / "corpus.jsonl").write_text("\n".join(records), encoding="utf-8")
    lake = scopelake.create(place / "lake")
    lake.add_corpus(
        CORPUS, place / "corpus.jsonl", tokenizer=tiny.MODEL_NAME, context_length=LENGTH,
        shard_contexts=SHARD,
    )  # fmt: skip
    rows = lake.sql("SELECT token_ids FROM contexts ORDER BY context")["token_ids"].to_pylist()
    tokens = np.array(rows, dtype=np.int64)
    if tokens.shape != (n, LENGTH):
        raise SystemExit(f"{n} contexts of {LENGTH} tokens were asked for; found {tokens.shape}")
    np.save(place / "tokens.npy", tokens)


def fresh(base: Path, place: Path) -> Path:
    """A copy of what was prepared, with nothing stored yet."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(base, place)
    return place


def run(*command: str) -> dict[str, Any]:
    """The last line that a new process of this Python says, as JSON; its log only if it fails."""
    done = subprocess.run(
        [sys.executable, *command], text=True, capture_output=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{done.stderr}\n{command[0]} {command[1:]} failed")
    print(".", end="", file=sys.stderr, flush=True)  # a run takes minutes
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def store(peer: str, which: str, place: Path) -> dict[str, float]:
    """Store the corpus there in a new process."""
    inside = Path(__file__).with_name("peers_inside.py")
    return run(str(inside), peer, which, str(place))


def of_ours(place: Path, coder: Coder) -> Firings:
    """What the lake holds."""
    rows = scopelake.open(place / "lake").sql(
        "SELECT context, position, feature, activation FROM codes WHERE sae = $1", [coder.name]
    )
    context, position, feature, activation = (rows[c].to_numpy() for c in rows.column_names)
    keys = (context.astype(np.int64) * LENGTH + position) * coder.width + feature
    return Firings.sort(keys, activation)


def of_delphi(place: Path, coder: Coder) -> Firings:
    """What delphi's files hold."""
    keys, values = [], []
    for file in sorted((place / "delphi" / coder.module).glob("*.safetensors")):
        found = load_file(file)
        row, position, feature = found["locations"].astype(np.int64).T
        feature = feature + int(file.stem.split("_")[0])
        keys.append((row * LENGTH + position) * coder.width + feature)
        values.append(found["activations"])
    return Firings.sort(np.concatenate(keys), np.concatenate(values))


def of_sae_lens(place: Path, coder: Coder) -> Firings:
    """What SAELens' codes held."""
    with np.load(place / f"{coder.name.replace('/', '~')}.npz") as found:
        return Firings.sort(found["keys"], found["values"])


READ: Final = {"delphi": of_delphi, "saelens": of_sae_lens}


def differences(coder: Coder, ours: Firings, peer: str, theirs: Firings) -> int:
    """Firings that one side alone has, all of them at their threshold; anything else ends it."""
    threshold = load_file(coder.params)["threshold"].astype(np.float32)
    alone = 0
    for side, other in ((ours, theirs), (theirs, ours)):
        lonely = ~np.isin(side.keys, other.keys, assume_unique=True)
        least = threshold[side.keys[lonely] % coder.width]
        if (side.values[lonely] > least * (1 + RTOL) + ATOL).any():
            raise SystemExit(
                f"the same firings of {coder.name} were asked for; {peer} and scopelake fire at "
                "other places, and not for a threshold; nothing was timed"
            )
        alone += int(lonely.sum())
    _, a, b = np.intersect1d(ours.keys, theirs.keys, assume_unique=True, return_indices=True)
    if not np.allclose(ours.values[a], theirs.values[b], rtol=RTOL, atol=ATOL):
        worst = float(np.abs(ours.values[a] - theirs.values[b]).max())
        raise SystemExit(
            f"the same activations of {coder.name} were asked for; those of {peer} and scopelake "
            f"differ by {worst}; nothing was timed"
        )
    return alone


def check(base: Path, folder: Path, which: str) -> list[Measure]:
    """Let everyone store once and compare all firings of every coder."""
    place = fresh(base, folder / "check")
    for peer in ("scopelake", "delphi", "saelens firings"):
        store(peer, which, place)
    n, alone = 0, dict.fromkeys(READ, 0)
    for coder in coders_of(base, which):
        ours = of_ours(place, coder)
        n += len(ours.keys)
        for peer, read in READ.items():
            alone[peer] += differences(coder, ours, peer, read(place, coder))
    return [
        Measure(f"{which}: firings", (n,), "firings"),
        *(Measure(f"{which}: at a threshold, {p} or ours alone", (a,), "firings")
          for p, a in alone.items()),
        *on_disk(place, which, n),
    ]  # fmt: skip


def n_bytes(folder: Path) -> int:
    """Of all files under a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def on_disk(place: Path, which: str, n: int) -> list[Measure]:
    """Bytes a firing of firings alone, and of all that is kept of the corpus."""
    tables = place / "lake" / "tables"
    codes, postings = (n_bytes(tables / t) for t in ("codes", "postings"))
    arrays = [load_file(p) for p in (place / "delphi").rglob("*.safetensors")]
    theirs = sum(a["locations"].nbytes + a["activations"].nbytes for a in arrays)
    sizes = {
        "firings in one order, scopelake": codes,
        "firings in both orders, scopelake": codes + postings,
        "firings, delphi": theirs,
        "all files, scopelake": n_bytes(place / "lake"),
        "all files, delphi": n_bytes(place / "delphi"),
    }
    return [Measure(f"{which}: {what}", (size / n,), "B/firing") for what, size in sizes.items()]


def storing(base: Path, folder: Path, which: str, repeats: int) -> list[Measure]:
    """Speed, memory and passes; what the last repeat stored is left in `folder`/<peer>."""
    n_tokens = np.load(base / "tokens.npy").size
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(repeats):
        for peer in PEERS:
            done = store(peer, which, fresh(base, folder / peer))
            found[f"storing, {peer}", "tokens/s"].append(n_tokens / done["seconds"])
            found[f"passes over the corpus, {peer}", "passes"].append(done["passes"])
            found[f"peak memory, {peer}", "MiB"].append(done["peak"])
            found[f"peak memory once imported, {peer}", "MiB"].append(done["imported"])
    return [Measure(f"{which}: {w}", tuple(v), unit) for (w, unit), v in found.items()]


def features_of(place: Path) -> list[int]:
    """Features spread over the ranks of density, in random order."""
    rows = (
        scopelake.open(place / "lake")
        .sql(
            "SELECT feature FROM features WHERE firings > 0 AND sae LIKE $1 "
            "ORDER BY density, feature",
            [f"%{ASKED}"],
        )["feature"]
        .to_pylist()
    )
    spread = [rows[(2 * i + 1) * len(rows) // (2 * FEATURES)] for i in range(FEATURES)]
    return [int(f) for f in np.random.default_rng(8).permutation(spread)]


def check_tops(peer: str, ours: list[Top], theirs: list[Top]) -> None:
    """The same activations and contexts, but for those that tie with the last."""
    for mine, other in zip(ours, theirs, strict=True):
        strength = np.array([t[0] for t in mine]), np.array([t[0] for t in other])
        rows = {t[1]: t[0] for t in mine}, {t[1]: t[0] for t in other}
        odd = [(rows[0] | rows[1])[row] for row in rows[0].keys() ^ rows[1].keys()]
        is_same = strength[0].shape == strength[1].shape and np.allclose(
            *strength, rtol=RTOL, atol=ATOL
        )
        if not is_same or any(a > mine[-1][0] * (1 + RTOL) + ATOL for a in odd):
            raise SystemExit(
                f"the same strongest contexts were asked for; {peer} says {other}, scopelake says "
                f"{mine}; one of them is wrong"
            )


def asking(folder: Path, repeats: int) -> list[Measure]:
    """New processes that are asked for the strongest contexts, one peer after the other."""
    features = features_of(folder / "scopelake")
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(repeats):
        tops: dict[str, list[Top]] = {}
        for peer in PEERS:
            done = run("-c", _ASK, peer, str(folder / peer), json.dumps(features))
            tops[peer] = done["tops"]
            found[f"top 20, new process with imports, {peer}", "s"].append(done["first"])
            found[f"top 20, first answer once imported and open, {peer}", "s"].append(
                done["answer"]
            )
            found[f"top 20, warm, {peer}", "s"] += done["warm"]
            found[f"top 20, peak memory, {peer}", "MiB"].append(done["peak"])
        for peer in PEERS[1:]:
            check_tops(peer, tops["scopelake"], tops[peer])
    return [Measure(what, tuple(values), unit) for (what, unit), values in found.items()]


def main() -> int:
    """Check, measure, and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", type=int, default=192, help=f"a multiple of {ROWS}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--coders", nargs="+", choices=("residual", "all"), default=["residual",
                        "all"])  # fmt: skip
    args = parser.parse_args()
    if args.contexts % ROWS or args.contexts < ROWS:
        parser.error(
            f"--contexts {args.contexts} was asked for; delphi drops a batch of fewer than {ROWS}; "
            f"ask for a multiple of {ROWS}"
        )
    for package in ("delphi", "sae_lens"):
        if importlib.util.find_spec(package) is None:
            parser.error(f"{package} was asked for; it is not installed; run `make bench-peers`")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (base := folder / "base").mkdir()
        prepare(base, args.contexts)
        measures = [m for which in args.coders for m in check(base, folder, which)]
        for which in args.coders:
            measures += storing(base, folder, which, args.repeats)
        measures += asking(folder, args.repeats)
    print(file=sys.stderr)
    config = (
        f"tiny model, 6 residual or all 14 coders, {args.contexts} contexts of {LENGTH} tokens, "
        f"batches of {ROWS} contexts, float32; ours 10 bits and shards of {SHARD}, delphi "
        f"{SPLITS} splits"
    )
    write_results("peers", measures, config, packages=("eai-delphi", "sae-lens"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
