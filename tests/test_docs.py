"""README and docs: what they show is run, in the order in which a reader would."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scopelake.cli import _parser, main
from scopelake.ingest.corpus_files import JSON_SUFFIXES, TEXT_SUFFIXES
from scopelake.ingest.documents import CHAT_ROLES
from scopelake.query.columns import VIEWS
from scopelake.query.macros import MACROS
from scopelake.query.rank_contexts import WHERE_COLUMNS

ROOT = Path(__file__).resolve().parent.parent
README, FORMAT, CLI = ROOT / "README.md", ROOT / "docs" / "format.md", ROOT / "docs" / "cli.md"
ENCODING, ACTIVATIONS = ROOT / "docs" / "encoding.md", ROOT / "docs" / "activations.md"
CORPORA, INGEST = ROOT / "docs" / "corpora.md", ROOT / "docs" / "ingest.md"
SQL, DASK = ROOT / "docs" / "sql.md", ROOT / "docs" / "dask.md"
FEATURES, CONTEXTS = ROOT / "docs" / "features.md", ROOT / "docs" / "contexts.md"
INSPECT, SEARCH = ROOT / "docs" / "inspect.md", ROOT / "docs" / "search.md"
EXCHANGE = ROOT / "docs" / "exchange.md"
COMPARE = ROOT / "docs" / "compare.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
NOT_RUN = "<!-- not run"
"""Begins the line above a block that the tests cannot run, with the reason."""


def blocks(page, language, *, run=True):
    """The code blocks of a page that are marked as not run, or are not."""
    parts = page.read_text().split(f"```{language}\n")
    return [
        after.split("```")[0]
        for before, after in zip(parts, parts[1:], strict=False)
        if run != before.rstrip().splitlines()[-1].startswith(NOT_RUN)
    ]


NOTES = "import os\n\nprint(os.environ['HOME'])\n" * 30


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Return a function that runs a command beside a notes.txt, with our programs on the path."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "notes.txt").write_text(NOTES)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def run(*command):
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=folder,
            env=os.environ | {"PATH": path, "COLUMNS": "120"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def shown(shell):
    """What the README's first example prints; it makes my-lake."""
    return shell(sys.executable, "-P", "-c", blocks(README, "python")[0])


def test_the_readme_writes_the_text_that_its_example_reads(tmp_path):
    page = README.read_text()
    block = next(b for b in blocks(README, "sh") if "> notes.txt" in b)
    assert page.index(block) < page.index(blocks(README, "python")[0])
    subprocess.run(["bash", "-ec", block], check=True, cwd=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == NOTES


def test_the_readme_example_runs_as_printed(shown):
    assert blocks(README, "python")[0].count("\n") <= 16
    assert "feature " in shown
    assert "corpus notes: 1 document" in shown


def test_the_page_of_the_command_line_says_what_the_code_does(shell, shown):
    page = CLI.read_text()
    for words in (TEXT_SUFFIXES, JSON_SUFFIXES, CHAT_ROLES, WHERE_COLUMNS):
        assert ", ".join(f"`{word}`" for word in words) in page
    (block,) = blocks(CLI, "sh")
    printed = shell("bash", "-ec", block)
    assert "".join(f"    {line}\n" for line in printed.splitlines()) in page


def test_the_page_of_sql_shows_what_it_prints_and_what_views_hold(shell, shown):
    page = SQL.read_text()
    (block,) = blocks(SQL, "sh")
    printed = shell("bash", "-ec", block)
    assert "".join(f"    {line}\n" for line in printed.splitlines()) in page
    for view, text in VIEWS.items():
        columns = "\n".join(f"| `{name}` | {about} |" for name, about in text.columns.items())
        head = f"### {view}\n\nA row is {text.about}.\n\n| column | |\n|---|---|\n"
        assert f"{head}{columns}\n" in page
    for macro in MACROS:
        assert f"| `{macro.call}` | {macro.about} |\n" in page
    assert page.count("\n### ") == len(VIEWS)


def test_the_page_of_features_prints_what_it_shows(shell, shown):
    (block,) = blocks(FEATURES, "python")
    printed = shell(sys.executable, "-P", "-c", block)
    assert "".join(f"    {line}\n" for line in printed.splitlines()) in FEATURES.read_text()
    (commands,) = blocks(FEATURES, "sh")
    printed = shell("bash", "-ec", commands)
    assert "on corpus" not in printed
    assert "WITH here AS" in printed
    assert "1 there already" in printed


def test_the_page_of_exchange_prints_what_it_shows(shell, shown):
    (block,) = blocks(EXCHANGE, "python")
    printed = shell(sys.executable, "-P", "-c", block)
    assert "".join(f"    {line}\n" for line in printed.splitlines()) in EXCHANGE.read_text()
    (commands,) = blocks(EXCHANGE, "sh")
    printed = shell("bash", "-ec", commands)
    assert "2 labels of source me taken out" in printed
    assert "neuronpedia: 64 features" in printed
    assert "on corpus all:" in printed


@pytest.mark.parametrize(
    "page", [ENCODING, ACTIVATIONS, CORPORA, DASK, CONTEXTS, SEARCH], ids=lambda page: page.stem
)
def test_a_page_prints_what_it_shows(shell, shown, page):
    (block,) = blocks(page, "python")
    printed = shell(sys.executable, "-P", "-c", block)
    assert "".join(f"    {line}\n" for line in printed.splitlines()) in page.read_text()


def test_the_page_of_comparisons_prints_what_it_shows(shell):
    (block,) = blocks(COMPARE, "python")
    printed = shell(sys.executable, "-P", "-c", block)
    assert "".join(f"    {line}\n" for line in printed.splitlines()) in COMPARE.read_text()
    (commands,) = blocks(COMPARE, "sh")
    *text, last = shell("bash", "-ec", commands).splitlines()
    assert text[0].startswith("a  ")
    assert len(json.loads(last)["features"]) == 2


def test_an_ingest_runs_as_its_page_says(shell):
    first, last = blocks(INGEST, "sh")
    printed = shell("bash", "-ec", first)
    n_shards = int(re.search(r"notes: (\d+) shards are left", printed)[1])
    assert "device idle" in printed
    log = shell("cat", "ingest.jsonl").splitlines()
    assert len([line for line in log if '"shard committed"' in line]) == n_shards
    (block,) = blocks(INGEST, "python")
    printed = shell(sys.executable, "-P", "-c", block)
    assert printed == f"{n_shards} shards by 2 workers\n"
    assert "peaks only" in shell("bash", "-ec", last)


def test_a_plain_duckdb_client_answers(shell, shown):
    (init,) = (b for b in blocks(README, "sh") if "--init" in b)
    shell("bash", "-ec", init)
    (block,) = (b for b in blocks(README, "python") if "import duckdb" in b)
    assert "strongest" in shell(sys.executable, "-P", "-c", block)


def test_a_prompt_is_inspected(shell, shown):
    page = INSPECT.read_text()
    (block,) = blocks(INSPECT, "python")
    printed = shell(sys.executable, "-P", "-c", block)
    assert "".join(f"    {line}\n" for line in printed.splitlines()) in page
    (commands,) = blocks(INSPECT, "sh")
    printed = shell("bash", "-ec", commands)
    assert "kept as corpus inspection-1" in printed
    assert "\nwrote chat.html\n" in printed
    assert json.loads(printed.splitlines()[-1])["k"] == 1
    (block,) = (b for b in blocks(README, "python") if ".inspect(" in b)
    assert "kept as corpus inspection-2" in shell(sys.executable, "-P", "-c", block)


@pytest.mark.slow
def test_the_readme_commands_run(shell):
    (block,) = (b for b in blocks(README, "sh") if "other-lake" in b)
    printed = shell("bash", "-ec", block)
    assert "created an empty lake" in printed
    assert "corpus notes: 1 document" in printed


def test_the_format_page_reads_a_lake_without_this_package(shell, shown):
    (block,) = blocks(FORMAT, "python")
    assert "scopelake" not in re.sub(r"scopelake~gemma", "", block)
    printed = shell(sys.executable, "-P", "-c", block)
    assert "bfloat16" in printed
    assert "activation" in printed
    assert "shape: (5," in printed


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_that_are_not_run_exist(page):
    text = "\n".join(blocks(page, "sh") + blocks(page, "sh", run=False)).replace("\\\n", " ")
    for line in text.splitlines():
        command = line.split(" #")[0].split(" > ")[0].strip()
        if command.startswith("scopelake "):
            _parser().parse_args(shlex.split(command)[1:])
        elif command.startswith("make "):
            assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()
        elif command.startswith("python "):
            assert (ROOT / command.split()[1]).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_files_resolve(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_verb_is_documented_and_has_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    listed = capsys.readouterr().out
    for verb in (
        "demo",
        "create",
        "add-corpus",
        "append-corpus",
        "saes",
        "plan",
        "ingest",
        "inspect",
        "import-examples",
        "check-sae",
        "top",
        "feature",
        "compare",
        "add-neighbors",
        "label",
        "import-delphi",
        "export",
        "features-at",
        "sql",
        "info",
        "verify",
        "compact",
        "vacuum",
    ):
        assert verb in listed
        assert f"scopelake {verb}" in README.read_text() or verb == "demo"
