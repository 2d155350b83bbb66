"""Options that several verbs share: coders, replies, where a model runs."""

from __future__ import annotations

import argparse
from typing import Any


def add_coders(parser: argparse.ArgumentParser) -> None:
    """Add ``--sae``, which names coders."""
    parser.add_argument("--sae", dest="saes", required=True, action="append", metavar="SAE",
                        help="folder of one coder or many, pattern over such folders, or hub id "
                             "<org>/<repo>/<family>/<folder>; may be given again")  # fmt: skip


def add_replies(parser: argparse.ArgumentParser) -> None:
    """Add how a model answers chats."""
    parser.add_argument("--generate", type=int, metavar="TOKENS",
                        help="let the model answer chats that end with the user")  # fmt: skip
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="of the answer; 0, the default, is greedy"
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling the answer; 0 by default")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add where a model runs, and in which precision."""
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1, or auto, the default: a GPU if there is one",
    )
    parser.add_argument(
        "--dtype", default="auto", help="float32, bfloat16, or auto, the default: bfloat16 on a GPU"
    )
    parser.add_argument("--device-map", metavar="MAP",
                        help="'auto' spreads a model over several devices")  # fmt: skip


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Add where a model runs and what it is called."""
    add_device(parser)
    parser.add_argument("--model-name", help="what the coders call the model")


def placement(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_placement` added, as arguments of the library."""
    return {
        "device": arguments.device,
        "dtype": arguments.dtype,
        "device_map": arguments.device_map,
        "model_name": arguments.model_name,
    }
