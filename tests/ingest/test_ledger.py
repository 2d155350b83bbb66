"""Shards that fail: tried again, set aside, or the ingest's own failure."""

import pytest

from scopelake.errors import (
    CoderMismatchError,
    InvalidArgumentError,
    LakeBusyError,
    TooLittleMemoryError,
)
from scopelake.ingest.ledger import TRIES, Ledger
from scopelake.ingest.plan import Shard

SHARDS = [Shard(i, 10 * i, 10 * i + 10, (), ()) for i in range(1000)]


def run(ledger, fails, attempts=None):
    """Make what waits, one after the other; return the numbers of all attempts."""
    attempts = [] if attempts is None else attempts
    while (shard := ledger.next()) is not None:
        attempts.append(shard.index)
        if shard.index in fails:
            ledger.failed(shard, RuntimeError(f"shard {shard.index}\nis odd"))
        else:
            ledger.done(1)
    return attempts


def test_a_few_that_fail_are_set_aside_and_the_rest_is_made():
    ledger = Ledger(SHARDS)
    attempts = run(ledger, {0, 1, 500, 998, 999})
    assert sorted(set(attempts)) == list(range(1000))
    assert len(attempts) == 1000 + 5 * (TRIES - 1)
    assert sorted(one.index for one in ledger.aside) == [0, 1, 500, 998, 999]
    first = next(one for one in ledger.aside if one.index == 500)
    assert str(first) == (
        "shard 500 (contexts 5000 to 5009) failed 3 times: RuntimeError: shard 500 is odd"
    )
    assert ledger.share_left == 0


def test_if_all_fail_it_ends_after_three():
    ledger, attempts = Ledger(SHARDS), []
    with pytest.raises(RuntimeError, match="shard 2"):
        run(ledger, range(1000), attempts)
    assert attempts == [0] * TRIES + [1] * TRIES + [2] * TRIES


def test_what_is_left_of_an_earlier_ingest_may_all_be_bad():
    ledger = Ledger(SHARDS[:5], n_committed=995)
    run(ledger, set(range(5)))
    assert len(ledger.aside) == 5


@pytest.mark.parametrize(
    ("error", "is_elsewhere", "ends"),
    [(CoderMismatchError("no"), False, True), (TooLittleMemoryError("no"), True, True),
     (OSError(28, "full"), False, True), (OSError(28, "full"), True, False),
     (InvalidArgumentError("NaN"), False, False), (MemoryError(), False, False)],
)  # fmt: skip
def test_refusals_end_it_and_what_a_shard_does_not(error, is_elsewhere, ends):
    ledger = Ledger(SHARDS)
    shard = ledger.next()
    if ends:
        with pytest.raises(type(error)):
            ledger.failed(shard, error, is_elsewhere=is_elsewhere)
    else:
        ledger.failed(shard, error, is_elsewhere=is_elsewhere)
        assert ledger.next() is shard


def test_a_shard_that_is_stale_again_and_again_ends_it():
    ledger = Ledger(SHARDS)
    for _ in range(TRIES - 1):
        ledger.again(ledger.next())
    with pytest.raises(LakeBusyError, match="each time a repair took out"):
        ledger.again(ledger.next())
