"""One writer for each cell: who holds a lease, who waits, who takes over, and who finds out that he has lost it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rewardgrid.study.errors import UserError
from rewardgrid.train import lease as leases
from rewardgrid.train.lease import Held, Lost, acquire, describe, gone, machine, read_lease
from rewardgrid.train.stopping import Stopped, stoppable

SOON = {"wait": 0.2, "stale": 30.0, "every": 0.02}
STALE = {"wait": 30.0, "stale": 0.3, "every": 0.02}


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "events.log")


def someone_elses(directory: Path, **changes: Any) -> Path:
    """A lease of a process on another machine, which nobody here can look at."""
    holder = {
        "token": "f" * 16,
        "host": "far",
        "pid": 1,
        "machine": "another boot",
        "birth": 1,
        "job": "77",
        "node": "n7",
        "started": time.time(),
        "beat": time.time(),
    }
    path = directory / "lease-1.json"
    path.write_text(json.dumps(holder | changes))
    return path


def hold(directory: Path, ready: Any) -> None:
    acquire(directory, **SOON)
    ready.set()
    time.sleep(60)


@pytest.fixture
def dead(tmp_path: Path) -> Path:
    """A cell whose holder was killed."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(300)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert files(tmp_path) == ["lease-1.json"]
    return tmp_path


def test_a_lease_says_who_holds_it_and_how_far_it_is_and_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURMD_NODENAME", "node2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with acquire(tmp_path, **SOON) as lease:
        lease.report(step=3, max_steps=8, reward=0.5, kl=float("inf"))
        time.sleep(0.2)
        found = read_lease(tmp_path)
        assert found is not None
        assert (found["job"], found["node"], found["cuda_visible_devices"]) == ("4711", "node2", "1")
        assert (found["pid"], found["step"], found["reward"], found["kl"]) == (os.getpid(), 3, 0.5, None)
        assert describe(found).startswith(f"SLURM job 4711 on node2, process {os.getpid()} on ")
        assert describe(found).endswith(", step 3 of 8)")
        assert not gone(found)
    assert read_lease(tmp_path) is None
    assert files(tmp_path) == []


def test_a_shorter_heartbeat_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    with acquire(tmp_path, every=60) as lease:
        lease.report(step=1, reward="x" * 500)
        lease.write()
        lease.content["reward"] = 1.0
        lease.write()
        assert json.loads(lease.path.read_text())["reward"] == 1.0


def test_a_second_copy_leaves_with_one_message_that_says_who_and_what_to_do(tmp_path: Path) -> None:
    with acquire(tmp_path, **SOON), pytest.raises(Held) as raised:
        acquire(tmp_path, **SOON)
    message = str(raised.value)
    assert f"is being trained by process {os.getpid()} on " in message
    assert "last heartbeat" in message
    assert "let it finish and run the same command again" in message
    assert raised.value.status == 75


def test_a_second_copy_goes_on_as_soon_as_the_first_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = acquire(tmp_path, **SOON)
    threading.Timer(0.3, first.release).start()
    with acquire(tmp_path, wait=20, stale=1):
        assert first.over.is_set()
    assert "waits for process" in capsys.readouterr().err


def test_a_signal_ends_the_waiting(tmp_path: Path) -> None:
    with acquire(tmp_path, **SOON), stoppable():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Stopped, match="stopped by SIGTERM while it waited"):
            acquire(tmp_path, wait=20, stale=2)


def test_the_lease_of_a_killed_process_is_taken_over_at_once(dead: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with acquire(dead, wait=0, stale=1000):
        assert time.monotonic() - began < 5
        assert files(dead) == ["lease-2.json"]
    assert "takes over from process" in (text := capsys.readouterr().err)
    assert "whose process is gone" in text


def test_a_process_number_that_is_in_use_again_is_not_the_holder(tmp_path: Path) -> None:
    with acquire(tmp_path, **SOON) as lease:
        found = dict(lease.content)
    assert not gone(found)
    assert gone(found | {"birth": found["birth"] - 1})
    assert not gone(found | {"birth": found["birth"] - 1, "machine": "another boot"})


def test_a_dead_child_that_nobody_has_waited_for_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    while b") Z" not in Path(f"/proc/{child.pid}/stat").read_bytes():
        time.sleep(0.01)
    try:
        assert gone({**leases.identity(), "pid": child.pid, "birth": 5})
    finally:
        child.wait()


def test_a_silent_lease_of_another_machine_is_taken_over_after_a_while(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Its clock is an hour ahead, which nobody must mind.
    someone_elses(tmp_path, beat=time.time() + 3600)
    began = time.monotonic()
    with acquire(tmp_path, **STALE):
        assert time.monotonic() - began > 0.3
    assert "takes over from SLURM job 77 on n7, process 1 on far" in capsys.readouterr().err


def test_a_lease_of_another_machine_that_beats_is_left_alone_whatever_its_clock_says(tmp_path: Path) -> None:
    over = threading.Event()

    def beat() -> None:
        number = 0
        while not over.wait(0.05):
            number += 1
            someone_elses(tmp_path, beat=number)  # seconds after 1970

    threading.Thread(target=beat, daemon=True).start()
    someone_elses(tmp_path)
    try:
        with pytest.raises(Held, match="SLURM job 77 on n7"):
            acquire(tmp_path, wait=1.5, stale=0.5)
    finally:
        over.set()


@pytest.mark.parametrize("content", ["", "{", '{"pid": 1}', "[]"])
def test_a_lease_that_cannot_be_read_is_somebodys_until_it_is_stale(tmp_path: Path, content: str) -> None:
    (tmp_path / "lease-1.json").write_text(content)
    assert read_lease(tmp_path) == {}
    with pytest.raises(Held, match="has not said who it is"):
        acquire(tmp_path, **SOON)
    with acquire(tmp_path, **STALE) as lease:
        assert lease.number == 2


ILL = [
    {"pid": 0},  # os.kill would ask the whole group
    {"pid": -1},
    {"pid": 2**70},
    {"pid": "1"},
    {"birth": "x"},
    {"started": 1e300},
    {"started": None},
    {"beat": [1]},
    {"host": {"a": 1}},
    {"step": "many"},
    {"machine": machine(), "pid": 3.5},
]


@pytest.mark.parametrize("wrong", ILL, ids=str)
def test_a_lease_of_wrong_types_says_nothing(wrong: dict[str, Any], tmp_path: Path) -> None:
    someone_elses(tmp_path, **wrong)
    assert read_lease(tmp_path) == {}
    with acquire(tmp_path, **STALE) as lease:
        assert lease.number == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.write_text("[" * 50_000),
        lambda path: path.write_bytes(b" " * 2**20),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text('{"pid": ' + "9" * 5000 + "}"),
    ],
    ids=["directory", "pipe", "device", "link", "deep", "large", "no text", "huge"],
)
def test_whatever_stands_in_the_place_of_a_lease_is_taken_over_when_it_is_stale(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "lease-1.json")
    assert read_lease(tmp_path) == {}
    with acquire(tmp_path, **STALE) as lease:
        assert lease.number == 2
        assert files(tmp_path) == ["lease-2.json"]
    assert read_lease(tmp_path) is None


@pytest.mark.parametrize(
    "name", ["lease-\u00b2.json", "lease-x.json", "lease-0.json", "lease-.json", "lease-9999999999.json"]
)
def test_a_name_that_is_no_leases_holds_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("")
    assert read_lease(tmp_path) is None
    with acquire(tmp_path, **SOON) as lease:
        assert lease.number == 1


def test_after_the_last_number_there_is_a_message_and_no_endless_search(tmp_path: Path) -> None:
    (tmp_path / "lease-999999999.json").write_text("")
    with pytest.raises(UserError, match=r"lease-999999999\.json: no lease can follow it; remove it"):
        acquire(tmp_path, **STALE)


def test_what_a_lease_says_cannot_steer_a_terminal(tmp_path: Path) -> None:
    someone_elses(tmp_path, host="far\x1b[2J\ud800\u202e", job="7\n7")
    holder = read_lease(tmp_path)
    assert holder is not None
    assert describe(holder).isprintable()
    assert holder["host"] == "far\ufffd[2J\ufffd\ufffd"


def looks_before(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next who asks for the newest lease of a cell learns it, and then something happens before he acts."""
    real = leases._newest

    def newest(directory: Path) -> int:
        monkeypatch.setattr(leases, "_newest", real)
        found = real(directory)
        change()
        return found

    monkeypatch.setattr(leases, "_newest", newest)


def test_who_finds_nobody_and_is_overtaken_leaves_the_other_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[leases.Lease] = []
    looks_before(lambda: others.append(acquire(tmp_path, wait=0, every=60)), monkeypatch)
    with pytest.raises(Held):
        acquire(tmp_path, **SOON)
    with others[0] as other:
        other.check()
        assert files(tmp_path) == ["lease-1.json"]


def test_who_is_overtaken_by_a_higher_number_gives_his_own_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks_before(lambda: someone_elses(tmp_path).rename(tmp_path / "lease-2.json"), monkeypatch)
    with pytest.raises(Held, match="SLURM job 77 on n7"):
        acquire(tmp_path, **SOON)
    assert files(tmp_path) == ["lease-2.json"]


def test_every_heartbeat_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = os.fsync, []

    def fsync(descriptor: int) -> None:
        real(descriptor)
        seen.append(json.loads(os.pread(descriptor, 10_000, 0)).get("step"))

    monkeypatch.setattr(os, "fsync", fsync)
    with acquire(tmp_path, wait=0, every=60) as lease:
        lease.report(step=7)
        lease.write()
    assert seen == [None, 7]


def test_who_was_suspended_and_taken_over_writes_nothing_more(tmp_path: Path) -> None:
    first = acquire(tmp_path, wait=0, every=1000)  # it will not beat
    with acquire(tmp_path, **STALE) as second:
        assert not first.held()
        with pytest.raises(Lost, match=rf"taken over by process {os.getpid()} on .*writes nothing more") as raised:
            first.check()
        assert raised.value.status == 76
        before = second.path.read_bytes()[:30]
        first.write()
        first.release()
        assert second.path.read_bytes()[:30] == before
        second.check()
    with pytest.raises(Lost):
        first.check()


def test_a_number_that_is_in_use_again_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    first = acquire(tmp_path, wait=0, every=1000)
    acquire(tmp_path, **STALE).release()
    with acquire(tmp_path, **SOON) as third:
        assert third.number == first.number
        with pytest.raises(Lost):
            first.check()
        first.release()
        third.check()


def test_who_loses_the_lease_while_training_learns_it_from_the_heartbeat(tmp_path: Path) -> None:
    with acquire(tmp_path, **SOON) as lease:
        (tmp_path / "lease-2.json").write_text("{}")
        time.sleep(0.3)
        assert lease.lost
    assert "lease-2.json" in files(tmp_path)


def test_a_directory_that_is_removed_ends_the_lease(tmp_path: Path) -> None:
    with acquire(tmp_path / "cell", **SOON) as lease:
        lease.path.unlink()
        lease.directory.rmdir()
        with pytest.raises(Lost, match="its directory was removed"):
            lease.check()


def compete(directory: Path, start: Any, end: Any, results: Any) -> None:
    start.wait()
    try:
        with acquire(directory, wait=0.0, stale=1000) as lease:
            lease.check()
            results.put("held")
            end.wait()  # nobody comes when it is free again, however late he is
            lease.check()
    except Held:
        results.put("left")
        end.wait()


@pytest.mark.parametrize("state", ["fresh", "stale"])
def test_of_many_who_want_a_cell_one_gets_it(state: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue("dead") if state == "stale" else tmp_path
    # Forked, they start at once; importing all of this anew, each of them took a minute on a busy machine.
    context = multiprocessing.get_context("fork")
    start, end, results = context.Barrier(4), context.Barrier(4), context.Queue()
    processes = [context.Process(target=compete, args=(directory, start, end, results)) for _ in range(4)]
    for process in processes:
        process.start()
    ends = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(ends) == ["held", "left", "left", "left"]
    assert files(directory) == []
