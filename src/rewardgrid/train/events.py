"""What has happened to a cell besides training: told where it happens, and kept over all attempts.

Snakemake removes a job's log when it starts the job again. So whatever the next attempt should not make forgotten goes
into ``events.log`` in the cell's directory too: stops, resumes, waiting, takeovers, damaged files. A cell that
nothing happened to has none.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from rewardgrid.study.text import printable

EVENTS = "events.log"


def tell(directory: Path, text: str) -> None:
    """Say it in the job's log, and note it."""
    print(printable(text), file=sys.stderr, flush=True)
    note(directory, text)


def note(directory: Path, text: str) -> None:
    """Write it down in the cell's directory, with the time and the process."""
    job, node = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURMD_NODENAME")
    who = f"job {job} on {node}" if job else f"process {os.getpid()}"
    # On a full disk the message in the log has to do.
    with contextlib.suppress(OSError), (directory / EVENTS).open("a", encoding="utf-8") as stream:
        stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {printable(f'{who}  {text}')}\n")
