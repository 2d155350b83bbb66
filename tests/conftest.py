"""Keeps the checkout's own folders from shadowing installed packages of the same names."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# With the root on sys.path, transformers would take our kernels/ for the library of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
