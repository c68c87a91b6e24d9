"""Progress goes to stderr: a bar on a terminal, few plain lines elsewhere, and from one process only."""

import io

import pytest

from nissl import progress
from nissl.progress import track


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    monkeypatch.delenv("RANK", raising=False)
    return clock


def test_plain_lines_are_the_first_the_last_and_one_in_ten_seconds(clock, capsys):
    with track(100, "training") as advance:
        for step in range(1, 101):
            clock.now += 0.5
            advance(f"loss {1 / step:.3f}")
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/100", "21/100", "41/100", "61/100", "81/100", "100/100"]
    assert lines[1] == "training: 21/100  2.0/s, 0:00:40 left  loss 0.048"


def test_slow_work_states_seconds_for_each(clock, capsys):
    with track(3, "masks") as advance:
        clock.now += 90
        advance("a.png")
    assert capsys.readouterr().err == "masks: 1/3  90.0 s each, 0:03:00 left  a.png\n"


def test_the_last_line_comes_when_the_work_fails(clock, capsys):
    with pytest.raises(ZeroDivisionError), track(9, "masks") as advance:
        advance("a")
        advance("b")
        1 / 0  # noqa: B018
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["1/9", "2/9"]


def test_no_work_shows_nothing(clock, capsys):
    with track(0, "masks"):
        pass
    assert capsys.readouterr() == ("", "")


def test_resumed_work_counts_on_from_where_it_stopped(clock, capsys):
    with track(10, "training", start=6) as advance:
        clock.now += 2
        advance("")
    assert "7/10  2.0 s each, 0:00:06 left" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "shown"), [("0", True), ("1", False)])
def test_only_the_first_process_shows_progress(rank, shown, clock, capsys, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    with track(1, "training") as advance:
        advance("loss")
    assert bool(capsys.readouterr().err) == shown


def test_a_terminal_gets_a_bar_with_speed_and_message(clock, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with track(4, "training") as advance:
        for _ in range(4):
            clock.now += 0.5
            advance("loss [red]0.5")
    text = terminal.getvalue()
    assert "4/4" in text
    assert "2.0/s, 0:00:00 left" in text
    assert "loss [red]0.5" in text  # not taken for markup
    assert "━" in text
    assert capsys.readouterr().out == ""
