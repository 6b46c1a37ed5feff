"""Files that are either whole or absent, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rewardgrid.study.errors import UserError


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


def link(source: Path | str, target: Path | str) -> None:
    """Make the same file again, without a copy where the file system has hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


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


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is no JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: no valid JSON ({error}); delete it and run again") from None


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
