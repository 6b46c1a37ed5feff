"""A study's page, from its files to one text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewardgrid.page.file import whole
from rewardgrid.page.gather import base_figures, cells_of, curves, evidence, overview
from rewardgrid.page.texts import Reader, Share, final_texts, reader_of, share, training_texts, usual_nats
from rewardgrid.study.cell import Cell
from rewardgrid.study.study import Study

UNREAD = "The base's weights are not here, so that sentences and unlikely tokens are not marked."


def page(study: Study, names: Sequence[str]) -> str:
    """The page of these cells and their bases, finished or not.

    Raises:
        UserError: a file of a cell or base is damaged.
    """
    cells = cells_of(study, names)
    top, own = overview(study, cells), share(len(cells))
    readers = {base_id: reader_of(study, base_id) for base_id in dict.fromkeys(cell.base_id for cell, _ in cells)}
    bases = {base_id: _base(study, base_id, reader, own) for base_id, reader in readers.items()}
    top["bases"] = [{key: value for key, value in base.items() if key != "block"} for base in bases.values()]
    blocks = {f"base-{number}": base["block"] for number, base in enumerate(bases.values())}
    for number, ((cell, _), listed) in enumerate(zip(cells, top["cells"], strict=True)):
        row = listed["row"]
        onsets = [row.get("hack_onset"), row.get("degeneration_onset")]
        blocks[f"cell-{number}"] = cell_block(study, cell, readers[cell.base_id], own, onsets)
    return whole(study.title, top, blocks)


def cell_block(
    study: Study, cell: Cell, reader: Reader | None, own: Share, onsets: Sequence[int | None]
) -> dict[str, Any]:
    """What is unpacked when a cell is looked at: curves, evidence, texts."""
    layout, name = study.layout, cell.name
    return {
        "curves": curves(layout, cell),
        "evidence": evidence(layout.metrics(name), layout.base_metrics(cell.base_id)),
        "training": training_texts(layout, cell, reader, own, study.evaluation.seed, onsets),
        "final": final_texts(layout.samples(name), reader, own.final),
        "note": None if reader else UNREAD,
    }


def _base(study: Study, base_id: str, reader: Reader | None, own: Share) -> dict[str, Any]:
    samples = study.layout.base_samples(base_id)
    # All that was sampled says what is usual; a few of them are shown.
    texts = final_texts(samples, reader, study.evaluation.samples)
    return {
        "name": base_id,
        "label": f"base: {study.base_recipes[base_id][0]}",
        "row": base_figures(study.layout, base_id),
        "usual": usual_nats(texts),
        "block": {
            "curves": {},
            "evidence": [],
            "training": [],
            "final": texts[: own.final],
            "note": None if reader else UNREAD,
        },
    }
