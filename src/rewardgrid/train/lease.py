"""One writer for each cell: a lease beside its checkpoints, whose content is the run's heartbeat.

A second copy of a running cell is nothing unusual: Snakemake was killed and started again while the jobs of the first
one run on; SLURM lost a node's daemon, gave the job to another node, and the old process lives. Cluster file systems
need not have working locks, so a lease is made of ordinary files:

``lease-<n>.json``
    is created with O_EXCL, which every shared file system does atomically. The highest ``n`` holds the cell.
    To take a stale lease over is to create ``n + 1``: of two who try, one succeeds, and whoever held ``n`` finds out
    before he writes again (:meth:`Lease.check`), however long he was suspended.

The holder writes its heartbeat through the descriptor that it created the file with, so it can never write into the
lease of a successor. A thread does this, not the training loop: a step may take longer than any limit worth waiting
for. What the loop last did is in the heartbeat too, so a loop that hangs is seen (``python -m rewardgrid status``).

Clocks of two hosts are never compared. A waiter watches the bytes: a lease is stale when they have not changed for
:data:`STALE_SECONDS` of the waiter's own clock, or at once if its process was on this machine and is gone.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewardgrid.study.errors import UserError
from rewardgrid.study.files import Foreign, object_in, read_bounded
from rewardgrid.study.text import printable
from rewardgrid.train.events import tell
from rewardgrid.train.stopping import Stopped, asked_to_stop

BEAT_SECONDS = 2.0

STALE_SECONDS = 60.0
"""Thirty beats: longer than a network file system keeps old attributes, and than a short outage of its server."""

WAIT_SECONDS = 600.0
"""How long a second copy waits for a live one before it leaves: minutes of a reserved node, not hours."""


LEASE_BYTES = 2**16
LAST = 999_999_999
NAME = re.compile(r"lease-([1-9][0-9]{0,8})\.json")

_Time = Annotated[float, Field(ge=0, lt=2**36)]


class Heartbeat(BaseModel):
    """What a lease must hold to be believed; it may hold more (see :meth:`Lease.report`)."""

    model_config = ConfigDict(strict=True)

    token: str
    host: str
    pid: Annotated[int, Field(ge=1, lt=2**31)]
    machine: str | None
    birth: Annotated[int, Field(ge=-1, lt=2**63)] | None
    started: _Time
    beat: _Time
    job: str | None = None
    node: str | None = None
    step: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    max_steps: Annotated[int, Field(ge=0, lt=2**31)] | None = None


UNKNOWN = -1
"""The birth of a process that is there and cannot be looked at."""


class Held(UserError):
    """Another process trains the cell, and goes on doing so."""

    status = 75


class Lost(UserError):
    """Another process has taken the cell over, because this one had fallen silent."""

    status = 76


class Lease:
    """The right to write below one cell's directory; get one from :func:`acquire`."""

    def __init__(self, directory: Path, number: int, descriptor: int, every: float = BEAT_SECONDS) -> None:
        self.directory, self.number, self.descriptor, self.every = directory, number, descriptor, every
        self.token = secrets.token_hex(8)
        self.content: dict[str, Any] = {"token": self.token, **identity(), "started": time.time()}
        self.over = threading.Event()
        self.lost = False
        self.write()
        self.thread = threading.Thread(target=self._beat, name=f"lease of {directory.name}", daemon=True)

    @property
    def path(self) -> Path:
        """The file of this lease."""
        return _path(self.directory, self.number)

    def report(self, **progress: Any) -> None:
        """What the next heartbeat says of the run: step, reward, kl and so on."""
        self.content |= {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in progress.items()
        } | {"stepped": time.time()}

    def held(self) -> bool:
        """Whether this is still the newest lease of the cell."""
        try:
            return _newest(self.directory) == self.number and _read(self.path).startswith(self._prefix())
        except (FileNotFoundError, Foreign):
            return False

    def check(self) -> None:
        """To be called before anything is written.

        Raises:
            Lost: another process has taken the cell over.
        """
        self.lost = self.lost or not self.held()
        if self.lost:
            other = read_lease(self.directory)
            raise Lost(
                f"{self.directory.name}: the lease of this process is gone: "
                + ("its directory was removed" if other is None else f"taken over by {describe(other)}")
                + "; it stops and writes nothing more"
            )

    def release(self) -> None:
        """Give the cell up; harmless if it is lost or given up already."""
        if self.over.is_set():
            return
        self.over.set()
        if self.thread.is_alive():
            self.thread.join()
        with contextlib.suppress(OSError):
            if self.held():
                self.path.unlink()
        os.close(self.descriptor)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self.release()

    def _prefix(self) -> bytes:
        return f'{{"token": "{self.token}"'.encode()

    def _beat(self) -> None:
        while not self.over.wait(self.every):
            # A beat that fails is no reason to stop: if too many do, another takes over, and `lost` says so.
            with contextlib.suppress(OSError):
                self.lost = self.lost or not self.held()
                self.write()

    def write(self) -> None:
        """One heartbeat, in place: a reader may see half of it and reads again; a full disk has room for it."""
        text = json.dumps(self.content | {"beat": time.time()}, ensure_ascii=False).encode() + b"\n"
        os.pwrite(self.descriptor, text, 0)
        os.ftruncate(self.descriptor, len(text))
        os.fsync(self.descriptor)


def acquire(
    directory: Path,
    wait: float = WAIT_SECONDS,
    stale: float = STALE_SECONDS,
    every: float = BEAT_SECONDS,
) -> Lease:
    """Become the writer of a cell.

    Waits for a live holder, at most ``wait`` seconds; takes a stale lease over.

    Raises:
        Held: the holder is alive and still at it.
        Stopped: a signal came while waiting.
        OSError: the lease cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    start = changed = time.monotonic()
    seen: tuple[int, bytes] | None = None
    told = False
    while True:
        newest = _newest(directory)
        if newest:
            try:
                now = newest, _read(_path(directory, newest))
            except FileNotFoundError:
                if not _path(directory, newest).is_symlink():
                    continue  # released just now
                now = newest, b""
            except Foreign:
                now = newest, b""
            if now != seen:
                seen, changed = now, time.monotonic()
            holder = _parsed(now[1])
            silent = time.monotonic() - changed
            if not gone(holder) and silent < stale:
                waited = time.monotonic() - start
                if waited >= wait:
                    raise Held(
                        f"{directory.name}: is being trained by {describe(holder)}, and still was after {waited:.0f} s "
                        "of waiting. Nothing is wrong: let it finish and run the same command again, or end it first"
                    )
                if not told:
                    tell(directory, f"{directory.name}  waits for {describe(holder)}; at most {wait:.0f} s")
                    told = True
                if asked_to_stop():
                    raise Stopped(directory.name, "while it waited for another process that trains it")
                time.sleep(min(1.0, stale / 4, wait / 4 + 0.01))
                continue
            why = "whose process is gone" if gone(holder) else f"silent for {silent:.0f} s"
            tell(directory, f"{directory.name}  takes over from {describe(holder)}, {why}")
        number = newest + 1
        if number > LAST:
            raise UserError(f"{_path(directory, newest)}: no lease can follow it; remove it if nothing trains the cell")
        try:
            descriptor = os.open(_path(directory, number), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except FileExistsError:
            continue
        try:
            lease = Lease(directory, number, descriptor, every)
        except OSError:
            os.close(descriptor)
            _path(directory, number).unlink(missing_ok=True)
            raise
        if not lease.held():
            # Someone who had seen a higher number before all were released has used it in the meantime.
            lease.release()
            lease.path.unlink(missing_ok=True)
            continue
        for older in _numbers(directory):
            if older < number:
                _remove(_path(directory, older))
        lease.thread.start()
        return lease


def read_lease(directory: Path) -> dict[str, Any] | None:
    """What the holder of a cell last said of itself; None if nobody holds it, empty if it cannot be read now."""
    for _ in range(3):  # it may be being written
        newest = _newest(directory)
        if not newest:
            return None
        with contextlib.suppress(OSError):
            found = _parsed(_read(_path(directory, newest)))
            if found:
                return found
        time.sleep(0.01)
    return {}


def lease_file(directory: Path) -> Path | None:
    """The file of a cell's holder, if there is one."""
    newest = _newest(directory)
    return _path(directory, newest) if newest else None


def gone(holder: Mapping[str, Any]) -> bool:
    """Whether the holder is known to be dead: its process was on this machine and is no more."""
    if not holder or holder.get("machine") is None or holder["machine"] != machine():
        return False
    return _birth(holder["pid"]) not in (holder["birth"], UNKNOWN)


def describe(holder: Mapping[str, Any]) -> str:
    """Who holds a lease, in words."""
    if not holder:
        return "a process that has not said who it is"
    job = f"SLURM job {holder['job']} on {holder['node']}, " if holder.get("job") else ""
    since = time.strftime("%H:%M:%S", time.localtime(holder["started"]))
    beat = time.strftime("%H:%M:%S", time.localtime(holder["beat"]))
    step = f", step {holder['step']} of {holder.get('max_steps')}" if "step" in holder else ""
    return f"{job}process {holder['pid']} on {holder['host']} (since {since}, last heartbeat {beat}{step})"


def identity() -> dict[str, Any]:
    """This process, for whoever meets its lease."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "machine": machine(),
        "birth": _birth(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def machine() -> str | None:
    """Names the running system and its set of process numbers, which a host's name alone does not; None off Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _birth(pid: int) -> int | None:
    """When a process of this machine was started, in ticks since boot; None if it is dead. Numbers are used again."""
    try:
        with contextlib.suppress(PermissionError):  # it lives, and is another user's
            os.kill(pid, 0)
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except ProcessLookupError:
        return None
    except OSError:
        return UNKNOWN
    state, birth = fields[0], int(fields[19])
    return None if state in "ZX" else birth


def _path(directory: Path, number: int) -> Path:
    return directory / f"lease-{number}.json"


def _numbers(directory: Path) -> list[int]:
    names = (NAME.fullmatch(path.name) for path in directory.glob("lease-*.json"))
    return [int(name[1]) for name in names if name]


def _newest(directory: Path) -> int:
    """The highest number in use; 0 if there is none."""
    return max(_numbers(directory), default=0)


def _read(path: Path) -> bytes:
    # Opening makes a network file system ask its server for what is there now.
    return read_bounded(path, LEASE_BYTES)


def _parsed(content: bytes) -> dict[str, Any]:
    found = object_in(content) or {}
    try:
        Heartbeat.model_validate(found)
    except ValidationError:
        return {}
    return {key: printable(value) if isinstance(value, str) else value for key, value in found.items()}


def _remove(path: Path) -> None:
    """Remove an old lease, and whatever else has the name of one."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
