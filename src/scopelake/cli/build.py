"""Verbs that build a lake, and those about SAEs: demo, create, add-corpus, ingest, ..."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import scopelake
from scopelake import tiny
from scopelake.cli.parsing import add_json, add_lake, add_verb, show
from scopelake.render import to_json

if TYPE_CHECKING:
    from scopelake.ingest.list_coders import CoderListing
    from scopelake.ingest.report import IngestSummary


def _add_demo(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "demo", _demo, "build a lake from real text with the tiny model")
    parser.add_argument(
        "lake",
        type=Path,
        nargs="?",
        default=Path("demo-lake"),
        help="folder of the lake; demo-lake by default",
    )


def _demo(arguments: argparse.Namespace) -> None:
    from scopelake.demo import run_demo

    run_demo(arguments.lake)


def _add_create(verbs: Any) -> None:  # noqa: ANN401
    add_lake(add_verb(verbs, "create", _create, "create an empty lake"), snapshot=False)


def _create(arguments: argparse.Namespace) -> None:
    lake = scopelake.create(arguments.lake)
    print(f"created an empty lake in {lake.url}")


def _add_corpus(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "add-corpus", _corpus, "tokenize text or chats into a corpus")
    add_lake(parser, snapshot=False)
    parser.add_argument("corpus", help="name of the new corpus")
    parser.add_argument("source", nargs="+", type=Path, help="files or folders")
    parser.add_argument("--tokenizer", required=True, help="folder or hub id of a Gemma 3")
    parser.add_argument(
        "--context-length",
        type=int,
        default=1024,
        metavar="TOKENS",
        help="most tokens in a context; 1024 by default",
    )
    parser.add_argument(
        "--shard-contexts",
        type=int,
        default=256,
        metavar="N",
        help="contexts in a shard, the unit of commit; 256 by default",
    )
    parser.add_argument("--chat", action="store_true", help="records hold 'messages'")
    _add_replies(parser)
    _add_device(parser)


def _corpus(arguments: argparse.Namespace) -> None:
    from scopelake.progress import corpus_progress

    with corpus_progress(arguments.corpus) as progress:
        added = scopelake.open(arguments.lake).add_corpus(
            arguments.corpus,
            arguments.source,
            tokenizer=arguments.tokenizer,
            context_length=arguments.context_length,
            chat=arguments.chat,
            shard_contexts=arguments.shard_contexts,
            generate=arguments.generate,
            temperature=arguments.temperature,
            seed=arguments.seed,
            device=arguments.device,
            dtype=arguments.dtype,
            device_map=arguments.device_map,
            progress=progress,
        )
    print(
        f"corpus {added.corpus}: {added.n_documents:,} documents ({added.n_split:,} longer than a "
        f"context, split), {added.n_contexts:,} contexts, {added.n_tokens:,} tokens"
    )


def _add_saes(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "saes", _saes, "list the SAEs of a folder or hub repository")
    parser.add_argument("repo", nargs="?",
                        help="folder, or hub id such as google/gemma-scope-2-1b-it; without one, "
                             "what ships here and what the hub's cache holds")  # fmt: skip
    add_json(parser, "a repository")


def _saes(arguments: argparse.Namespace) -> None:
    from scopelake.ingest.list_coders import list_cached_coders, list_coders

    if arguments.repo is None:
        listings = [list_coders(tiny.coders_path()), *list_cached_coders()]
    else:
        is_tiny = arguments.repo == tiny.CODERS_REPO
        listings = [list_coders(tiny.coders_path() if is_tiny else arguments.repo)]
    for found in listings:
        _show_listing(found, arguments.json)


def _show_listing(found: CoderListing, as_json: bool) -> None:
    from scopelake.render import print_table

    if as_json:
        values = {"repo": found.repo, "saes": found.table.to_pylist(), "missing": found.missing,
                  "incomplete": found.incomplete}  # fmt: skip
        print(to_json(values))
        return
    print_table(found.table, max_rows=10_000)
    print(f"\n{found.table.num_rows:,} SAEs in {found.repo}")
    for what, names in (("missing from the grid", found.missing),
                        ("lacking a layer's file", found.incomplete)):  # fmt: skip
        if names:
            print(f"{len(names):,} {what}: {', '.join(names)}")


def _add_ingest(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "ingest", _ingest, "run a model over a corpus and store its firings")
    add_lake(parser, snapshot=False)
    parser.add_argument("corpus", help="name of the corpus")
    parser.add_argument("--model", required=True, help="folder or hub id of a Gemma 3")
    _add_coders(parser)
    parser.add_argument("--dense", action="append", default=[], metavar="SITE/LAYER",
                        help="store dense activations of this site too")  # fmt: skip
    _add_precision(parser)
    parser.add_argument("--evaluate", action="store_true",
                        help="measure how well the coders reconstruct, on a sample")  # fmt: skip
    _add_placement(parser)


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--activation-bits",
        type=int,
        default=10,
        metavar="BITS",
        help="mantissa bits kept of an activation; 10 by default, 23 is lossless",
    )
    parser.add_argument(
        "--batch-tokens",
        type=int,
        default=16384,
        metavar="TOKENS",
        help="most tokens at once; 16384 by default",
    )


def _ingest(arguments: argparse.Namespace) -> None:
    from scopelake.progress import ingest_progress

    lake = scopelake.open(arguments.lake)
    with ingest_progress(arguments.corpus) as progress:
        done = lake.ingest(
            arguments.corpus,
            model=arguments.model,
            saes=arguments.saes,
            dense=arguments.dense,
            activation_bits=arguments.activation_bits,
            batch_tokens=arguments.batch_tokens,
            evaluate=arguments.evaluate,
            progress=progress,
            **_placement(arguments),
        )
    _show_ingested(arguments.corpus, done)


def _add_encode(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "encode", _encode, "encode stored dense activations; no model runs")
    add_lake(parser, snapshot=False)
    parser.add_argument("corpus", help="name of a corpus ingested with --dense")
    _add_coders(parser)
    parser.add_argument("--model", metavar="NAME",
                        help="whose activations, if those of several models are "
                        "stored")  # fmt: skip
    parser.add_argument("--unembedding", metavar="MODEL",
                        help="folder or hub id of that model, for the tokens that features "
                        "promote; null without it")  # fmt: skip
    _add_precision(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")


def _encode(arguments: argparse.Namespace) -> None:
    from scopelake.progress import ingest_progress

    lake = scopelake.open(arguments.lake)
    with ingest_progress(arguments.corpus) as progress:
        done = lake.encode(
            arguments.corpus,
            saes=arguments.saes,
            model=arguments.model,
            unembedding=arguments.unembedding,
            device=arguments.device,
            activation_bits=arguments.activation_bits,
            batch_tokens=arguments.batch_tokens,
            progress=progress,
        )
    _show_ingested(arguments.corpus, done)


def _show_ingested(corpus: str, done: IngestSummary) -> None:
    from scopelake.ingest.stages import stages_text

    if done.already_complete:
        print(f"{corpus}: complete already, nothing to do (snapshot {done.snapshot})")
        return
    print(
        f"{corpus}: {done.tokens:,} tokens, {done.firings:,} firings, "
        f"{done.n_bytes / 1e6:,.1f} MB in {done.seconds:,.1f} s (snapshot {done.snapshot})"
    )
    print(f"time: {stages_text(done.stages, done.seconds)}")


def _add_inspect(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "inspect", _inspect, "ingest one prompt and show what fires in it")
    add_lake(parser, snapshot=False)
    parser.add_argument("prompt", help="the text, or with --chat what the user says")
    parser.add_argument("--chat", action="store_true", help="wrap it in the chat template")
    parser.add_argument("--model", required=True, help="folder or hub id of a Gemma 3")
    _add_coders(parser)
    _add_replies(parser)
    parser.add_argument(
        "-k", type=int, default=10, help="at most so many for each SAE and token; 10 by default"
    )
    _add_placement(parser)
    add_json(parser, "a firing")


def _inspect(arguments: argparse.Namespace) -> None:
    prompt = arguments.prompt
    found = scopelake.open(arguments.lake).inspect(
        [{"role": "user", "content": prompt}] if arguments.chat else prompt,
        model=arguments.model,
        saes=arguments.saes,
        generate=arguments.generate,
        temperature=arguments.temperature,
        seed=arguments.seed,
        k=arguments.k,
        **_placement(arguments),
    )
    show(found, arguments.json)


def _add_import(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "import-examples", _import,
                      "import the examples published beside SAEs, without a model")  # fmt: skip
    add_lake(parser, snapshot=False)
    _add_coders(parser)
    parser.add_argument("--tokenizer", required=True, help="folder or hub id of a Gemma 3")
    parser.add_argument("--corpus", help="name for the examples' corpus")
    add_json(parser, "an SAE")


def _import(arguments: argparse.Namespace) -> None:
    from scopelake.progress import step_progress

    with step_progress() as progress:
        done = scopelake.open(arguments.lake).import_examples(
            arguments.saes,
            tokenizer=arguments.tokenizer,
            corpus=arguments.corpus,
            progress=progress,
        )
    for one in done:
        if arguments.json:
            print(to_json(asdict(one)))
            continue
        print(
            f"{one.sae} on {one.corpus}: {'there already, ' if one.already else ''}"
            f"{one.n_firings:,} examples of {one.n_features:,} features ({one.n_on_bos:,} on BOS "
            f"and {one.n_on_padding:,} on padding left out)"
        )


def _add_check(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "check-sae", _check,
                      "encode imported examples again and compare; exit status 1 if they disagree",
                      )  # fmt: skip
    add_lake(parser)
    _add_coders(parser)
    parser.add_argument("--model", required=True, help="folder or hub id of a Gemma 3")
    parser.add_argument("--corpus", help="the examples' corpus, if there are several")
    parser.add_argument(
        "--contexts", type=int, default=32, metavar="N", help="sample size; 32 by default"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample; 0 by default")
    _add_placement(parser)
    add_json(parser, "an SAE")


def _check(arguments: argparse.Namespace) -> int:
    from scopelake.progress import step_progress

    with step_progress() as progress:
        checks = scopelake.open(arguments.lake, arguments.snapshot).check_saes(
            arguments.saes,
            model=arguments.model,
            corpus=arguments.corpus,
            n_contexts=arguments.contexts,
            seed=arguments.seed,
            progress=progress,
            **_placement(arguments),
        )
    for check in checks:
        print(to_json({**asdict(check), "agrees": check.agrees}) if arguments.json else check)
    return 0 if all(check.agrees for check in checks) else 1


def _add_coders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sae", dest="saes", required=True, action="append", metavar="SAE",
                        help="folder of one coder or many, pattern over such folders, or hub id "
                             "<org>/<repo>/<family>/<folder>; may be given again")  # fmt: skip


def _add_replies(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--generate", type=int, metavar="TOKENS",
                        help="let the model answer chats that end with the user")  # fmt: skip
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="of the answer; 0, the default, is greedy"
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling the answer; 0 by default")


def _add_device(parser: argparse.ArgumentParser) -> None:
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


def _add_placement(parser: argparse.ArgumentParser) -> None:
    _add_device(parser)
    parser.add_argument("--model-name", help="what the coders call the model")


def _placement(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "device": arguments.device,
        "dtype": arguments.dtype,
        "device_map": arguments.device_map,
        "model_name": arguments.model_name,
    }


VERBS: Final = (
    _add_demo,
    _add_create,
    _add_corpus,
    _add_saes,
    _add_ingest,
    _add_encode,
    _add_inspect,
    _add_import,
    _add_check,
)
