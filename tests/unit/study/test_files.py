"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tests.durability import flushed_before_renamed

from rewardgrid.study.errors import UserError
from rewardgrid.study.files import atomic_write, read_json, sha256, write_json, write_text


def test_what_stood_there_stays_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": "é"})
    with pytest.raises(UnicodeEncodeError), atomic_write(path) as temporary:
        temporary.write_text("half of it \ud800", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with pytest.raises(UserError, match=r"deep/a\.txt: cannot write: No space left"), atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(path.parent.iterdir()) == []


def test_a_file_is_flushed_before_it_has_its_name_and_its_name_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with flushed_before_renamed(monkeypatch) as names:
        write_text(tmp_path / "a", "first")
        write_text(tmp_path / "a", "second")
    assert names == ["a", "a"]


def test_whoever_reads_a_file_that_is_written_anew_reads_all_of_the_old_one(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "another name of it"
    write_text(path, "old")
    os.link(path, other)
    with path.open() as reader:
        with atomic_write(path) as temporary:
            temporary.write_text("new and longer")
            assert path.read_text() == "old"
        assert reader.read() == other.read_text() == "old"
    assert path.read_text() == "new and longer"


def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match="no ordinary file"):
            write_text(place, "x")
    assert (tmp_path / "pipe").is_fifo()


def test_not_a_number_is_refused_before_anything_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, float("nan"))
    assert read_json(path) == 1


def test_files_can_be_read_by_whoever_may_read_the_directory(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x")
    ordinary = tmp_path / "b"
    ordinary.touch()
    assert (tmp_path / "a").stat().st_mode == ordinary.stat().st_mode


def test_json_that_is_missing_or_torn_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json: no such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"a\.json: no valid JSON"):
        read_json(tmp_path / "a.json")


def test_sha256_is_of_the_bytes(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "abc")
    assert sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")
