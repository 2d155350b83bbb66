"""How much of each document a rank test looks at: as much of one set as of the other.

The rate of a feature in a few tokens is mostly 0 and sometimes large, in many tokens neither: of
sets whose documents differ in length the rates are distributed differently though a feature fires
equally often. So the longer part is cut to the shorter one's length, to a block of tokens that
follow each other, since firings come in bursts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from scopelake.errors import InvalidArgumentError
from scopelake.names import counted

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

DocumentTest = Literal["rank-sum", "signed-rank"]
"""Between documents of one set each, or within documents that have tokens of both."""

DOCUMENT_TESTS: Final[tuple[DocumentTest, ...]] = get_args(DocumentTest)

UNTESTED: Final = "not tested"
"""How the note begins that says why there is no test."""


@dataclass(frozen=True)
class Windows:
    """Which part of each document's tokens is tested; [documents, 2], of sets a and b."""

    test: DocumentTest | None
    """None: there is too little to test."""
    length: Ints
    """Tokens that are tested; 0: the document is not in the test."""
    start: Ints
    """Number of the first of them among the document's tokens of the set; after the last token
    comes the first, so that every token is as likely to be in it."""
    n_documents: tuple[int, int]
    """In the test, of a and of b; of signed-rank the same ones."""
    note: str = ""
    """What is left out of the test, or why there is none."""


def check_test(test: str | None) -> None:
    """Refuse a test that there is not.

    Raises:
        InvalidArgumentError: there is none of that name.
    """
    if test is not None and test not in DOCUMENT_TESTS:
        raise InvalidArgumentError(
            f"test={test!r} was asked for; there are {', '.join(DOCUMENT_TESTS)}; choose one"
        )


def place_windows(tokens: Ints, test: DocumentTest | None, seed: int) -> Windows:
    """Return what of each document is tested.

    Args:
        tokens: of each document in sets a and b, [documents, 2].
        test: None: signed-rank where at least half of the documents of the set that has fewer have
            tokens of both, else rank-sum.
        seed: of where blocks begin.
    """
    there = tokens > 0
    both: Mask = np.all(there, axis=1)
    n_both, fewer = int(both.sum()), int(there.sum(axis=0).min())
    if test is None:
        test = "signed-rank" if n_both and 2 * n_both >= fewer else "rank-sum"
    tested = both[:, None] & there if test == "signed-rank" else ~both[:, None] & there
    n_a, n_b = (int(n) for n in tested.sum(axis=0))
    length = np.where(tested, tokens, 0)
    if min(n_a, n_b) < 2:
        return Windows(None, length * 0, length * 0, (n_a, n_b), _too_few(test, n_a, n_b))
    if test == "signed-rank":
        length = np.minimum(length, length[:, ::-1])
    else:
        length = np.stack([_matched(length[:, 0], length[:, 1]),
                           _matched(length[:, 1], length[:, 0])], axis=1)  # fmt: skip
    draw = np.random.default_rng(seed).random(tokens.shape)
    start = np.where(length < tokens, (draw * tokens).astype(np.int64), 0)
    return Windows(test, length, start, (n_a, n_b), _left_out(test, there, both))


def _matched(mine: Ints, others: Ints) -> Ints:
    """Return lengths, at most those that the other set has at the same quantile; 0 stays."""
    at = np.flatnonzero(mine)
    order = at[np.argsort(mine[at], kind="stable")]
    sorted_others = np.sort(others[others > 0])
    # The middle of the i-th of n equal parts, as a part of the others.
    quantile = (2 * np.arange(len(order)) + 1) * len(sorted_others) // (2 * len(order))
    found = np.zeros_like(mine)
    found[order] = np.minimum(mine[order], sorted_others[quantile])
    return found


def _too_few(test: DocumentTest, n_a: int, n_b: int) -> str:
    if test == "signed-rank":
        there = f"{counted(n_a, 'document')} with tokens of both"
    else:
        there = f"{counted(n_a, 'document')} with tokens of a alone and {n_b:,} of b alone"
    return (
        f"{UNTESTED}: a {test} test needs two documents or more of each set, since tokens of one "
        f"document hang together; there are {there}"
    )


def _left_out(test: DocumentTest, there: npt.NDArray[np.bool_], both: npt.NDArray[np.bool_]) -> str:
    if test == "signed-rank":
        n = int((there.any(axis=1) & ~both).sum())
        return f"{counted(n, 'document')} of one set alone not in the test" if n else ""
    n = int(both.sum())
    return f"{counted(n, 'document')} with tokens of both sets not in the test" if n else ""
