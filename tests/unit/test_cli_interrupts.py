"""Interrupts that come where Python drops exceptions."""

import signal
from collections.abc import Callable

import pytest

from cli.interrupts import interrupts_kept, note_signals_to_leave


class Interrupted:
    """Gets a SIGINT while it is taken off the heap."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def usual_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def until_interrupted(work: Callable[[], object]) -> list[str]:
    happened: list[str] = []
    try:
        with interrupts_kept():
            work()
            happened.append("all done")
    except KeyboardInterrupt:
        happened.append("interrupted")
    return happened


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_in_a_finalizer_counts_when_the_context_ends() -> None:
    """S50: else a Ctrl-C while the stack starts has no effect now and then."""
    assert until_interrupted(Interrupted) == ["all done", "interrupted"]


def test_any_other_interrupt_counts_at_once() -> None:
    assert until_interrupted(lambda: signal.raise_signal(signal.SIGINT)) == ["interrupted"]


def test_without_one_nothing_happens() -> None:
    with interrupts_kept():
        pass


def test_who_ignores_interrupts_goes_on_doing_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_kept():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_signals_are_noted_for_who_handles_them_next() -> None:
    """S50: a Ctrl-C between the submission of a task and the moment when its follower is loaded."""
    try:
        noted = note_signals_to_leave()
        signal.raise_signal(signal.SIGINT)
        assert noted == [signal.SIGINT]
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)


def test_signals_that_we_were_told_to_ignore_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        noted = note_signals_to_leave()
        signal.raise_signal(signal.SIGHUP)
        assert noted == []
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
