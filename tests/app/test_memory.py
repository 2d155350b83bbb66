"""What the command line tells the allocators."""

import os
import subprocess
import sys

import pytest

VARIABLES = {"ARROW_DEFAULT_MEMORY_POOL", "_RJEM_MALLOC_CONF", "MALLOC_MMAP_THRESHOLD_",
             "MALLOC_ARENA_MAX"}  # fmt: skip
FREED = """
import numpy as np
from scopelake.cli.memory import keep_memory_steady
keep_memory_steady()
from scopelake.ingest.machine import taken_memory

# Freed, a mapped block raises the size from which blocks are mapped, if nothing is said.
np.ones(30_000_000, np.uint8)
blocks = [np.ones(200_000, np.uint8) for _ in range(1001)]
taken = taken_memory()
del blocks[:-1]
print(taken - taken_memory())
"""


def run(code, **environment):
    """Return what a process prints; the command line, called in this one, has set variables."""
    plain = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=plain | environment,
    )  # fmt: skip
    return done.stdout


def freed(**environment):
    return int(run(FREED, **environment))


@pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="the C library is not glibc"
)
def test_what_is_freed_goes_back_to_the_system_unless_the_environment_says_otherwise():
    assert freed() > 180_000_000  # of 200 MB
    assert freed(MALLOC_MMAP_THRESHOLD_=str(32 << 20)) < 20_000_000


def test_allocators_of_libraries_are_told_before_they_are_loaded():
    code = (
        "import sys, os, scopelake.cli\n"
        "assert not {'pyarrow', 'deltalake'} & set(sys.modules)\n"
        "try: scopelake.cli.main(['--version'])\n"
        "except SystemExit: pass\n"
        "import pyarrow\n"
        "print(pyarrow.default_memory_pool().backend_name, os.environ['_RJEM_MALLOC_CONF'])\n"
    )
    assert run(code).splitlines()[-1].startswith("system narenas:1")
    own = run(code, ARROW_DEFAULT_MEMORY_POOL="mimalloc", _RJEM_MALLOC_CONF="narenas:2")
    assert own.splitlines()[-1] == "mimalloc narenas:2"
