"""Keeps the checkout's own folders from shadowing installed packages of the same names."""

import os
import sys
from pathlib import Path

# Before anything imports triton: what it defines itself must be interpreted, too.
os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).resolve().parent.parent

# With the root on sys.path, transformers would take our kernels/ for the library of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
