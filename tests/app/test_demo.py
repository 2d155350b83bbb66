"""The demo, whole: built once, complete the second time."""

import pytest

import scopelake
from scopelake.cli import main


@pytest.mark.slow
def test_demo_builds_a_lake_and_the_second_run_does_no_work(tmp_path, capsys):
    path = tmp_path / "lake"
    assert main(["demo", str(path)]) == 0
    first = capsys.readouterr().out
    assert "Built in" in first
    assert first.count("feature ") >= 3
    assert "B token-major + " in first
    assert "mean_activation" in first
    assert first.count("scopelake ") >= 3
    lake = scopelake.open(path)
    info = lake.info()
    assert sum(c.tokens for c in info.corpora) >= 200_000
    assert all(c.complete for c in info.codes)
    assert len(info.codes) == 2 * 14
    before = lake.snapshot
    assert main(["demo", str(path)]) == 0
    assert "is complete: no work was done" in capsys.readouterr().out
    assert scopelake.open(path).snapshot == before
