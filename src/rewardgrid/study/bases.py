"""Recipes of bases: everything that decides which frozen language model cells start from."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rewardgrid.study.cell import Count, Seed, Strict
from rewardgrid.study.errors import ConfigError, Problem
from rewardgrid.study.files import read_object, sha256
from rewardgrid.study.problems import validated
from rewardgrid.study.shipped import shipped
from rewardgrid.study.teachers import Teacher

BASE_VERSION = 1
"""Bumped by hand when an edit changes what a recipe makes: bases, and cells on them, then have new paths."""


class Prompted(Strict):
    """What every kind of base has: prompts cut from stories (SEMANTICS: prompt)."""

    prompt_tokens: Count = Field(default=8, description="a prompt is this many first tokens of a story")
    train_prompts: Count = Field(default=10_000, description="at most this many unique prompts for training")
    eval_prompts: Count = Field(default=1_000, description="at most this many unique prompts for evaluation")


class Pretrained(Prompted):
    """A LLaMA that is pretrained here on sifted stories: its sizes, and how it learns."""

    kind: Literal["pretrained"] = "pretrained"
    layers: Count = Field(default=4, description="transformer blocks")
    hidden: Count = Field(default=128, description="width of the residual stream")
    heads: Count = Field(default=4, description="attention heads")
    kv_heads: Count = Field(default=2, description="key/value heads")
    mlp_width: Count = Field(default=341, description="width of the gated MLP")
    context: Count = Field(default=512, description="longest sequence, in tokens")
    vocabulary: Count = Field(default=4096, description="size of the tokenizer's vocabulary")
    epochs: Count = Field(default=4, description="times that the sifted stories are read")
    batch: Count = Field(default=32, description="stories per pretraining step")
    length: Count = Field(default=192, description="first tokens of a story that are learnt from")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="of matrices, per unit of learning rate"
    )
    gain: Annotated[float, Field(gt=0)] = Field(
        default=1.0,
        description="factor of the norms' gains, by which the matrices after them are divided: the function stays, but "
        "each step of a fine-tuning moves it that much further",
    )
    seed: Seed = Field(default=0, description="of first weights and order")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.hidden % self.heads or self.hidden // self.heads % 2:
            raise ValueError(f"hidden must be heads ({self.heads}) times an even number")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.length > self.context:
            raise ValueError(f"length ({self.length}) must not exceed context ({self.context})")
        return self


class PackagedBase(Prompted):
    """A base that has been built before and lies in a directory, such as the storyteller that comes with rewardgrid."""

    kind: Literal["packaged"] = "packaged"
    path: str = Field(description="directory with model/, both prompt tables and provenance.json")

    @property
    def files(self) -> dict[str, Path]:
        """The file that names the hashes of all others, by the configuration's name for it: the same anywhere."""
        path = shipped(self.path) / "provenance.json"
        return {str(Path(self.path) / path.name): path} if path.is_file() else {}

    @property
    def config(self) -> Path:
        """The model's Hugging Face configuration."""
        return shipped(self.path) / "model" / "config.json"


class StorytellerRecipe(Strict):
    """How the storyteller bases are made: stories that a larger model tells, sifted, and LLaMAs pretrained on them."""

    teacher: Teacher | None = Field(
        default=None, description="the model that tells what is missing of the stories; null: those of `told` must do"
    )
    told: str | None = Field(
        default=None, description="directory of shards that were told before, SEED-SHARD.parquet; all of them are used"
    )
    tokens: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?[kM]?$")] = Field(
        default="3M", description="of the teacher, that the stories have together before sifting: 200k, 3M, 40M"
    )
    shard: Count = Field(default=448, description="stories told by one job")
    seed: Seed = Field(default=0, description="of requests and words")
    bases: dict[str, Pretrained] = Field(
        default_factory=dict, description="what is pretrained on the stories, by the name of its directory"
    )

    @property
    def stories(self) -> int:
        """How many stories have so many tokens."""
        number = float(self.tokens.rstrip("kM")) * {"k": 1e3, "M": 1e6}.get(self.tokens[-1], 1)
        return max(1, math.ceil(number / TOKENS_A_STORY))


TOKENS_A_STORY = 180
"""Mean length of what the teacher tells."""


class HubBase(Prompted):
    """A language model and a data set of stories from a Hugging Face hub (the one that HF_ENDPOINT names)."""

    kind: Literal["hub"] = "hub"
    model: str = Field(default="SimpleStories/SimpleStories-1.25M", description="model repository")
    model_revision: str = Field(default="main", description="its branch, tag or commit")
    dataset: str = Field(default="SimpleStories/SimpleStories", description="data set repository, parquet files")
    dataset_revision: str = Field(default="main", description="its branch, tag or commit")
    story_column: str = Field(default="story", description="the column that holds the text")
    train_split: str = Field(default="train", description="the split of the training prompts")
    eval_split: str = Field(default="test", description="the split of the evaluation prompts")


class LocalBase(Prompted):
    """A language model in a Hugging Face directory on this machine, and a file of stories."""

    kind: Literal["local"] = "local"
    model: str = Field(description="directory with config.json, tokenizer.json and *.safetensors")
    stories: str = Field(description=".txt (one story a line) or .parquet")
    eval_stories: str | None = Field(
        default=None, description="stories of the evaluation prompts; without them every tenth of `stories`"
    )
    story_column: str = Field(default="story", description="the column that holds the text, in a .parquet")

    @property
    def files(self) -> dict[str, Path]:
        """The files that decide what the base is, those that exist."""
        named = [Path(name) for name in (self.stories, self.eval_stories) if name]
        inside = [path for path in sorted(Path(self.model).glob("*")) if path.suffix in (".safetensors", ".json")]
        return {str(path): path for path in [*named, *inside] if path.is_file()}

    @property
    def config(self) -> Path:
        """The model's Hugging Face configuration."""
        return Path(self.model) / "config.json"


Recipe = Annotated[HubBase | LocalBase | PackagedBase, Field(discriminator="kind")]


def is_there(recipe: Recipe) -> bool:
    """Whether a base can be looked for where the recipe says; that of a hub always."""
    if isinstance(recipe, LocalBase):
        return Path(recipe.model).is_dir()
    return isinstance(recipe, HubBase) or (shipped(recipe.path) / "provenance.json").is_file()


def model_config(recipe: Recipe) -> dict[str, Any]:
    """The Hugging Face configuration of a recipe's model; empty where its files are not on this machine (yet).

    Raises:
        UserError: the file holds no JSON object.
    """
    if isinstance(recipe, HubBase) or not recipe.config.is_file():
        return {}
    return read_object(recipe.config)


def read_recipe(text: str, source: str) -> Recipe:
    """Read a recipe from JSON text.

    Raises:
        ConfigError: with every problem; ``source`` is named as the file.
    """
    kinds: dict[str, type[Recipe]] = {"hub": HubBase, "local": LocalBase, "packaged": PackagedBase}
    try:
        kind = json.loads(text)["kind"]
        model = kinds[kind]
    except (json.JSONDecodeError, TypeError, KeyError):
        fix = f'write a JSON object with "kind" one of {", ".join(kinds)}'
        raise ConfigError([Problem(source, "kind", text[:60], fix)]) from None
    return validated(model, text, source)


def recipe_hash(recipe: Prompted) -> str:
    """The identity of what a recipe makes: 10 hex digits. A local recipe counts its files' bytes too."""
    identity = {
        "version": BASE_VERSION,
        "recipe": recipe.model_dump(mode="json"),
        "files": {name: sha256(path) for name, path in recipe.files.items()}
        if isinstance(recipe, LocalBase | PackagedBase)
        else {},
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
