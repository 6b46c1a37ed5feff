"""Reading a finished base. Light: no model library is imported."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rewardgrid.base.decoding import decode, rejoins
from rewardgrid.base.model_files import read_tokenizer, weight_files
from rewardgrid.base.prompts import Prompts, read_prompts
from rewardgrid.lm.hf.config import context_of
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json, sha256

__all__ = ["Base", "Prompts", "Vocabulary", "load_base"]

PROMPTS_AND_PROVENANCE = ("provenance.json", "train_prompts.parquet", "eval_prompts.parquet")
DELIMITERS = (".", "?", "!")


@dataclass(frozen=True)
class Vocabulary:
    """What rewards need to know of the tokens.

    Attributes:
        size: tokens that the model knows.
        eos: id of the token that ends a text.
        unk: id of the token for what the tokenizer cannot read, if it has one.
        delimiters: ids of the tokens that close a sentence: full stop, question and exclamation mark, and every token
            that holds one of them and neither letter nor digit (``."`` ``?!`` ``...``).
        comma: id of ",", if it is a token.
        surfaces: (size,) what each token adds to a text when it does not stand first; "" for special tokens.
    """

    size: int
    eos: int
    unk: int | None
    delimiters: tuple[int, ...]
    comma: int | None
    surfaces: tuple[str, ...]


@dataclass(frozen=True)
class Base:
    """The frozen language model that cells start from.

    Attributes:
        directory: where it lies.
        name: its name in the configuration.
        config: the model's Hugging Face config.json.
        tokenizer: reads and writes text.
        vocabulary: the tokens.
        provenance: how it was made.
        rejoin: decoding joins punctuation to the word before, beyond what the tokenizer does itself.
    """

    directory: Path
    name: str
    config: dict[str, Any]
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    provenance: dict[str, Any]
    rejoin: bool

    @property
    def model_dir(self) -> Path:
        """The Hugging Face directory of model and tokenizer."""
        return self.directory / "model"

    @property
    def weights(self) -> list[Path]:
        """The safetensors files of the model."""
        return weight_files(self.model_dir)

    def train_prompts(self) -> Prompts:
        """The training prompts, in their order."""
        return self._prompts("train")

    def eval_prompts(self) -> Prompts:
        """The evaluation prompts, in their order, the same for every cell."""
        return self._prompts("eval")

    def _prompts(self, split: str) -> Prompts:
        name = f"{split}_prompts.parquet"
        digest = self.provenance["files"].get(name)
        if digest is not None:
            _check_bytes(self.directory, self.provenance, name, digest)
        return read_prompts(self.directory / name)

    def check_room(self, what: str, prompt: int, completion: int) -> None:
        """Make sure that so many tokens fit into the model's context.

        Raises:
            UserError: they do not; names ``what`` needs them.
        """
        context = context_of(self.config)
        if prompt + completion > context:
            raise UserError(
                f"{what}: max_new_tokens: read {completion}; prompt and completion need {prompt + completion} tokens, "
                f"but the context of base {self.name} is {context:g}; write at most {context - prompt:g}"
            )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these tokens without special tokens, as ``AutoTokenizer.decode`` gives it."""
        return decode(self.tokenizer, [list(ids)], self.rejoin)[0]


def load_base(directory: Path) -> Base:
    """Read a base and make sure that model and tokenizer are what was built.

    Raises:
        UserError: a file is missing, or its bytes are not those that provenance.json names.
    """
    provenance = read_json(directory / "provenance.json")
    for name, digest in provenance["files"].items():
        if not name.endswith(".parquet"):  # which is checked when it is asked for
            _check_bytes(directory, provenance, name, digest)
    model = directory / "model"
    config = read_json(model / "config.json")
    tokenizer = read_tokenizer(model)
    rejoin = rejoins(model, tokenizer)
    vocabulary = read_vocabulary(tokenizer, config, rejoin)
    return Base(directory, provenance["name"], config, tokenizer, vocabulary, provenance, rejoin)


def _check_bytes(directory: Path, provenance: dict[str, Any], name: str, digest: str) -> None:
    """Make sure that a file is what was built.

    Raises:
        UserError: it is missing or differs. A base that the workflow built is removed then, so that it builds it anew.
    """
    path = directory / name
    if path.is_file() and sha256(path) == digest:
        return
    damage = "corrupt (not the bytes that were built)" if path.is_file() else "no such file"
    if directory.name != f"{provenance['name']}-{provenance.get('recipe_hash')}":
        raise UserError(f"{path}: {damage}; delete {directory} and run again")
    for made in PROMPTS_AND_PROVENANCE:
        (directory / made).unlink(missing_ok=True)
    shutil.rmtree(directory / "model", ignore_errors=True)
    raise UserError(f"{path}: {damage}; the base was removed: run the same command again, which builds it anew")


def read_vocabulary(tokenizer: Tokenizer, config: dict[str, Any], rejoin: bool) -> Vocabulary:
    """Look up what the tokens are.

    Raises:
        UserError: no token closes a sentence.
    """
    marks = tuple(number for mark in DELIMITERS if (number := tokenizer.token_to_id(mark)) is not None)
    if not marks:
        raise UserError(f"the tokenizer has none of the tokens {' '.join(DELIMITERS)}; choose another base")
    anchor, size = marks[0], config["vocab_size"]
    pairs = [[anchor, number] for number in range(tokenizer.get_vocab_size())]
    lead = len(decode(tokenizer, [[anchor]], rejoin)[0])
    surfaces = [text[lead:] for text in decode(tokenizer, pairs, rejoin)]
    merged = tuple(number for number, text in enumerate(surfaces) if closes_sentence(text) and number not in marks)
    unk = getattr(tokenizer.model, "unk_token", None)
    return Vocabulary(
        size=size,
        eos=config["eos_token_id"],
        unk=tokenizer.token_to_id(unk) if isinstance(unk, str) else None,
        delimiters=(*marks, *merged),
        comma=tokenizer.token_to_id(","),
        surfaces=tuple(surfaces + [""] * (size - len(surfaces))),
    )


def closes_sentence(surface: str) -> bool:
    """Whether a token of this text is a delimiter, alone or merged with other marks; a word that ends in one is not."""
    return any(mark in surface for mark in DELIMITERS) and not any(letter.isalnum() for letter in surface)
