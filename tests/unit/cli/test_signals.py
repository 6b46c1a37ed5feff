"""A signal whose handler needs what the interrupted thread holds."""

from __future__ import annotations

import os
import signal
import threading
import time

from rewardgrid.cli.signals import handle_beside


def test_a_handler_gets_a_lock_that_the_interrupted_thread_holds() -> None:
    lock, done = threading.Lock(), threading.Event()
    got: list[bool] = []

    def handler(*_: object) -> None:
        got.append(lock.acquire(timeout=10))
        done.set()

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        handle_beside(signal.SIGUSR2)
        with lock:
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(0.2)
        assert done.wait(20)
        assert got == [True]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_signal_without_a_handler_stays_without_one() -> None:
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        handle_beside(signal.SIGUSR2)
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR2, before)
