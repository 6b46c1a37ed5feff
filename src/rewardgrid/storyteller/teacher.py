"""The teacher: a language model that can chat, brought in once, checked, and arranged to tell stories."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from rewardgrid.base.hub import Repository, fetch_model
from rewardgrid.base.model_files import kept_files
from rewardgrid.lm.hf.layout import fused
from rewardgrid.lm.kernels import Packed
from rewardgrid.lm.sampler import Decoder
from rewardgrid.storyteller.chat import Chat
from rewardgrid.storyteller.gguf_file import open_gguf
from rewardgrid.storyteller.model import Lazy, Model, open_directory
from rewardgrid.storyteller.requests import SHOWN_ALIKE, Request, request
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json, sha256, write_json
from rewardgrid.study.teachers import GgufTeacher, HubTeacher
from rewardgrid.study.teachers import Teacher as Recipe

FACTS = "teacher.json"
COMMONEST = 32_000  # tokens are numbered in the order of their frequency: beyond are rare words and fragments
WORD = re.compile(r" ?[a-z]+| I| [A-Z][a-z]+|'(?:s|t|re|ve|m|ll|d)|[.,!?]")  # no quotes, digits, line feeds
UNSAID = re.compile(
    r"stor(?:y|ies)|tales?|sentences?|paragraphs?|chapters?|authors?|narrator|moral|english|kill\w*|murder\w*|blood\w*|"
    r"die[sd]?|dead|death|guns?|bombs?|sex\w*|naked|drunk|beer|wine|rape\w*|suicide|hell|damn|slave\w*|wars?|drugs?",
    re.IGNORECASE,
)
"""Words that lead away from a small child's story."""


@dataclass(frozen=True)
class Teacher:
    """A language model that may say plain English words, marks, and that it has come to an end.

    Attributes:
        decoder: scores these words only.
        words: (W,) ids of the tokens that it may say; the last one ends a story.
        texts: (W,) what each of them adds to a story; nothing for the last.
    """

    decoder: Decoder
    tokenizer: Tokenizer
    chat: Chat
    words: Tensor
    texts: tuple[str, ...]

    @property
    def end(self) -> int:
        """The place in ``words`` of the token that ends a story."""
        return len(self.texts) - 1

    def read(self, wanted: Request) -> list[int]:
        """The tokens of a request, up to the story's first words."""
        return encode(self.tokenizer, self.chat.write(wanted.turns)[0])


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text, special ones only where it names them."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


# --- bringing it in ------------------------------------------------------------------------------------


def bring_teacher(recipe: Recipe, out: Path) -> None:
    """Make sure that the teacher is here, and is what the recipe says.

    Writes ``teacher.json``: the recipe, where the model lies, the SHA-256 of each of its files, and of a hub's its
    commit. A hub's files are put beside it.

    Raises:
        UserError: it is not here, cannot be downloaded, has another hash, or is no model that can be a teacher.
    """
    place, facts = Path(recipe.model), dict[str, Any](recipe=recipe.model_dump(mode="json"))
    if isinstance(recipe, HubTeacher):
        place = out / "model"
        place.mkdir(parents=True, exist_ok=True)
        repository = Repository.resolve("model", recipe.model, recipe.model_revision)
        fetch_model(repository, place)
        facts["commit"] = repository.commit
    elif isinstance(recipe, GgufTeacher) and not place.is_file():
        raise UserError(
            f"storyteller.teacher.model: read {recipe.model!r}, but there is no such file; docs/storyteller.md has the "
            "commands that get the teacher of the published configuration, or name the path of another"
        )
    elif not place.exists():
        raise UserError(f"storyteller.teacher.model: read {recipe.model!r}, but there is no such directory; name one")
    files = [place] if place.is_file() else kept_files(place)
    hashes = {path.name: sha256(path) for path in files}
    if isinstance(recipe, GgufTeacher) and recipe.sha256 not in (None, hashes[place.name]):
        raise UserError(
            f"{place}: its SHA-256 is {hashes[place.name]}, not {recipe.sha256}: it is cut short, altered or another "
            "file; fetch it again, or correct storyteller.teacher.sha256"
        )
    _end(_open(place))
    write_json(out / FACTS, facts | {"place": str(place), "files": hashes})


def _open(place: Path) -> Model:
    return open_directory(place) if place.is_dir() else open_gguf(place)


def _end(model: Model) -> int:
    """The token that ends the assistant's turn."""
    return encode(model.tokenizer, model.chat.write(request(0, 0).turns)[1])[0]


# --- making it ready -----------------------------------------------------------------------------------


def load_teacher(facts: Path, device: torch.device) -> Teacher:
    """Arrange the teacher of a ``teacher.json`` to tell stories on this device, in the type that is fastest there.

    Raises:
        UserError: it is no longer there, or is no longer what it was.
    """
    known = read_json(facts)
    place = Path(known["place"])
    for name, digest in known["files"].items():
        path = place if place.name == name else place / name
        if not path.is_file() or sha256(path) != digest:
            raise UserError(f"{path}: is not what it was when it was checked; delete {facts} and run again")
    return arranged(_open(place), device, fastest_type(device))


def arranged(model: Model, device: torch.device, dtype: torch.dtype) -> Teacher:
    """A teacher of a model: its words chosen, its weights laid out. They are read one after another."""
    texts = {
        number: text
        for token, number in sorted(model.tokenizer.get_vocab().items(), key=lambda item: item[1])
        if number < COMMONEST and (text := sayable(token)) is not None
    }
    words = torch.tensor([*texts, _end(model)])

    def weight(key: str) -> Tensor:
        if key != "head":
            return fused(model.shape, model.tensors, key).to(device, dtype if key == "embed" else torch.float32)
        rows = fused(model.shape, model.tensors, "embed" if model.shape.tied else "head")[:, words]
        return rows.to(device, torch.float32)

    weights = Lazy({key: partial(weight, key) for key in [*model.shape.weight_keys(), "head"]})
    kernels = Packed(SHOWN_ALIKE) if Packed.work(dtype, device) else None
    decoder = Decoder(model.shape, weights, 1, kernels)
    return Teacher(decoder, model.tokenizer, model.chat, words.to(device), (*texts.values(), ""))


def sayable(token: str) -> str | None:
    """What a token adds to a story, if it may be said. Tokenizers write a leading space as one of two other letters."""
    text = token.replace("Ġ", " ").replace("▁", " ")
    return text if WORD.fullmatch(text) and not UNSAID.fullmatch(text.strip()) else None


def fastest_type(device: torch.device) -> torch.dtype:
    """bfloat16 where this device multiplies it faster than float32: on GPUs, and on CPUs that are made for it."""
    if device.type == "cuda":
        return torch.bfloat16

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(512, 512, dtype=dtype, device=device)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - start)
        return min(times)

    return min((torch.float32, torch.bfloat16), key=seconds)
