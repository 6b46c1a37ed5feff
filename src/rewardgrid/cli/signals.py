"""Signals for a handler that is not made for them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


def handle_beside(number: signal.Signals) -> None:
    """Let a thread of its own run the handler that a signal has now.

    Snakemake's for SIGTERM takes a lock. A handler interrupts the main thread, which may hold that lock: then it waits
    for itself, for ever. A thread waits until the main thread has gone on.
    """
    handler = signal.getsignal(number)
    if callable(handler):
        found: Callable[..., Any] = handler
        signal.signal(number, lambda *about: threading.Thread(target=found, args=about, daemon=True).start())
