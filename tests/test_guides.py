"""The guides: each is run in an empty folder, prints what it shows and draws what it shows."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="it is optional: scopelake[plot]")
from matplotlib.image import imread

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "guides").glob("*.md"))
MOST_BYTES = 150_000


@pytest.fixture(scope="module")
def guides():
    """The script that runs them."""
    spec = importlib.util.spec_from_file_location("guides", ROOT / "examples" / "guides.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "guides", module)  # dataclasses look it up
        spec.loader.exec_module(module)
        yield module


def test_there_are_three():
    assert len(PAGES) == 3


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_guide_prints_and_draws_what_it_shows(guides, tmp_path, path):
    page = path.read_text()
    shown = [block.shown for block in guides.blocks(page)]
    assert page.count("```python\n") == len(shown)
    assert page.count("```text\n") == sum(map(bool, shown))
    assert guides.run(page, tmp_path) == shown
    names = guides.pictures(page)
    assert names
    for name in names:
        made, kept = tmp_path / Path(name).name, path.parent / name
        assert kept.stat().st_size < MOST_BYTES
        for picture in (imread(made), imread(kept)):
            assert picture[..., :3].std() > 0.02  # not blank
        assert imread(made).shape == imread(kept).shape


def test_output_and_code_are_told_apart(guides, tmp_path):
    page = (
        "a\n\n```python\nx = 2\n```\n\nb\n\n```python\nprint(x, ' ')\n```\n\n```text\nold\n```\nc\n"
    )
    assert guides.blocks(page) == [
        guides.Block("x = 2\n", ""), guides.Block("print(x, ' ')\n", "old\n"),
    ]  # fmt: skip
    printed = guides.run(page, tmp_path)
    assert printed == ["", "2\n"]
    assert guides.with_output(page, printed) == page.replace("old", "2")


def test_a_block_that_fails_is_not_passed_over(guides, tmp_path):
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        guides.run("```python\n1 / 0\n```\n", tmp_path)
