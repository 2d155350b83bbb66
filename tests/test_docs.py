"""README and docs: their Python runs, their commands and files exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scopelake.cli import _parser, main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.DOTALL)


def test_readme_examples_run_as_printed(tmp_path):
    first, second = blocks(ROOT / "README.md", "python")
    (tmp_path / "notes.txt").write_text("import os\n\nprint(os.environ['HOME'])\n" * 30)

    def run(code):
        return subprocess.run(
            [sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True,
            cwd=tmp_path,
        ).stdout  # fmt: skip

    shown = run(first)
    assert "feature " in shown
    assert "corpus notes: 1 documents" in shown
    views = run("import scopelake; print(scopelake.open('my-lake').sql_init())")
    (tmp_path / "views.sql").write_text(views)
    assert "strongest" in run(second)
    assert first.count("\n") <= 16


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_in_the_docs_parse(page):
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    for line in text.splitlines():
        command = line.split(" #")[0].split(" > ")[0].strip()
        if command.startswith("scopelake "):
            import shlex

            _parser().parse_args(shlex.split(command)[1:])
        elif command.startswith("make "):
            assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_files_resolve(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_verb_has_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    listed = capsys.readouterr().out
    for verb in ("demo", "create", "add-corpus", "ingest", "top", "features-at", "sql", "info"):
        assert verb in listed
