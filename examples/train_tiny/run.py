"""The whole recipe: chats, tokenizer, model, coders, model card; about half an hour on 2 cores.

    python examples/train_tiny/run.py

writes into the package's data/tiny folder. The coders are trained by one process a core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RECORD = HERE / "record.json"
N_LAYERS = 6


def script(name: str, *arguments: str) -> list[str]:
    """The command that runs a script beside this one."""
    return [sys.executable, "-P", str(HERE / name), *arguments]


def run_all(commands: list[list[str]]) -> float:
    """Run `commands` side by side; return the wall time in seconds.

    Raises:
        subprocess.CalledProcessError: one of them failed.
    """
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    started = time.monotonic()
    running = [subprocess.Popen(command, env=environment) for command in commands]
    for command, process in zip(commands, running, strict=True):
        if process.wait() != 0:
            raise subprocess.CalledProcessError(process.returncode, command)
    return time.monotonic() - started


def main() -> None:
    """Run every step in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=17.0, help="for the model")
    parser.add_argument("--keep-model", action="store_true", help="train only the coders")
    parser.add_argument("--jobs", type=int, default=2, help="coders trained side by side")
    args = parser.parse_args()
    if not args.keep_model:
        run_all([script("dialogues.py")])
        run_all([script("train_model.py", "--minutes", str(args.minutes), "--record", str(RECORD))])
    layers = [",".join(map(str, range(j, N_LAYERS, args.jobs))) for j in range(args.jobs)]
    seconds = run_all([script("train_coders.py", "--layers", each) for each in layers if each])
    record = json.loads(RECORD.read_text()) | {"coder_seconds": round(seconds)}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    run_all([script("evaluate.py", "--record", str(RECORD))])


if __name__ == "__main__":
    main()
