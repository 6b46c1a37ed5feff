"""Train and evaluate without Snakemake: for a machine that has torch and little else.

The files are the workflow's own, so Snakemake finds the cells finished afterwards.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from rewardgrid.base.build import build_base
from rewardgrid.base.load import Base, load_base
from rewardgrid.study.bases import is_there
from rewardgrid.study.cell import Cell
from rewardgrid.study.errors import all_of
from rewardgrid.study.layout import Layout, measured
from rewardgrid.study.study import Study
from rewardgrid.study.text import count, printable_lines


def by_base(study: Study, cells: Sequence[Cell], engines: bool = True) -> Iterator[tuple[Base, list[Cell]]]:
    """Cells grouped by their base, which is built if it is not there yet.

    Args:
        engines: whether to look at the cells' engines too.

    Raises:
        UserError: a cell's engine does not compute its model, its prompts and completions are longer than the model's
            context, or there are too few evaluation prompts: better now than after training.
    """
    from rewardgrid.evaluate.cell import protocols
    from rewardgrid.evaluate.samples import evaluation_prompts
    from rewardgrid.train.engines import check_engine

    for base_id, group in groupby(sorted(cells, key=lambda cell: cell.base_id), key=lambda cell: cell.base_id):
        directory = study.layout.base(base_id)
        with _alone(directory):
            if not (directory / "provenance.json").exists():
                name, recipe = study.base_recipes[base_id]
                say(f"building base {name}")
                build_base(name, recipe, directory)
        base, own = load_base(directory), list(group)
        for cell in own:
            if engines:
                check_engine(cell, base.config, str(base.model_dir / "config.json"))
            base.check_room(cell.name, cell.prompt_length, cell.max_new_tokens)
        for protocol in protocols(study.evaluation, 1):
            evaluation_prompts(base, protocol)
        yield base, own


def check_bases(study: Study) -> None:
    """Build, at a place that is removed again, every base that needs no network, and see that the cells fit it.

    Left out is what :func:`rewardgrid.cli.check.check_study` says: models that are not there, and engines.

    Raises:
        UserError: a base cannot be built, or a cell or the evaluation does not fit it.
    """
    here: dict[str, list[Cell]] = {}
    for cell in study.cells.values():
        if study.bases[cell.base].kind != "hub" and is_there(study.bases[cell.base]):
            here.setdefault(cell.base_id, []).append(cell)
    with TemporaryDirectory() as place:
        elsewhere = study.model_copy(update={"results": place})
        all_of(*(partial(list, by_base(elsewhere, cells, engines=False)) for cells in here.values()))


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Nobody else on this file system is in here for the same directory; a process that dies lets the next one in."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f".{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def train_cells(study: Study, cells: Sequence[Cell], device: str | None = None) -> None:
    """Train the cells that are not finished, those of equal shape side by side where the engine can.

    Cells that another process trains at the moment come last: it may have finished them by then.

    Raises:
        Stopped: a signal asked for it; the same call continues.
        Held: another process still trains a cell.
    """
    from rewardgrid.train.engines import engine
    from rewardgrid.train.lease import gone, read_lease
    from rewardgrid.train.stopping import stoppable

    layout = study.layout
    unfinished = [cell for cell in cells if not _is_trained(layout, cell)]
    say(f"{count(len(cells), 'cell')}, {len(cells) - len(unfinished)} already trained")
    holders = {cell.name: read_lease(layout.cell(cell.name)) for cell in unfinished}
    busy = [cell for cell in unfinished if (holder := holders[cell.name]) is not None and not gone(holder)]
    with stoppable():
        for part in ([cell for cell in unfinished if cell not in busy], busy):
            for base, group in by_base(study, part):
                for name in dict.fromkeys(cell.engine for cell in group):
                    own = [cell for cell in group if cell.engine == name]
                    engine(name)(own, base, [layout.cell(cell.name) for cell in own], study.recording, device)


def _is_trained(layout: Layout, cell: Cell) -> bool:
    return (layout.train(cell.name) / "status.json").exists() and layout.spec(cell.name).exists()


def evaluate_cells(study: Study, cells: Sequence[Cell]) -> None:
    """Evaluate the trained cells that have not been evaluated, and their bases."""
    import torch

    from rewardgrid.evaluate.cell import evaluate_base, evaluate_cell
    from rewardgrid.lm.memory import keep_freed_memory

    torch.set_num_threads(1)  # as the workflow's jobs do: the order of sums decides the last digits
    keep_freed_memory()
    layout = study.layout
    trained = [cell for cell in cells if (layout.train(cell.name) / "status.json").exists()]
    waiting = [cell for cell in trained if not measured(layout.metrics(cell.name))]
    say(
        f"{count(len(cells), 'cell')}, {len(cells) - len(trained)} not trained, "
        f"{len(trained) - len(waiting)} already evaluated"
    )
    for base, group in by_base(study, waiting):
        base_id = base.directory.name
        reference = layout.base_metrics(base_id)
        if not measured(reference):
            settings = study.base_evaluation(base_id)
            evaluate_base(base, settings, study.longest_completion(base_id), reference.parent, settings.own)
        for cell in group:
            evaluate_cell(layout.cell(cell.name), cell, base, reference, study.evaluation)
            say(f"{cell.name}  evaluated")


def say(text: str) -> None:
    """Tell the person who waits."""
    print(printable_lines(text), file=sys.stderr, flush=True)
