"""Options that several verbs share: coders, replies, where a model runs."""

from __future__ import annotations

import argparse
from typing import Any

from scopelake.names import SITES


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


def add_sae(parser: argparse.ArgumentParser) -> None:
    """Add which SAE of the lake is meant."""
    parser.add_argument("--layer", type=int, help="the SAE of this layer, if only one fits")
    parser.add_argument("--site", choices=SITES, help="the SAE of this site")
    parser.add_argument("--sae", help="name of the SAE, or a unique ending of it")


def add_feature(
    parser: argparse.ArgumentParser, k: int = 20, of: str = "number of contexts"
) -> None:
    """Add which feature of which SAE is meant, and how many of what there shall be."""
    parser.add_argument("feature", type=int, help="its index in the SAE, from 0")
    add_sae(parser)
    parser.add_argument("--corpus", help="only of this corpus; of all by default")
    parser.add_argument("-k", type=int, default=k, help=f"{of}; {k} by default")


def add_window(parser: argparse.ArgumentParser) -> None:
    """Add how much of a context is shown."""
    parser.add_argument(
        "--window", type=whole_or_all, default=16, metavar="N",
        help="tokens on either side, or all for the whole context; 16 by default",
    )  # fmt: skip


def whole_or_all(text: str) -> int | None:
    """Return the number that a text is, or None of ``all``."""
    try:
        return None if text == "all" else int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number and not all") from error
