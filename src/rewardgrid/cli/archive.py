"""``python -m rewardgrid archive``: finished cells in a few small files, and back, so that a report needs no training.

An archive is a directory. Every packing adds tables ``ID-*.parquet`` and, last, their manifest ``ID.json``; nothing
that lies there is ever changed, so two archives are merged by copying the files of one beside those of the other. ID is
made of what is packed. A *member* is a cell, or the evaluation of a base. There are no weights in an archive, and of
rollouts (and samples by mode) only some of the recorded steps: the first, those nearest to parts of the run (many of
them early, where runs turn), and those at which it began to game.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rewardgrid.cli.run import say
from rewardgrid.study.cell import METRICS_VERSION, Cell, read_cell
from rewardgrid.study.contracts import (
    COURSE,
    HISTORY,
    MODE_SAMPLES,
    ROLLOUTS,
    ROUTING,
    SAMPLES,
    read_table,
    with_said,
    write_table,
)
from rewardgrid.study.errors import AGAIN, UserError
from rewardgrid.study.files import (
    JSON_BYTES,
    atomic_write,
    object_in,
    read_bounded,
    read_json,
    sha256,
    sync,
    text_of,
    write_json,
    write_text,
)
from rewardgrid.study.finished import Metrics, Status, check_steps, checked
from rewardgrid.study.layout import Layout, done, measured
from rewardgrid.study.steps import recorded_from
from rewardgrid.study.study import Study
from rewardgrid.study.text import count
from rewardgrid.train.lease import NAME as LEASE
from rewardgrid.train.lease import describe, gone, read_lease

FORMAT = "rewardgrid archive 1"
SPEC, STATUS, METRICS = "spec.json", "train/status.json", "evaluation/metrics.json"
TABLES: dict[str, pa.Schema] = {
    "train/history.parquet": HISTORY,
    "train/rollouts.parquet": ROLLOUTS,
    "train/mode_samples.parquet": MODE_SAMPLES,
    "evaluation/samples.parquet": SAMPLES,
    "evaluation/routing.parquet": ROUTING,
    "evaluation/course.parquet": COURSE,
}
"""Every table of a member."""
THINNED = ("train/rollouts.parquet", "train/mode_samples.parquet")
PERCENT = (2.5, 5, 7.5, 10, 12.5, 15, 17.5, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100)
"""Of a run's steps: the recorded ones nearest to these are kept of those tables, the same ones of every cell."""
NEEDED = (SPEC, STATUS, METRICS, "train/history.parquet", "evaluation/samples.parquet")
"""What a cell must have to be packed."""
HERE = ("host", "cuda_visible_devices")
"""Of status.json, what says where a cell was trained and nothing about it: left out."""
ABANDONED = 3600.0
"""Seconds after which the place of a packing or restoring, which takes seconds, belongs to one that was cut off."""
LONG_AGO = 946684800.0
"""The time of restored files that others were made of: the year 2000."""
FILES = pa.schema([("member", pa.string()), ("path", pa.string()), ("text", pa.string())])
"""Every file of every member: the text of those that are no table, and of a table the names of its further columns."""

Content = dict[str, "str | pa.Table"]
"""Files of a member by their path below its directory."""


@dataclass(frozen=True)
class Member:
    """A cell, or a base's evaluation, as an archive has it."""

    name: str
    source: str
    digest: str
    content: Content

    @property
    def is_cell(self) -> bool:
        """Whether it is a cell; else a base."""
        return SPEC in self.content


# --- packing -------------------------------------------------------------------------------------------


def pack(study: Study, cells: Sequence[Cell], directory: Path) -> None:
    """Add the finished ones of these cells, and their bases' evaluations, to an archive.

    Raises:
        UserError: the archive is damaged, or has one of them with another content; nothing is written then.
    """
    layout = study.layout
    known = read_archives([directory]) if directory.exists() else {}
    finished = [cell for cell in cells if done(layout, cell) == "done" and layout.spec(cell.name).exists()]
    new: dict[str, Content] = {}
    for base_id in sorted({cell.base_id for cell in finished}):
        if not measured(layout.base_metrics(base_id)):
            raise UserError(f"{layout.base_metrics(base_id)}: not there or outdated; run `snakemake bases`, then again")
        new[base_id] = collect(layout.base(base_id))
    for cell in sorted(finished, key=lambda cell: cell.name):
        new[cell.name] = collect(layout.cell(cell.name))
    digests = {name: digest(content) for name, content in new.items()}
    for name, content in new.items():
        _check(str((layout.cell if SPEC in content else layout.base)(name)), name, content, AGAIN)
    for name in sorted(set(new) & set(known)):
        if not _agrees(new[name], digests[name], known[name]):
            raise UserError(
                f"{known[name].source}: {name}: not the same as in {layout.root}; "
                "pack into another directory (--to), or delete the one that is wrong"
            )
    new = {name: content for name, content in new.items() if name not in known}
    packed = sum(SPEC in content for content in new.values())
    if new:
        _write(directory, new, {name: digests[name] for name in new})
    say(
        f"{directory}: {count(packed, 'cell')} packed, {len(finished) - packed} there already, "
        f"{len(cells) - len(finished)} not finished"
    )


def collect(directory: Path) -> Content:
    """What an archive keeps of a cell's or a base's directory.

    Raises:
        UserError: a file of a finished cell is missing, or is none.
    """
    content: Content = {path: text_of(directory / path) for path in (SPEC, METRICS) if (directory / path).exists()}
    for path in NEEDED if SPEC in content else ():
        if not (directory / path).exists():
            raise UserError(
                f"{directory / path}: no such file, though its cell is measured; delete {directory / METRICS} and run "
                "again, and what is missing is made anew"
            )
    if (directory / STATUS).exists():
        status = checked(Status, read_json(directory / STATUS, AGAIN), str(directory / STATUS), directory.name)
        status |= dict.fromkeys(HERE)
        status.pop("tables", None)  # hashes of files that come back with other bytes, or fewer rows
        content[STATUS] = json.dumps(status, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    for path, schema in TABLES.items():
        if (directory / path).exists():
            frame = read_table(directory / path, schema)
            if path in THINNED:
                frame = frame[frame["step"].isin(kept_steps(sorted(set(frame["step"])), _onsets(content)))]
            content[path] = pa.Table.from_pandas(frame, schema=with_said(schema, frame.columns), preserve_index=False)
    return content


def kept_steps(recorded: Sequence[int], onsets: Sequence[int]) -> set[int]:
    """Of the recorded steps, those an archive keeps; of what it kept, all, so that it can be packed again.

    They are the first, the nearest to each part of the last (the earlier of two), and the first from each onset on.
    """
    if not recorded:
        return set()
    parts = {min(recorded, key=lambda step: abs(100 * step - part * recorded[-1])) for part in PERCENT}
    return {recorded[0]} | parts | {recorded_from(recorded, onset) for onset in onsets}


def _onsets(content: Content) -> list[int]:
    """The steps at which a cell began to hack and to degenerate, where it did."""
    try:
        onset = json.loads(str(content[METRICS])).get("onset", {})
        return [step for step in map(onset.get, ("hack_onset", "degeneration_onset")) if isinstance(step, int)]
    except (KeyError, ValueError, AttributeError):
        return []  # no cell's figures: _check says so


def digest(content: Content) -> str:
    """SHA-256 of what the files say, whatever wrote them."""
    found = hashlib.sha256()
    for path, part in sorted(content.items()):
        said = part if isinstance(part, str) else part.to_pydict()
        found.update(json.dumps([path, said], separators=(",", ":")).encode())
    return found.hexdigest()


def _agrees(content: Content, said: str, member: Member) -> bool:
    """Whether files of this digest say what a member says; they may have more of the recorded steps."""
    if said == member.digest:
        return True
    fewer = dict(content)
    for path in THINNED:
        mine, kept = content.get(path), member.content.get(path)
        if isinstance(mine, pa.Table) and isinstance(kept, pa.Table):
            fewer[path] = mine.filter(pc.is_in(mine["step"], kept["step"].combine_chunks()))
    return digest(fewer) == member.digest


def _identity(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:12]


def _write(directory: Path, members: Mapping[str, Content], digests: Mapping[str, str]) -> None:
    """Write the files of a packing at a place of their own and then move them here, their manifest last."""
    identity = _identity(digests)
    rows = [
        {"member": name, "path": path, "text": part if isinstance(part, str) else _said(part, path)}
        for name, content in members.items()
        for path, part in sorted(content.items())
    ]
    tables = {"files": pa.Table.from_pylist(rows, schema=FILES)}
    for path in TABLES:
        parts = [
            _named(name, part) for name, content in members.items() if isinstance(part := content.get(path), pa.Table)
        ]
        if parts:
            tables[Path(path).stem] = pa.concat_tables(parts, promote_options="default")
    with _place(directory, ".packing-") as place:
        written = {}
        for stem, table in tables.items():
            with atomic_write(place / f"{identity}-{stem}.parquet") as temporary:
                _write_small(table, temporary)
            written[f"{identity}-{stem}.parquet"] = sha256(place / f"{identity}-{stem}.parquet")
        write_json(place / f"{identity}.json", {"format": FORMAT, "members": dict(digests), "files": written})
        for name in (*written, f"{identity}.json"):
            (place / name).replace(directory / name)
        sync(directory)


@contextmanager
def _place(directory: Path, prefix: str) -> Iterator[Path]:
    """A directory to write in, below this one, which is removed again; and those that others have left long ago.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob(f"{prefix}*"):
            if left.is_dir() and time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=directory) as name:
            yield Path(name)
    except OSError as error:
        raise UserError(
            f"{directory}: cannot write here: {error.strerror}; mend that and give the command again"
        ) from None


def _said(table: pa.Table, path: str) -> str | None:
    """The columns that say what code of one's own says, as text; None without any."""
    said = [name for name in table.schema.names if name not in TABLES[path].names]
    return json.dumps(said) if said else None


def _named(name: str, table: pa.Table) -> pa.Table:
    return table.add_column(0, "member", pa.array([name] * len(table), pa.string()))


def _write_small(table: pa.Table, path: Path) -> None:
    """Numbers are split into bytes, of which many are alike; dictionaries are for text."""
    numbers = {}
    for field in table.schema:
        kind = field.type.value_type if pa.types.is_list(field.type) else field.type
        if pa.types.is_floating(kind) or pa.types.is_integer(kind):
            numbers[field.name + (".list.element" if pa.types.is_list(field.type) else "")] = "BYTE_STREAM_SPLIT"
    text = [field.name for field in table.schema if pa.types.is_string(field.type)]
    pq.write_table(table, path, compression="zstd", compression_level=12, use_dictionary=text, column_encoding=numbers)


# --- reading -------------------------------------------------------------------------------------------


def read_archives(directories: Sequence[Path]) -> dict[str, Member]:
    """Every member of some archives by its name, after checking all of them, bases first.

    Raises:
        UserError: a file is missing, damaged or no part of an archive, or a member has two contents.
    """
    members: dict[str, Member] = {}
    for directory in directories:
        manifests = sorted(directory.glob("*.json"))
        if (not manifests and any(directory.glob("*.parquet"))) or not directory.is_dir():
            raise UserError(
                f"{directory}: no archive: it has no manifest (*.json); name a directory that `archive` made (of one "
                "that was cut off, or whose manifest is lost: delete its files, or bring the manifest back)"
            )
        named: set[str] = set()
        for manifest in manifests:
            for member in _read(manifest, named):
                before = members.setdefault(member.name, member)
                if before.digest != member.digest:
                    raise UserError(
                        f"{member.source}: {member.name}: not the same as in {before.source}; "
                        "restore from the directory of one of them (--from), or delete the files of the other packing, "
                        "whose other cells go with it"
                    )
        for path in sorted(directory.glob("*.parquet")):
            if path.name not in named:
                raise UserError(
                    f"{path}: no manifest names it: it is of a packing that was cut off, or its manifest is lost; "
                    "delete it, or bring the manifest back"
                )
    return dict(sorted(members.items(), key=lambda item: (item[1].is_cell, item[0])))


def _read(manifest: Path, named: set[str]) -> Iterator[Member]:
    damaged = UserError(
        f"{manifest}: damaged, or no manifest of this version ({FORMAT}); bring the archive's files again"
    )
    try:
        found = json.loads(read_bounded(manifest, JSON_BYTES))
        files, digests = found["files"], found["members"]
        texts = all(isinstance(text, str) for pairs in (files, digests) for pair in pairs.items() for text in pair)
        if found["format"] != FORMAT or _identity(digests) != manifest.stem or not texts:
            raise damaged
        stems = {name.removeprefix(f"{manifest.stem}-").removesuffix(".parquet"): name for name in files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged from None
    if not stems.keys() <= {"files", *(Path(path).stem for path in TABLES)} or "files" not in stems:
        raise damaged
    tables = {}
    for stem, name in stems.items():
        path = manifest.parent / name
        if not path.is_file():
            raise UserError(f"{path}: no such file, but {manifest.name} names it; bring it back")
        if sha256(path) != files[name]:
            raise UserError(f"{path}: damaged: its SHA-256 is not the one in {manifest.name}; bring it again")
        try:
            tables[stem] = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: cannot read ({error}); bring it again") from None
    named |= set(files)
    contents: dict[str, Content] = {}
    try:
        for row in tables["files"].cast(FILES).to_pylist():
            part = row["text"]
            if row["path"] in TABLES:
                schema = with_said(TABLES[row["path"]], json.loads(part or "[]"))
                table = tables[Path(row["path"]).stem]
                own = table.filter(pc.equal(table["member"], row["member"])).drop_columns("member")
                part = own.select(schema.names).cast(schema)
            elif row["path"] not in (SPEC, STATUS, METRICS) or not isinstance(part, str):
                raise damaged
            contents.setdefault(row["member"], {})[row["path"]] = part
    except (pa.ArrowException, KeyError, ValueError, TypeError, RecursionError):
        raise damaged from None
    if contents.keys() != digests.keys():
        raise damaged
    for name, content in contents.items():
        source = f"{manifest}: {name}"
        if digest(content) != digests[name]:
            raise UserError(f"{source}: its files are not those that were packed; bring the archive's files again")
        _check(source, name, content, "delete it, or bring it again")
        yield Member(name, str(manifest), digests[name], content)


def _check(source: str, name: str, content: Content, remedy: str) -> None:
    """Refuse a member that is not what its name says."""
    metrics = _object(content.get(METRICS))
    own = metrics.get("cell")
    if SPEC in content and own == name:
        own = read_cell(str(content[SPEC]), f"{source}/{SPEC}").name
    elif SPEC not in content and not re.fullmatch(r"\w[\w.-]*-[0-9a-f]{10}", name):
        own = None
    if own != name or not all(path in content for path in (NEEDED if SPEC in content else (METRICS,))):
        raise UserError(f"{source}: belongs to another cell or lacks files; {remedy}")
    if metrics.get("version") != METRICS_VERSION:
        raise UserError(
            f"{source}: version: read {metrics.get('version')!r}, but this rewardgrid measures version "
            f"{METRICS_VERSION}; use the rewardgrid that made the archive, or an archive of this version"
        )
    checked(Metrics, metrics, f"{source}/{METRICS}", name, remedy)
    if SPEC in content:
        status = checked(Status, _object(content[STATUS]), f"{source}/{STATUS}", name, remedy)
        if status["state"] != metrics["state"]:
            raise UserError(
                f"{source}/{METRICS}: state: read {metrics['state']!r}, but {STATUS} has {status['state']!r}; {remedy}"
            )
        if status["state"] != "diverged":
            history = "train/history.parquet"
            check_steps(len(content[history]), f"{source}/{history}", status, f"{source}/{STATUS}", remedy)


def _object(text: object) -> dict[str, Any]:
    """The JSON object that a text holds; empty if it holds none."""
    return object_in(str(text).encode()) or {}


# --- restoring -----------------------------------------------------------------------------------------


def restore(layout: Layout, directories: Sequence[Path], wanted: Collection[str] = ()) -> None:
    """Put every member of some archives where Snakemake finds it finished.

    What lies there already and is the same stays as it is. All is checked before the first file is written.

    Args:
        wanted: the cells of the configuration; it is said how many of the archives' are others.

    Raises:
        UserError: as ``read_archives``; something else lies there, or another process trains the cell; or it cannot
            be written there.
    """
    members = read_archives(directories)
    if not members:
        raise UserError(f"{', '.join(map(str, directories))}: nothing in it; name a directory that `archive` filled")
    missing = [member for member in members.values() if not _is_there(layout, member)]
    for member in missing:
        _put(layout, member)
    cells = [member.name for member in members.values() if member.is_cell]
    put = sum(member.is_cell for member in missing)
    others = len(set(cells) - set(wanted)) if wanted else 0
    elsewhere = f"; {others} of them {'is' if others == 1 else 'are'} in no experiment of this configuration"
    say(
        f"{layout.root}: {count(put, 'cell')} restored (without weights), {len(cells) - put} there already"
        + (elsewhere if others else "")
    )


def _is_there(layout: Layout, member: Member) -> bool:
    """Whether the member lies there finished; refuses whatever is not the same."""
    directory = (layout.cell if member.is_cell else layout.base)(member.name)
    if measured(directory / METRICS):
        content = collect(directory)
        if not _agrees(content, digest(content), member):
            raise UserError(
                f"{directory}: not the same as in {member.source}; to have the archive's, move "
                f"{directory if member.is_cell else directory / 'evaluation'} away and restore again"
            )
        return True
    if not member.is_cell:
        return False
    holder = read_lease(directory)
    if holder is not None and not gone(holder):
        raise UserError(f"{directory}: trained now by {describe(holder)}; restore again when it has finished")
    state = done(layout, read_cell(str(member.content[SPEC]), member.source))
    if state == "trained":
        why = "its measurements are torn or of another version" if (directory / METRICS).exists() else "not measured"
        raise UserError(
            f"{directory}: trained here, {why}: {directory / METRICS}; `snakemake {directory / METRICS}` measures it, "
            "or move the directory away and restore again"
        )
    if state == "started":
        raise UserError(
            f"{directory}: begun here and not finished; `snakemake {directory / METRICS}` finishes it, or move the "
            "directory away and restore again"
        )
    strange = _strange(directory)
    if strange is not None:
        raise UserError(f"{strange}: not of the archive and of no interrupted job; move it away and restore again")
    return False


def _strange(directory: Path) -> Path | None:
    """What lies at a cell's place and cannot be replaced by the archive's: anything but the rest of a job cut off."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        return directory
    files = (path for path in sorted(directory.rglob("*")) if not path.is_dir() or path.is_symlink())
    return next((path for path in files if not _is_rest(path.relative_to(directory))), None)


def _is_rest(path: Path) -> bool:
    first = path.parts[0]
    return first in ("evaluation", SPEC, "events.log") or LEASE.fullmatch(first) is not None


def _put(layout: Layout, member: Member) -> None:
    """Write a member beside its place and then move it there: a restoring that is cut off leaves nothing by halves."""
    with _place(layout.root, ".restoring-") as place:
        whole = place / "member"
        for path, part in member.content.items():
            if isinstance(part, str):
                write_text(whole / path, part)
            else:
                write_table(whole / path, part.to_pandas(), TABLES[path])
        # To Snakemake, nothing may be older than what it was made of, nor a benchmark of an earlier run.
        made_of = (
            [whole / SPEC, whole / "train", whole / STATUS] if member.is_cell else (whole / "evaluation").iterdir()
        )
        for old in made_of:
            os.utime(old, (LONG_AGO, LONG_AGO))
        source = whole if member.is_cell else whole / "evaluation"
        target = layout.cell(member.name) if member.is_cell else layout.base(member.name) / "evaluation"
        if target.exists():  # what an interrupted job has left
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
