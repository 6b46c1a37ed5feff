"""Files that are either whole or absent, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rewardgrid.study.errors import AGAIN, UserError

JSON_BYTES = 2**28
"""More than any JSON file of ours has."""


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success fsync it and rename it into place.

    On any error the temporary file is removed and what stood at ``path`` before is untouched.

    Raises:
        UserError: the file system is full or does not allow the write (names the path and the system's reason), or
            something other than a file stands there: renaming would replace a device like /dev/null.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: cannot write: it is there and is no ordinary file; name another one")
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        sync(temporary)
        # mkstemp makes private files; results are for whoever may read the directory.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise UserError(
            f"{path}: cannot write: {error.strerror}; free some space or choose another results "
            "directory, then run the same command again (finished work is kept)"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically, keys sorted, so that equal values give equal bytes. NaN is refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def replace_between(path: Path | str, start: str, end: str, text: str) -> None:
    """Put text between two marks of a page (Markdown comments); they are added at its end if it has none."""
    path = Path(path)
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    if start not in page:
        page = f"{page.rstrip()}\n\n{start}\n{end}\n".lstrip()
    before, _, rest = page.partition(start)
    write_text(path, f"{before}{start}\n\n{text}\n\n{end}{rest.partition(end)[2]}")


class Foreign(OSError):
    """What stands there is not of our making: a directory, a pipe, a device, or more bytes than any file of ours."""


def read_bounded(path: Path | str, most: int) -> bytes:
    """The bytes of a file that others may have written: waits for nobody, and reads no more than ``most`` bytes.

    Raises:
        Foreign: it is no ordinary file, or larger.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Foreign(errno.EINVAL, "no ordinary file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            content = stream.read(most + 1)
    finally:
        os.close(descriptor)
    if len(content) > most:
        raise Foreign(errno.EFBIG, f"more than {most} bytes", str(path))
    return content


def object_in(content: bytes) -> dict[str, Any] | None:
    """The JSON object that bytes hold; None if they hold anything else."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def number(value: object) -> float | None:
    """A finite number; None for anything else."""
    if type(value) not in (int, float):
        return None
    try:
        found = float(value)  # type: ignore[arg-type]
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def read_json(path: Path | str, remedy: str = "delete it and run again") -> Any:
    """Read a JSON file.

    Args:
        remedy: what helps against one that is no JSON.

    Raises:
        UserError: the file is missing or is no JSON.
    """
    path = Path(path)
    try:
        return json.loads(read_bounded(path, JSON_BYTES))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: no valid JSON ({error}); {remedy}") from None


def text_of(path: Path | str, remedy: str = AGAIN) -> str:
    """The text of a file.

    Raises:
        UserError: it cannot be read, or is no UTF-8.
    """
    try:
        return read_bounded(path, JSON_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no UTF-8 text ({error}); {remedy}") from None


def read_object(path: Path | str) -> dict[str, Any]:
    """Read a JSON file of a model: an object, with no number that JSON does not have (NaN, Infinity).

    Raises:
        UserError: it is something else.
    """
    found = read_json(path, "fetch the model again")
    try:
        json.dumps(found, allow_nan=False)
        finite = True
    except ValueError:
        finite = False
    if not isinstance(found, dict) or not finite:
        read = "NaN or Infinity" if not finite else f"{found!r}"[:60]
        raise UserError(f"{path}: read {read}; write a JSON object of finite numbers, or fetch the model again")
    return found


def same(one: Path, other: Path) -> bool:
    """Whether two files are there and hold the same bytes."""
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
