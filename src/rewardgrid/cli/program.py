"""How a program starts and ends."""

from __future__ import annotations

import atexit
import gc
import io
import sys
from collections.abc import Callable
from typing import NoReturn


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run a program and leave with its exit status.

    At its end Python searches every loaded module for garbage, which with PyTorch's takes half a second; freezing them
    leaves that out. Files are closed and buffers flushed as ever. What a terminal's encoding has no letter for (blocks
    of a curve, say) is a question mark there.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    atexit.register(gc.freeze)
    sys.exit(main())
