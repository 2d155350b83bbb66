"""The verb that says what an ingest would cost: plan."""

from __future__ import annotations

import argparse
from typing import Any, Final

import scopelake
from scopelake.cli.parsing import add_json, add_verb
from scopelake.errors import InvalidArgumentError
from scopelake.render import to_json


def _add_plan(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "plan", _plan, "say what an ingest would cost, before it runs")
    parser.add_argument("lake", nargs="?", help="folder of the lake, or s3://<bucket>/<prefix>")
    parser.add_argument("corpus", nargs="?", help="name of the corpus")
    parser.add_argument("--tokens", type=float, metavar="N",
                        help="in the place of lake and corpus: a corpus of so many tokens, for "
                             "example 1e9")  # fmt: skip
    parser.add_argument("--context-length", type=int, metavar="TOKENS",
                        help="with --tokens: tokens in a context; 1024 by default")  # fmt: skip
    parser.add_argument("--shard-contexts", type=int, metavar="N",
                        help="with --tokens: contexts in a shard; 256 by default")  # fmt: skip
    parser.add_argument("--model", required=True, help="folder or hub id of a Gemma 3")
    parser.add_argument("--sae", dest="saes", default=[], action="append", metavar="SAE",
                        help="as of ingest; published ones are known by name and not "
                             "fetched")  # fmt: skip
    parser.add_argument("--dense", action="append", default=[], metavar="SITE/LAYER",
                        help="plan for dense activations of this site too")  # fmt: skip
    parser.add_argument("--device", default="auto",
                        help="auto, cpu, cuda, or h100, whose rates are assumed")  # fmt: skip
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, or auto, the default")
    parser.add_argument("--device-map", metavar="MAP",
                        help="'auto' spreads a model over several devices")  # fmt: skip
    parser.add_argument("--activation-bits", type=int, default=10, metavar="BITS",
                        help="mantissa bits kept of an activation; 10 by default")  # fmt: skip
    parser.add_argument("--batch-tokens", type=int, default=16384, metavar="TOKENS",
                        help="most tokens at once, or a context; 16384 by default")  # fmt: skip
    parser.add_argument("--keep", default="all",
                        help="firings to store, as of ingest: all, peaks, or "
                             "sample:0.01")  # fmt: skip
    parser.add_argument("--memory", default="auto", metavar="SIZE",
                        help="what the process may take, such as 8GB; by default 60 %% of the "
                             "machine's")  # fmt: skip
    parser.add_argument("--tokens-per-second", type=float, metavar="RATE",
                        help="a throughput that is known, for the time")  # fmt: skip
    parser.add_argument("--pilot", action="store_true",
                        help="run one shard, in a lake of its own that is removed, and measure "
                             "what is guessed otherwise")  # fmt: skip
    parser.add_argument("--model-name", help="what the coders call the model")
    add_json(parser)


def _plan(arguments: argparse.Namespace) -> None:
    _check(arguments)
    shared: dict[str, Any] = {
        "model": arguments.model,
        "saes": arguments.saes,
        "dense": arguments.dense,
        "device": arguments.device,
        "dtype": arguments.dtype,
        "device_map": arguments.device_map,
        "activation_bits": arguments.activation_bits,
        "batch_tokens": arguments.batch_tokens,
        "keep": arguments.keep,
        "memory": arguments.memory,
        "tokens_per_second": arguments.tokens_per_second,
        "model_name": arguments.model_name,
    }
    if arguments.tokens is not None:
        given = {name: getattr(arguments, name) for name in ("context_length", "shard_contexts")}
        cut = {name: value for name, value in given.items() if value is not None}
        found = scopelake.plan(arguments.tokens, **cut, **shared)
    else:
        from scopelake.progress import ingest_progress

        with ingest_progress(f"pilot of {arguments.corpus}") as progress:
            found = scopelake.open(arguments.lake).plan(
                arguments.corpus,
                pilot=arguments.pilot,
                progress=progress if arguments.pilot else None,
                **shared,
            )
    print(to_json(found.to_dict()) if arguments.json else found)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse a mix of a lake's corpus and one of so many tokens."""
    has_corpus = arguments.corpus is not None
    if (arguments.tokens is None) != has_corpus or (arguments.lake and not has_corpus):
        raise InvalidArgumentError(
            "a plan was asked for; it is of a lake's corpus or of so many tokens; give LAKE and "
            "CORPUS, or --tokens N alone"
        )
    is_cut = (arguments.context_length, arguments.shard_contexts) != (None, None)
    if has_corpus and is_cut:
        raise InvalidArgumentError(
            "a plan of a lake's corpus was asked for with another context length or shard size; "
            "the corpus has its own; leave --context-length and --shard-contexts out"
        )
    if arguments.pilot and not has_corpus:
        raise InvalidArgumentError(
            "a pilot was asked for without a corpus; it runs a shard of one; add the corpus, or "
            "leave --pilot out"
        )


VERBS: Final = (_add_plan,)
