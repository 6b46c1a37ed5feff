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
from collections.abc import Iterator, Mapping, Sequence
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
    write_table,
)
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import JSON_BYTES, atomic_write, read_bounded, read_json, sha256, write_json, write_text
from rewardgrid.study.layout import Layout, done, measured
from rewardgrid.study.steps import recorded_from
from rewardgrid.study.study import Study
from rewardgrid.study.text import count
from rewardgrid.train.lease import gone, read_lease

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
NEEDED = (SPEC, STATUS, METRICS, "train/history.parquet")
"""What a cell must have to be packed."""
HERE = ("host", "cuda_visible_devices")
"""Of status.json, what says where a cell was trained and nothing about it: left out."""
LONG_AGO = 946684800.0
"""The time of restored files that others were made of: the year 2000."""
FILES = pa.schema([("member", pa.string()), ("path", pa.string()), ("text", pa.string())])
"""Every file of every member; the text of those that are no table."""

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
    finished = [cell for cell in cells if _is_whole(layout, cell)]
    new: dict[str, Content] = {}
    for base_id in sorted({cell.base_id for cell in finished}):
        if not measured(layout.base_metrics(base_id)):
            raise UserError(f"{layout.base_metrics(base_id)}: not there or outdated; run `snakemake bases`, then again")
        new[base_id] = collect(layout.base(base_id))
    for cell in sorted(finished, key=lambda cell: cell.name):
        new[cell.name] = collect(layout.cell(cell.name))
    digests = {name: digest(content) for name, content in new.items()}
    for name, content in new.items():
        _check(layout.root, name, content, digests[name])
    for name in sorted(set(new) & set(known)):
        if known[name].digest != digests[name]:
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
    """What an archive keeps of a cell's or a base's directory."""
    content: Content = {
        path: (directory / path).read_text(encoding="utf-8") for path in (SPEC, METRICS) if (directory / path).exists()
    }
    if (directory / STATUS).exists():
        status = read_json(directory / STATUS) | dict.fromkeys(HERE)
        status.pop("tables", None)  # hashes of files that come back with other bytes, or fewer rows
        content[STATUS] = json.dumps(status, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    for path, schema in TABLES.items():
        if (directory / path).exists():
            frame = read_table(directory / path, schema)
            if path in THINNED:
                frame = frame[frame["step"].isin(kept_steps(sorted(set(frame["step"])), _onsets(content)))]
            content[path] = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
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


def _is_whole(layout: Layout, cell: Cell) -> bool:
    return done(layout, cell) == "done" and all((layout.cell(cell.name) / path).exists() for path in NEEDED)


def _identity(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:12]


def _write(directory: Path, members: Mapping[str, Content], digests: Mapping[str, str]) -> None:
    identity = _identity(digests)
    rows = [
        {"member": name, "path": path, "text": part if isinstance(part, str) else None}
        for name, content in members.items()
        for path, part in sorted(content.items())
    ]
    tables = {"files": pa.Table.from_pylist(rows, schema=FILES)}
    for path in TABLES:
        parts = [
            _named(name, part) for name, content in members.items() if isinstance(part := content.get(path), pa.Table)
        ]
        if parts:
            tables[Path(path).stem] = pa.concat_tables(parts)
    written = {}
    for stem, table in tables.items():
        target = directory / f"{identity}-{stem}.parquet"
        with atomic_write(target) as temporary:
            _write_small(table, temporary)
        written[target.name] = sha256(target)
    write_json(directory / f"{identity}.json", {"format": FORMAT, "members": dict(digests), "files": written})


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
                f"{directory}: no archive: it has no manifest (*.json); name a directory that `archive` made"
            )
        named: set[str] = set()
        for manifest in manifests:
            for member in _read(manifest, named):
                before = members.setdefault(member.name, member)
                if before.digest != member.digest:
                    raise UserError(
                        f"{member.source}: {member.name}: not the same as in {before.source}; "
                        "keep one of them and delete the other's files"
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
        if found["format"] != FORMAT or _identity(digests) != manifest.stem:
            raise damaged
        stems = {name.removeprefix(f"{manifest.stem}-").removesuffix(".parquet"): name for name in files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise damaged from None
    if not stems.keys() <= {"files", *(Path(path).stem for path in TABLES)} or "files" not in stems:
        raise damaged
    tables = {}
    for stem, name in stems.items():
        path = manifest.parent / name
        if not path.exists():
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
                schema = TABLES[row["path"]]
                table = tables[Path(row["path"]).stem]
                own = table.filter(pc.equal(table["member"], row["member"])).drop_columns("member")
                part = own.select(schema.names).cast(schema)
            elif row["path"] not in (SPEC, STATUS, METRICS) or not isinstance(part, str):
                raise damaged
            contents.setdefault(row["member"], {})[row["path"]] = part
    except (pa.ArrowException, KeyError, ValueError):
        raise damaged from None
    if contents.keys() != digests.keys():
        raise damaged
    for name, content in contents.items():
        _check(manifest, name, content, digests[name])
        yield Member(name, str(manifest), digests[name], content)


def _check(place: Path, name: str, content: Content, wanted: str) -> None:
    """Refuse a member that is not what its name says."""
    source = f"{place}: {name}"
    if digest(content) != wanted:
        raise UserError(f"{source}: its files are not those that were packed; bring the archive's files again")
    own: list[object] = []
    try:
        metrics = _object(content[METRICS])
        own.append(metrics.get("cell"))
        if SPEC in content:
            own += [read_cell(str(content[SPEC]), f"{source}/{SPEC}").name, _object(content[STATUS]).get("cell")]
        elif not re.fullmatch(r"[\w.-]+-[0-9a-f]{10}", name):
            own.append(None)
    except (KeyError, ValueError):
        own.append(None)
    if any(one != name for one in own):
        raise UserError(f"{source}: belongs to another cell or lacks files; delete it, or bring it again")
    if metrics.get("version") != METRICS_VERSION:
        raise UserError(
            f"{source}: version: read {metrics.get('version')!r}, but this rewardgrid measures version "
            f"{METRICS_VERSION}; use the rewardgrid that made the archive, or an archive of this version"
        )


def _object(text: object) -> dict[str, Any]:
    found = json.loads(str(text))
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


# --- restoring -----------------------------------------------------------------------------------------


def restore(layout: Layout, directories: Sequence[Path]) -> None:
    """Put every member of some archives where Snakemake finds it finished.

    What lies there already and is the same stays as it is. All is checked before the first file is written.

    Raises:
        UserError: as ``read_archives``; or something else lies there, or another process trains the cell.
    """
    members = read_archives(directories)
    if not members:
        raise UserError(f"{', '.join(map(str, directories))}: nothing in it; name a directory that `archive` filled")
    missing = [member for member in members.values() if not _is_there(layout, member)]
    for member in missing:
        _put(layout, member)
    there = sum(member.is_cell for member in members.values())
    put = sum(member.is_cell for member in missing)
    say(f"{layout.root}: {count(put, 'cell')} restored (without weights), {there - put} there already")


def _is_there(layout: Layout, member: Member) -> bool:
    """Whether the member lies there finished; refuses whatever is not the same."""
    directory = (layout.cell if member.is_cell else layout.base)(member.name)
    if measured(directory / METRICS):
        if digest(collect(directory)) != member.digest:
            raise UserError(
                f"{directory}: not the same as in {member.source}; to have the archive's, delete "
                f"{directory if member.is_cell else directory / 'evaluation'} and restore again"
            )
        return True
    if member.is_cell:
        holder = read_lease(directory)
        begun = done(layout, read_cell(str(member.content[SPEC]), member.source)) != "waiting"
        if begun or (holder is not None and not gone(holder)):
            raise UserError(f"{directory}: begun here and not finished; finish it, or delete it, and restore again")
    return False


def _put(layout: Layout, member: Member) -> None:
    """Write a member beside its place and then move it there: a restoring that is cut off leaves nothing by halves."""
    layout.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".restoring-", dir=layout.root) as name:
        whole = Path(name) / "member"
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
