"""Interrupts that come where Python drops exceptions."""

import signal
from collections.abc import Callable

import pytest

from cli.interrupts import interrupts_kept


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
