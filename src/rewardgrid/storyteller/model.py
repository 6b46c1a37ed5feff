"""A language model that can chat, as its files hold it, and how a Hugging Face directory is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor

from rewardgrid.base.model_files import check_model, read_tokenizer, weight_files
from rewardgrid.lm.hf.config import shape_of
from rewardgrid.lm.shape import Shape
from rewardgrid.storyteller.chat import Chat
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json


class Lazy(Mapping[str, Tensor]):
    """Tensors by name, each read when it is asked for and not kept: a large model need not be in memory twice."""

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


@dataclass(frozen=True)
class Model:
    """A language model.

    Attributes:
        tensors: its weights by their Hugging Face names, in any type.
        tokenizer: a plain encode may add special tokens; an encode that adds none reads those that stand in the text.
    """

    shape: Shape
    tensors: Mapping[str, Tensor]
    tokenizer: Tokenizer
    chat: Chat


def open_directory(directory: Path) -> Model:
    """Open a Hugging Face directory.

    Raises:
        UserError: it holds no plain LLaMA or Qwen2 with sound weights and a tokenizer, or no chat template.
    """
    check_model(directory)
    source = directory / "config.json"
    shape = shape_of(read_json(source), str(source), "no other model can be the teacher")
    readers: dict[str, Callable[[], Tensor]] = {}
    for path in weight_files(directory):
        file = safe_open(path, framework="pt")
        readers |= {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118
    return Model(shape, Lazy(readers), read_tokenizer(directory), _chat(directory))


def _chat(directory: Path) -> Chat:
    """The chat template: a file of its own, or part of the tokenizer's configuration."""
    path = directory / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    tokens = {key: _content(config[key]) for key in ("bos_token", "eos_token") if config.get(key)}
    file = directory / "chat_template.jinja"
    if file.is_file():
        return Chat(file.read_text(encoding="utf-8"), tokens, str(file))
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        template = {each["name"]: each["template"] for each in template}.get("default")
    return Chat(chat_template(template, str(directory)), tokens, str(path))


def chat_template(template: object, source: str) -> str:
    """The text of a chat template.

    Raises:
        UserError: there is none.
    """
    if not isinstance(template, str):
        raise UserError(
            f"{source}: has no chat template, so there is no telling how it wants to be asked; choose a model that is "
            "made for chat (they are often called Instruct)"
        )
    return template


def _content(token: Any) -> str:
    """A special token's text: a tokenizer's configuration has it plain or with its properties."""
    return str(token["content"] if isinstance(token, dict) else token)
