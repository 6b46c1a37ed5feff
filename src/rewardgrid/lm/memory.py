"""How a process on a CPU handles the memory of large arrays."""

from __future__ import annotations

import contextlib
import ctypes


def keep_freed_memory() -> None:
    """Let glibc keep large blocks instead of returning them: a step asks for the same ones again and again.

    Otherwise every array of some megabytes is mapped and zeroed anew, which costs from a tenth of a step to half of
    it. Does nothing where the C library is another.
    """
    mmap_threshold, trim_threshold = -3, -1  # of mallopt(3)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
