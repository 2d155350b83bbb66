"""What a process gives back to the system."""

import os
import subprocess
import sys

import pytest

from scopelake.store.memory import give_back_memory

FREED = """
import numpy as np
from scopelake.ingest.machine import taken_memory
from scopelake.store.memory import give_back_memory

def block():
    return np.ones(100_000, np.uint8)  # not mapped by itself: glibc maps from 128 KiB

blocks = [block() for _ in range(2000)]
blocks.append(block())  # the heap's end stays in use
taken = taken_memory()
del blocks[:-1]
freed = taken_memory()
give_back_memory()
print(taken - freed, freed - taken_memory(), blocks[0].sum())
"""


@pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="the C library is not glibc"
)
def test_what_lies_free_between_blocks_in_use_goes_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    by_itself, given_back, kept = map(int, done.stdout.split())
    # 200 MB are free; some of it may be what else this process uses.
    assert by_itself < 20_000_000
    assert given_back > 150_000_000
    assert kept == 100_000  # what is in use stays as it is


def test_there_may_be_no_glibc(monkeypatch):
    monkeypatch.setattr(os, "confstr_names", {})
    monkeypatch.setattr("ctypes.CDLL", None)  # would fail if it were called
    give_back_memory()
