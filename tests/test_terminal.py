"""What is shown while something runs: lines where there is no terminal, a bar where there is one, nothing where nothing is wanted."""

import io
import time

import pytest

from selgrad import terminal


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(terminal, "_SECONDS", 0.05)


def _until(seen, text):
    """Waits for a text, which another thread writes."""
    limit = time.perf_counter() + 20
    while text not in seen() and time.perf_counter() < limit:
        time.sleep(0.01)
    return seen()


def test_without_a_terminal_there_are_lines_also_while_nothing_is_reported(quick):
    file = io.StringIO()
    screen = terminal.console(file=file)
    with terminal.progress(screen, "compiling [a]", 4000, unit="cells") as show:
        assert "0 of 4,000 cells after 0 s: compiling [a]\n" in _until(file.getvalue, "compiling [a]\n")
        show(advance=120, description="idlg")
        assert "120 of 4,000 cells after 0 s: idlg\n" in _until(file.getvalue, "idlg\n")
        show(completed=4000.0)
        _until(file.getvalue, "4,000 of 4,000")
    with terminal.progress(screen, "starting", 1) as show:
        show(completed=0.25, description="loss 0.3")
        assert "25 % after 0 s: loss 0.3\n" in _until(file.getvalue, "25 %")
    with terminal.progress(screen, "searching", None):
        assert "after 0 s: searching\n" in _until(file.getvalue, "searching\n")
    with terminal.status(screen, "planning") as tell:
        tell("planning: lenet")
        assert "planning: lenet (0 s)\n" in _until(file.getvalue, "lenet")
    size = len(file.getvalue())
    time.sleep(0.2)
    assert len(file.getvalue()) == size, "it is over, and so are the lines"


def test_a_terminal_has_a_bar_and_no_lines_and_quiet_has_nothing(quick):
    bar, nothing = io.StringIO(), io.StringIO()
    with terminal.progress(terminal.console(file=bar, force_terminal=True, width=100), "compiling", 10) as show:
        show(advance=5)
        time.sleep(0.3)
    assert "50%" in bar.getvalue() and "after" not in bar.getvalue()
    for screen in (terminal.console(file=nothing, quiet=True), terminal.console(file=nothing, quiet=True, force_terminal=True)):
        with terminal.progress(screen, "compiling", 10) as show, terminal.status(screen, "planning"):
            show(advance=5)
            time.sleep(0.2)
    assert nothing.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (4.2, "4 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")])
def test_durations_are_in_the_unit_that_reads_best(seconds, text):
    assert terminal.duration(seconds) == text
