"""NVIDIA's Multi-Process Service: kernels of several cells run on one GPU at once, where it exists.

Without it a GPU gives each process its turn, which is slower and otherwise the same; so whatever is wrong here is said
and never stops a study. The daemon is our own, beside any other, and lives as long as the workflow.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"

_started: list[Path] = []


def start() -> str:
    """Start the service for the programs that this one starts; returns what happened, in words."""
    if PIPES in os.environ:
        return f"MPS: using the one of {PIPES}={os.environ[PIPES]}"
    if shutil.which(CONTROL) is None:
        return f"MPS: none ({CONTROL} is not on the PATH); cells take turns on the GPU"
    # Not below the project: the path of a socket has at most 107 characters.
    directory = Path(tempfile.mkdtemp(prefix="rewardgrid-mps-"))
    own = {PIPES: str(directory), LOGS: str(directory)}
    try:
        subprocess.run([CONTROL, "-d"], env=os.environ | own, check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        why = (getattr(error, "stderr", None) or str(error)).strip()
        shutil.rmtree(directory, ignore_errors=True)
        return f"MPS: none ({why}); cells take turns on the GPU"
    os.environ.update(own)
    _started.append(directory)
    return "MPS: started; cells run on the GPU side by side"


def stop() -> None:
    """Stop the service if :func:`start` started it."""
    while _started:
        directory = _started.pop()
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # then it ends with its last client
            subprocess.run([CONTROL], input="quit\n", check=True, capture_output=True, text=True, timeout=30)
        del os.environ[PIPES], os.environ[LOGS]
        shutil.rmtree(directory, ignore_errors=True)
