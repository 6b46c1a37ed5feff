"""Recipes of teachers: the language model that tells the storyteller's stories, and where it is to be found."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import Field

from rewardgrid.study.cell import Strict


class Licensed(Strict):
    """What every kind of teacher has: a licence, which its stories may be subject to."""

    licence: str = Field(min_length=1, description="its licence, by its usual short name; the base's card names it")


class GgufTeacher(Licensed):
    """A GGUF file on this machine."""

    kind: Literal["gguf"] = "gguf"
    model: str = Field(description="path of a .gguf file of the LLaMA or Qwen2 family")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="the file's SHA-256, in hex; without it any bytes will do"
    )


class LocalTeacher(Licensed):
    """A Hugging Face directory on this machine."""

    kind: Literal["local"] = "local"
    model: str = Field(description="directory with config.json, tokenizer.json, a chat template and *.safetensors")


class HubTeacher(Licensed):
    """A model repository of a Hugging Face hub (the one that HF_ENDPOINT names)."""

    kind: Literal["hub"] = "hub"
    model: str = Field(description="model repository, with safetensors weights and a chat template")
    model_revision: str = Field(description="its commit (or tag, or branch)")


Teacher = Annotated[GgufTeacher | LocalTeacher | HubTeacher, Field(discriminator="kind")]


def teacher_hash(teacher: Teacher) -> str:
    """The identity of a teacher: 10 hex digits of what says which model it is, wherever that lies."""
    named = teacher.model_dump(exclude={"licence"})
    if named.get("sha256"):
        del named["model"]
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:10]
