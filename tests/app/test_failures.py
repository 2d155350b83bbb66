"""What comes from outside: permissions, a full disk, SIGTERM; one line that says what to do."""

import os
import signal
from errno import EACCES, ENOSPC, EROFS

import pytest

import scopelake
from scopelake.cli import main


@pytest.mark.parametrize(
    ("number", "says"),
    [(EACCES, "check the permissions of the folder"), (EROFS, "check the permissions"),
     (ENOSPC, "free some space")],
)  # fmt: skip
def test_a_failure_of_the_system_says_what_to_do(tmp_path, monkeypatch, capsys, number, says):
    def fail(*_):
        raise OSError(number, os.strerror(number), str(tmp_path))

    monkeypatch.setattr(scopelake, "open", fail)
    assert main(["info", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_one_line(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main(["create", str(tmp_path / "lake")]) == 2
    assert "permissions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_ends_it_in_one_line(tmp_path, monkeypatch, capsys, number, status, word):
    monkeypatch.setattr(scopelake, "open", lambda *_: signal.raise_signal(number))
    earlier = signal.getsignal(signal.SIGTERM)
    # A job in the background of a shell begins with interrupts ignored.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["info", str(tmp_path)]) == status
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert signal.getsignal(signal.SIGTERM) is earlier
    assert capsys.readouterr().err == (
        f"scopelake: {word}; the lake is whole: run it again to go on\n"
    )
