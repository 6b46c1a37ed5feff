"""The texts that the page shows: which ones, and token by token what a reader wants to see in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardgrid.page.gather import plain
from rewardgrid.study.bases import PackagedBase
from rewardgrid.study.cell import EVAL_MODES, Cell
from rewardgrid.study.contracts import ROLLOUTS, SAMPLES, read_table
from rewardgrid.study.layout import Layout
from rewardgrid.study.shipped import shipped
from rewardgrid.study.steps import recorded_from
from rewardgrid.study.study import Study

if TYPE_CHECKING:
    from torch import Tensor

    from rewardgrid.base.load import Base
    from rewardgrid.train.rewards import TextTables

MOST_TEXTS = 10_000
"""On the page, as far as a dozen for each cell allows: it then stays below 25 MB, with 100 cells as with 1,000."""
MOST_OF_A_STEP = 12
ROWS = 8
"""Sequences that the base reads together."""

NATS = 4
"""Steps of a stored surprisal per nat."""
LETTERS = 64
"""Of which a stored surprisal is one, from "0" on."""
CONTINUED = "##"
QUANTILES = (0.95, 0.99, 0.999)
"""Of the base's own tokens: what is less likely than so many of them is shaded, in as many shades."""

LABELS = ("eligible", "routed", "flagged", "noise")


# --- which ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """How many texts of a cell are shown: while it trained, and at its end of each mode."""

    training: int
    final: int

    def steps(self, recorded: int) -> int:
        """Of how many of the recorded steps: of all, with two texts or more of each, if that is not too many."""
        return min(recorded, max(4, self.training // 2))

    def each(self, steps: int) -> int:
        """How many texts of each of so many steps."""
        return min(MOST_OF_A_STEP, max(2, self.training // max(steps, 1)))


def share(cells: int) -> Share:
    """The share of each of so many cells."""
    own = min(240, max(12, MOST_TEXTS // max(cells, 1)))
    final = min(16, max(4, own // 8))
    return Share(own - final, final)


def chosen_steps(steps: Sequence[int], most: int, onsets: Sequence[int | None] = ()) -> list[int]:
    """At most so many of the recorded steps, evenly from the first to the last, and the first after each onset."""
    if len(steps) <= most:
        return list(steps)
    even = {steps[round(place)] for place in np.linspace(0, len(steps) - 1, most)}
    turned = {recorded_from(steps, onset) for onset in onsets if onset is not None}
    return sorted(even | turned)


def chosen_places(size: int, groups: int, most: int, seed: int) -> list[int]:
    """Which of a step's texts: so many by chance, of each prompt alike, the same in every cell of this size."""
    own = size // groups
    order = np.random.default_rng(seed).permutation(own)
    places = [group * own + int(place) for place in order for group in range(groups)]
    return sorted(places[:most])


# --- token by token ------------------------------------------------------------------------------------


class Reader:
    """Reads texts as the base does: its tokens, where sentences end, and how unlikely each token is."""

    def __init__(self, base: Base) -> None:
        from rewardgrid.train.rewards import text_tables
        from rewardgrid.train.weights import frozen_base

        self.base = base
        vocabulary = base.vocabulary
        self.tables: TextTables = text_tables(vocabulary.surfaces, vocabulary.delimiters, vocabulary.eos)
        self.shape, self.weights = frozen_base(base)

    @cached_property
    def prompts(self) -> Mapping[str, list[int]]:
        """Ids of the evaluation prompts by text."""
        pool = self.base.eval_prompts()
        return dict(zip(pool.text, pool.ids.tolist(), strict=True))

    def again(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """Ids of a text that was recorded without them; they need not be those that were sampled."""
        encode = self.base.tokenizer.encode
        ids = self.prompts.get(prompt) or encode(prompt, add_special_tokens=False).ids
        return ids, encode(completion, add_special_tokens=False).ids

    def read(self, texts: Sequence[tuple[Sequence[int], Sequence[int], str]]) -> list[dict[str, Any]]:
        """Texts as (ids of the prompt, ids of the completion without [EOS], completion).

        Returns:
            of each, ``pieces`` (texts of tokens, together the completion), ``nats`` (a letter for each: surprisal
            under the base in quarters of a nat from "0") and ``ends`` (place and length of each sentence's end).
        """
        found: list[dict[str, Any]] = []
        for start in range(0, len(texts), ROWS):
            rows = texts[start : start + ROWS]
            surprisals, ends = self._scored([(prompt, ids) for prompt, ids, _ in rows])
            found += [
                {"pieces": self.pieces(ids, text), "nats": letters(nats), "ends": own}
                for (_, ids, text), nats, own in zip(rows, surprisals, ends, strict=True)
            ]
        return found

    def pieces(self, ids: Sequence[int], text: str) -> list[str]:
        """What each token adds to the text; together they are the text."""
        surfaces = self.base.vocabulary.surfaces
        quick = [surfaces[number] for number in ids]
        if quick:
            quick[0] = quick[0].lstrip(" ") if not text.startswith(" ") else quick[0]
            # The rest of a word that the prompt began, as WordPiece writes it.
            quick[0] = f"{CONTINUED}{quick[0]}" if text == CONTINUED + "".join(quick) else quick[0]
        if "".join(quick) == text:
            return quick
        # Decoding joins across tokens: each one adds by how much more of the text is settled with it.
        settled, pieces = 0, []
        for end in range(1, len(ids) + 1):
            reached = max(settled, _common(self.base.decode(list(ids[:end])), text))
            pieces.append(text[settled:reached])
            settled = reached
        return [*pieces[:-1], pieces[-1] + text[settled:]] if pieces else [text]

    def _scored(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> tuple[list[np.ndarray], list[list[list[int]]]]:
        import torch

        from rewardgrid.lm.model import token_logps
        from rewardgrid.train.rewards import sentence_lengths

        def padded(sequences: list[list[int]]) -> Tensor:
            tensors = [torch.tensor(ids, dtype=torch.long) for ids in sequences]
            return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=self.tables.eos)

        # One token more, so that an empty completion is something to read too.
        whole = padded([[*prompt, *ids, self.tables.eos] for prompt, ids in rows])
        with torch.no_grad():
            nll = -token_logps(self.shape, self.weights, whole[None], 1)[0].numpy()
        own = padded([list(ids) for _, ids in rows])
        mask = torch.arange(own.shape[1]) < torch.tensor([len(ids) for _, ids in rows]).unsqueeze(1)
        lengths, closes = sentence_lengths(own, mask, self.tables) if own.shape[1] else (own, own.bool())
        surprisals = [
            line[len(prompt) - 1 : len(prompt) - 1 + len(ids)] for line, (prompt, ids) in zip(nll, rows, strict=True)
        ]
        ends = [
            [[place, length] for place, (length, close) in enumerate(zip(*line, strict=True)) if close]
            for line in zip(lengths.tolist(), closes.tolist(), strict=True)
        ]
        return surprisals, ends


def letters(nats: np.ndarray) -> str:
    """Surprisals as one letter each."""
    steps = np.clip(nats * NATS, 0, LETTERS - 1).astype(int)
    return "".join(chr(ord("0") + step) for step in steps.tolist())


def _common(one: str, other: str) -> int:
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def reader_of(study: Study, base_id: str) -> Reader | None:
    """What reads as this base: where the workflow built it, or else as it comes with rewardgrid; None without either.

    Raises:
        UserError: its files are damaged.
    """
    from rewardgrid.base.load import load_base

    _, recipe = study.base_recipes[base_id]
    places = [study.layout.base(base_id)]
    if isinstance(recipe, PackagedBase):
        places.append(shipped(recipe.path))
    for place in places:
        if (place / "provenance.json").is_file() and (place / "model").is_dir():
            return Reader(load_base(place))
    return None


# --- of a cell -----------------------------------------------------------------------------------------


def training_texts(
    layout: Layout, cell: Cell, reader: Reader | None, own: Share, seed: int, onsets: Sequence[int | None]
) -> list[dict[str, Any]]:
    """Texts of recorded steps, a dictionary for each step: ``step`` and ``texts``."""
    path = layout.train(cell.name) / "rollouts.parquet"
    if not path.exists():
        return []
    frame = read_table(path, ROLLOUTS)
    recorded = sorted(int(step) for step in frame["step"].unique())
    steps = chosen_steps(recorded, own.steps(len(recorded)), onsets)
    places = chosen_places(cell.batch_size, cell.prompts_per_step, own.each(len(steps)), seed)
    rows = [row for step in steps for row in frame[frame["step"] == step].iloc[places].to_dict("records")]
    eos = reader.base.vocabulary.eos if reader else None
    cut = cell.prompt_length
    sequences = [
        (row["ids"][:cut].tolist(), [number for number in row["ids"][cut:].tolist() if number != eos]) for row in rows
    ]
    texts: dict[int, list[dict[str, Any]]] = {step: [] for step in steps}
    for text, row in zip(_marked(reader, rows, sequences), rows, strict=True):
        text["labels"] = [name for name in LABELS if cell.is_routing and row[name]]
        texts[row["step"]].append(text)
    return [{"step": step, "texts": own_texts} for step, own_texts in texts.items()]


def final_texts(samples: Path, reader: Reader | None, number: int) -> list[dict[str, Any]]:
    """The first samples of the full protocol, of each mode the same prompts."""
    if not samples.exists():
        return []
    frame = read_table(samples, SAMPLES)
    full = frame[frame["protocol"] == "full"]
    modes = [mode for mode in EVAL_MODES if (full["mode"] == mode).any()]
    rows = [row for mode in modes for row in full[full["mode"] == mode].head(number).to_dict("records")]
    marked = _marked(reader, rows, [reader.again(row["prompt"], row["completion"]) for row in rows] if reader else [])
    for text, row in zip(marked, rows, strict=True):
        text["labels"] = [row["mode"].replace("_", " ")] if len(modes) > 1 else []
    return marked


def _marked(
    reader: Reader | None,
    rows: Sequence[Mapping[Any, Any]],
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> list[dict[str, Any]]:
    texts = [
        {
            "prompt": row["prompt"],
            "pieces": [row["completion"]],
            **{name: plain(row[name]) for name in ("reward", "sl10", "happy")},
        }
        for row in rows
    ]
    if reader:
        wanted = [(*pair, text) for pair, text in zip(sequences, (row["completion"] for row in rows), strict=True)]
        texts = [text | found for text, found in zip(texts, reader.read(wanted), strict=True)]
    return texts


def usual_nats(texts: Sequence[Mapping[str, Any]]) -> list[float]:
    """The surprisals that few of the base's own tokens exceed (:data:`QUANTILES`), in nats."""
    own = [(ord(letter) - ord("0")) / NATS for text in texts for letter in text.get("nats", "")]
    return [float(value) for value in np.quantile(own, QUANTILES)] if own else []
