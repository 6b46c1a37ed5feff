"""Being asked to stop: a signal is remembered, and the run stops where it can go on from.

SLURM sends SIGTERM at a time limit, a cancellation, a requeue or a preemption, and SIGUSR1 some time before the limit
if it is asked to (see ``profiles/slurm``); Ctrl-C sends SIGINT. The engines look after each step.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rewardgrid.study.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_received: signal.Signals | None = None


class Stopped(UserError):
    """A run that a signal ended between two steps, with all that it had done in its checkpoint."""

    def __init__(self, what: str, after: str) -> None:
        received = _received or signal.SIGTERM
        super().__init__(f"{what}: stopped by {received.name} {after}; the same command continues")
        self.status = 128 + received


def asked_to_stop() -> bool:
    """Whether a signal has come since the handlers were put in place."""
    return _received is not None


@contextmanager
def stoppable() -> Iterator[None]:
    """Remember the signals that ask this process to stop instead of dying of them.

    SLURM's signals may come twice, from the step's manager and passed on by srun, so more of them change nothing; a
    second Ctrl-C interrupts as usual.
    """
    global _received
    _received = None

    def remember(number: int, frame: FrameType | None) -> None:
        global _received
        if _received == number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        _received = _received or signal.Signals(number)

    before = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received = None
