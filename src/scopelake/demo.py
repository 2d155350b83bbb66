"""``scopelake demo``: the main job on real text, with the tiny model that ships with the package.

The text is the held-out share of the running interpreter's own standard library, which the model
was not trained on, and the package's synthetic chats.
"""

from __future__ import annotations

import sys
import sysconfig
import time
from pathlib import Path
from typing import Final

import scopelake
from scopelake import tiny
from scopelake.errors import LakeError, LakeExistsError, NotALakeError
from scopelake.lake import Lake
from scopelake.names import counted
from scopelake.progress import corpus_progress, ingest_progress, step_progress
from scopelake.render import print_table

SHOWN_SAE: Final = "resid_post_all/layer_3_width_1024_l0_small"
TEXT_BYTES: Final = 800_000
"""Source text in the demo's corpus: a little over 200,000 tokens."""
_CONTEXT_LENGTH: Final = 256

SQL: Final = f"""\
SELECT role, kind, count(*) AS firings, round(avg(activation), 1) AS mean_activation
FROM codes JOIN tokens USING (corpus, context, position, kind)
WHERE sae LIKE '%{SHOWN_SAE}' AND corpus = 'chats'
GROUP BY role, kind ORDER BY firings DESC"""
_INTERESTING: Final = f"""\
SELECT feature FROM features
WHERE sae LIKE '%{SHOWN_SAE}' AND corpus = 'stdlib' AND density BETWEEN 0.0005 AND 0.03
ORDER BY max / mean DESC, feature LIMIT 3"""


def run_demo(path: Path) -> None:
    """Build the demo lake at `path`, or find it complete, and show what is in it.

    Raises:
        NotALakeError: the folder holds something else.
        LakeExistsError: it holds a lake with corpora that are not the demo's.
    """
    started = time.monotonic()
    lake = _open_or_create(path)
    _check_own(lake)
    worked = add_demo_corpora(lake)
    worked |= _ingest(lake)
    worked |= _add_neighbors(lake)
    if not worked:
        print(f"The lake in {path} is complete: no work was done.\n")
    else:
        print(f"Built in {time.monotonic() - started:.0f} s.\n")
    _show(lake, path)


def interesting_features(lake: Lake) -> list[int]:
    """Return three features of SHOWN_SAE that fire seldom, and then strongly."""
    found: list[int] = lake.sql(_INTERESTING)["feature"].to_pylist()
    return found


def _open_or_create(path: Path) -> Lake:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return scopelake.create(path)
    try:
        return scopelake.open(path)
    except LakeError as error:
        raise NotALakeError(
            f"a demo in {path} was asked for; something else is there ({error}); name another "
            "folder"
        ) from error


def _check_own(lake: Lake) -> None:
    """Refuse somebody's own lake: the demo's is one with its corpora, and prompts inspected."""
    rows = lake.sql("SELECT corpus, tokenizer, context_length FROM corpora ORDER BY corpus")
    made = [
        r["corpus"]
        for r in rows.to_pylist()
        if r["corpus"] in ("stdlib", "chats")
        and (r["tokenizer"], r["context_length"]) == (tiny.MODEL_NAME, _CONTEXT_LENGTH)
    ]
    others = [
        name
        for name in rows["corpus"].to_pylist()
        if name not in made and not (made and name.startswith("inspection-"))
    ]
    if others:
        raise LakeExistsError(
            f"a demo in {lake.url} was asked for; the lake there has corpora that are not the "
            f"demo's ({', '.join(others)}); name another folder"
        )


def add_demo_corpora(lake: Lake) -> bool:
    """Add the corpora that `lake` lacks; return whether any was added."""
    there = set(lake.sql("SELECT corpus FROM corpora")["corpus"].to_pylist())
    root = Path(sysconfig.get_path("stdlib"))
    sources = {
        "stdlib": (_text_files(), False),
        "chats": ([tiny.chats_path()], True),
    }
    for name, (files, chat) in sources.items():
        if name in there:
            continue
        with corpus_progress(name) as progress:
            added = lake.add_corpus(
                name, files, tokenizer=tiny.MODEL_NAME, context_length=_CONTEXT_LENGTH, chat=chat,
                root=root, progress=progress,
            )  # fmt: skip
        print(
            f"corpus {name}: {counted(added.n_documents, 'document')}, "
            f"{counted(added.n_contexts, 'context')}, "
            f"{counted(added.n_tokens, 'token')}"
        )
    return not there >= set(sources)


def _text_files() -> list[Path]:
    """The first held-out files, up to TEXT_BYTES."""
    files, n_bytes = [], 0
    for path in tiny.stdlib_files(held_out=True):
        if n_bytes < TEXT_BYTES:
            files.append(path)
            n_bytes += path.stat().st_size
    return files


def _ingest(lake: Lake) -> bool:
    worked = False
    for corpus in ("stdlib", "chats"):
        with ingest_progress(corpus) as progress:
            done = lake.ingest(
                corpus,
                model=tiny.MODEL_NAME,
                saes=[tiny.coders_path()],
                dense=[("resid_post", 3)],
                progress=progress,
            )
        if not done.already_complete:
            worked = True
            print(
                f"ingested {corpus}: {counted(done.tokens, 'token')} and "
                f"{counted(done.firings, 'firing')} in "
                f"{done.seconds:.1f} s ({done.tokens / done.seconds:,.0f} tokens/s, "
                f"{done.firings / done.seconds:,.0f} firings/s)"
            )
    return worked


def _add_neighbors(lake: Lake) -> bool:
    """Compare the decoders of the residual stream's coders, each with each."""
    with step_progress() as progress:
        done = lake.add_neighbors(tiny.coders_path() / "resid_post_all", progress=progress)
    if done.n_pairs:
        print(f"{done}\n")
    return done.n_pairs > 0


def _show(lake: Lake, path: Path) -> None:
    print(lake.info().to_text())
    color = sys.stdout.isatty()
    features = interesting_features(lake)
    for feature in features:
        found = lake.top_contexts(feature, sae=SHOWN_SAE, corpus="stdlib", k=4, window=10)
        print(f"\n{found.to_text(color=color)}")
    print(f"\nOne SQL query: who speaks the tokens on which features fire?\n\n{SQL}\n")
    print_table(lake.sql(SQL))
    print(
        f"""
Four commands to try next:
  scopelake top {path} {features[0]} --sae {SHOWN_SAE} --corpus chats --where "role = 'model'"
  scopelake feature {path} {features[0]} --sae {SHOWN_SAE} --coactive
  scopelake features-at {path} 0 20 --corpus chats -k 3
  scopelake sql {path} "SELECT sae, sum(firings) AS firings FROM features GROUP BY sae ORDER BY sae"
"""
    )
