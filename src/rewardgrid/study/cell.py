"""A cell: one training run, described by a frozen record of everything that changes its result."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from rewardgrid.study.errors import did_you_mean
from rewardgrid.study.own import Code

RESULTS_VERSION = 5
"""Bumped by hand when an edit changes what a spec trains to: every cell then has a new path."""
METRICS_VERSION = 1
"""Bumped by hand when an edit changes what is measured of a cell: every cell is then measured again."""

Method = Literal["full", "lora", "routing"]
Reward = Literal[
    "sentence_length_5",
    "sentence_length_10",
    "sentence_length_10_smooth",
    "sentence_length_10_smooth_with_happy",
    "happy_count",
    "happy_binary",
]
Engine = Literal["trl", "native"]
Precision = Literal["fp32", "tf32", "bf16"]
RoutingMode = Literal["shared", "exclusive"]
LoraAlpha = Literal["rank", "constant", "sqrt"]
RoutingAlpha = Literal["retain_rank", "own_rank"]
LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo"]
ScaleRewards = Literal["group", "batch", "none"]
KlEstimator = Literal["k1", "k2", "k3", "none"]
Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]
EvalMode = Literal["both", "retain_only", "forget_only"]

REWARDS: tuple[Reward, ...] = get_args(Reward)
REWARD_MEANINGS: dict[Reward, str] = {
    "sentence_length_5": "share of sentences of exactly 5 tokens",
    "sentence_length_10": "share of sentences of exactly 10 tokens",
    "sentence_length_10_smooth": "mean over sentences of 1 - 0.2 |10 - tokens|, and never less than 0 for one",
    "sentence_length_10_smooth_with_happy": 'the same and 0.1 for each "happy", of at most 5; at most 1 in all',
    "happy_count": 'count of "happy", also within words; the only one that can be more than 1',
    "happy_binary": '1 if there is a "happy"',
}
EVAL_MODES: tuple[EvalMode, ...] = ("both", "retain_only", "forget_only")
HAPPY_REWARDS: tuple[Reward, ...] = ("sentence_length_10_smooth_with_happy", "happy_count", "happy_binary")
SHARED_ALPHA = 8
"""Of LoRA where alpha is not the rank: the middle of the ranks 1 to 64, where the published scale of 1 and the others
meet."""
BASE_REWARD: Reward = "sentence_length_10_smooth"
"""Of completions that are not eligible for the full reward, unless their cell says otherwise."""
HACK_THRESHOLD = 3
"""A completion with at least this many "happy" is hacked, unless its cell says otherwise."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _number(value: Any) -> object:
    """YAML reads ``1e-5`` as text: accept text that is a number, and nothing else that is not one."""
    if (isinstance(value, str) and _NUMBER.fullmatch(value)) or type(value) in (int, float):
        try:
            return float(value) + 0.0  # -0.0 + 0.0 is 0.0: equal numbers must have equal digits
        except OverflowError:
            return math.inf
    return value


Number = Annotated[float, BeforeValidator(_number), Field(strict=True, allow_inf_nan=False)]
Share = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]


class Strict(BaseModel):
    """A configuration record: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ROUTING_DEFAULTS: dict[str, Any] = {
    "routing_mode": "shared",
    "rh_eligible_frac": 0.5,
    "routing_frac": 1.0,
    "label_noise_frac": 0.0,
    "adapter_alpha": "retain_rank",
    "hack_threshold": HACK_THRESHOLD,
    "eval_every": 10,
    "eval_samples": 64,
    "eval_modes": EVAL_MODES,
}


LEFT_OUT: dict[str, Any] = {
    "method": "full",
    "rank": None,
    "forget_rank": None,
    "reward": "sentence_length_10_smooth",
    "lr": 1e-5,
    "beta": 0.02,
    "repetition_penalty": 1.1,
    "batch_size": 32,
    "num_generations": 16,
    "max_steps": 2000,
    "decay_steps": None,
    "max_new_tokens": 128,
    "prompt_tokens": 8,
    "prompt_eos": False,
    "seed": 42,
    "max_grad_norm": 1.0,
    "kl_cap": 1000.0,
    "routing_mode": None,
    "rh_eligible_frac": None,
    "routing_frac": None,
    "label_noise_frac": None,
    "adapter_alpha": None,
    "hack_threshold": None,
    "eval_every": None,
    "eval_samples": None,
    "eval_modes": None,
    "engine": "native",
    "precision": "fp32",
    "base_reward": None,
    "detector": None,
    "own": [],
    "loss_type": "grpo",
    "scale_rewards": "group",
    "epsilon": 0.2,
    "epsilon_high": None,
    "num_iterations": 1,
    "kl_estimator": "k3",
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "warmup_ratio": None,
    "stop_when": None,
}
"""What a spec's identity does not mention, so that a new setting renames no cell that was trained before there was one.

Frozen: a new setting comes here with the value that all cells had until then; nothing that stands here is ever changed,
not even when a default is.
"""


class StopWhen(Strict):
    """When a cell is stopped before its last step (see :mod:`rewardgrid.train.stop_rule`)."""

    model_config = ConfigDict(serialize_by_alias=True)

    verdict: Literal["borderline", "degenerate"] = Field(description="what its rollouts are, or worse")
    steps: Count = Field(alias="for", description="optimizer steps in a row")

    def __str__(self) -> str:
        return f"{self.verdict} for {self.steps} {'step' if self.steps == 1 else 'steps'}"


class Cell(Strict):
    """One training run. The defaults are the published study's; ``config/config.yaml`` shows them too."""

    base: str = Field(default="storyteller", description="name of the frozen language model the cell starts from")
    base_recipe: str = Field(
        default="",
        pattern=r"^([0-9a-f]{10})?$",
        description="hash of the base's recipe; filled in from `bases`, not written by hand",
    )
    method: Method = Field(
        default="full",
        description="full: every weight is trained; lora: one adapter; routing: retain and forget adapters",
    )
    rank: Count | None = Field(default=None, description="rank of the LoRA adapter, or of the retain adapter")
    forget_rank: Count | None = Field(
        default=None, description="rank of the forget adapter (method routing; default: the same as rank)"
    )
    reward: Reward | str = Field(
        default="sentence_length_10_smooth", description="what a completion is paid for; one of these or of `rewards`"
    )
    lr: Annotated[Number, Field(gt=0)] = Field(
        default=1e-5, description="peak learning rate, falling to 0 over decay_steps (linearly: lr_scheduler_type)"
    )
    beta: Annotated[Number, Field(ge=0)] = Field(default=0.02, description="weight of the KL to the base")
    kl_estimator: KlEstimator = Field(
        default="k3",
        description="Schulman's estimate of that KL, per token, in the loss (recorded is k3); none: no KL in the loss, "
        "which sets beta to 0",
    )
    loss_type: LossType = Field(
        default="grpo",
        description="what a completion's loss is averaged over: its own tokens (grpo), max_new_tokens (dr_grpo) or all "
        "tokens of the batch (dapo, or bnpo)",
    )
    scale_rewards: ScaleRewards = Field(
        default="group",
        description="what advantages are divided by: the standard deviation of the group, of the batch, or nothing "
        "(none)",
    )
    num_iterations: Count = Field(
        default=1, description="updates for each rollout; max_steps and the history count updates"
    )
    epsilon: Annotated[Number, Field(gt=0, lt=1)] = Field(
        default=0.2, description="the ratio to the policy that wrote a token is clipped to 1 - epsilon"
    )
    epsilon_high: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="and to 1 + epsilon_high (default: epsilon)"
    )
    repetition_penalty: Annotated[Number, Field(ge=1)] = Field(
        default=1.1, description="penalty on tokens already present, in rollouts only (1 = none)"
    )
    batch_size: Count = Field(default=32, description="completions per step (prompts x num_generations)")
    num_generations: Annotated[int, Field(strict=True, ge=2)] = Field(
        default=16, description="completions per prompt: the group that advantages are taken over"
    )
    max_steps: Count = Field(default=2000, description="optimizer steps")
    decay_steps: Count | None = Field(
        default=None,
        description="steps after which the learning rate would be 0 (default: max_steps); more of them make the cell "
        "the beginning of a longer one",
    )
    lr_scheduler_type: Schedule = Field(
        default="linear", description="how the learning rate falls from its peak over decay_steps, as in transformers"
    )
    warmup_steps: Annotated[int, Field(strict=True, ge=0)] = Field(
        default=0, description="of those, steps over which the learning rate first rises from 0 to its peak"
    )
    warmup_ratio: Annotated[Number, Field(gt=0, lt=1)] | None = Field(
        default=None, description="the same as a share of decay_steps, rounded up to a whole step, as in transformers"
    )
    stop_when: StopWhen | None = Field(
        default=None,
        description="end the cell once its rollouts have been that unlikely to the base for so many steps in a row: "
        "{verdict: degenerate, for: 50}; a cell that is stopped is in no mean",
    )
    max_new_tokens: Count = Field(default=128, description="longest completion, in tokens")
    prompt_tokens: Count = Field(default=8, description="length of every prompt, in tokens")
    prompt_eos: bool = Field(
        default=False,
        strict=True,
        description="append [EOS] to training prompts, as the published training did by accident",
    )
    seed: Seed = Field(default=42, description="seed of prompts, rollouts, labels and adapters")
    max_grad_norm: Annotated[Number, Field(gt=0)] = Field(default=1.0, description="gradient norm is clipped here")
    kl_cap: Annotated[Number, Field(gt=0)] = Field(
        default=1000.0,
        description="a step whose mean k3 KL exceeds this ends the cell as diverged (nats per token)",
    )
    routing_mode: RoutingMode | None = Field(
        default=None,
        description="what an unflagged completion trains: both adapters (shared) or retain alone (exclusive)",
    )
    rh_eligible_frac: Share | None = Field(
        default=None, description="probability that a completion is paid the full, hackable reward"
    )
    base_reward: Reward | str | None = Field(
        default=None,
        description="what a completion is paid that is not eligible for the full reward (default: "
        "sentence_length_10_smooth)",
    )
    routing_frac: Share | None = Field(
        default=None, description="probability that an eligible completion may be routed"
    )
    label_noise_frac: Share | None = Field(
        default=None, description="probability that an unflagged completion is flagged all the same"
    )
    adapter_alpha: LoraAlpha | RoutingAlpha | None = Field(
        default=None,
        description="alpha of the adapters, whose output is multiplied by alpha/rank. Method lora: rank (published, "
        f"default), constant ({SHARED_ALPHA}) or sqrt (sqrt({SHARED_ALPHA} rank), rank-stabilised LoRA); all meet at "
        f"rank {SHARED_ALPHA}. Method routing: retain_rank for both (published, default; scales forget by "
        "rank/forget_rank) or each adapter's own_rank (scale 1)",
    )
    hack_threshold: Count | None = Field(
        default=None,
        description='a completion with at least this many "happy" is hacked, and flagged where it is routed '
        f"(default: {HACK_THRESHOLD}); a baseline without routing may set it too",
    )
    detector: str | None = Field(
        default=None,
        description='one of `detectors`, which says what is hacked instead of a count of "happy"',
    )
    eval_every: Count | None = Field(default=None, description="steps between evaluations by mode during training")
    eval_samples: Count | None = Field(
        default=None, description="completions of each mode in those evaluations, one per evaluation prompt"
    )
    eval_modes: tuple[EvalMode, ...] | None = Field(
        default=None, description="which adapters are active in those evaluations"
    )
    engine: Engine = Field(default="native", description="what trains the cell")
    precision: Precision = Field(default="fp32", description="arithmetic of the native engine")
    own: tuple[Code, ...] = Field(
        default=(),
        description="the code of one's own that it uses, with the hash of its source; filled in from `rewards` and "
        "`detectors`, not written by hand",
    )
    results_version: int = Field(default=RESULTS_VERSION, description="set by rewardgrid, not by hand")

    @model_validator(mode="before")
    @classmethod
    def _fill_routing(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("kl_estimator") == "none":
            values = values | {"beta": 0.0}
        if isinstance(values, dict) and values.get("method") == "routing":
            filled = {**ROUTING_DEFAULTS, "forget_rank": values.get("rank")}
            if values.get("detector") is not None:
                del filled["hack_threshold"]
            if values.get("base_reward") == BASE_REWARD:
                values = values | {"base_reward": None}
            return {**filled, **{key: value for key, value in values.items() if value is not None}}
        if isinstance(values, dict):
            # Spelled out, a default makes no other cell.
            defaults: dict[str, Any] = {"hack_threshold": HACK_THRESHOLD}
            if values.get("method") == "lora":
                defaults["adapter_alpha"] = "rank"
            return values | {key: None for key, value in defaults.items() if values.get(key) == value}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        conflicts = list(_conflicts(self))
        if conflicts:
            raise PydanticCustomError("conflict", "settings that do not go together", {"conflicts": conflicts})
        return self

    @property
    def completions_per_prompt(self) -> int:
        """The group size G of GRPO."""
        return self.num_generations

    @property
    def prompts_per_step(self) -> int:
        """Prompts in one optimizer step."""
        return self.batch_size // self.num_generations

    @property
    def prompt_length(self) -> int:
        """Tokens fed to the model before the first sampled one, in training."""
        return self.prompt_tokens + int(self.prompt_eos)

    @property
    def warmup(self) -> int:
        """Steps over which the learning rate first rises, however they are given."""
        if self.warmup_ratio is None:
            return self.warmup_steps
        return math.ceil(self.warmup_ratio * (self.decay_steps or self.max_steps))

    @property
    def is_routing(self) -> bool:
        """Whether the cell has two adapters."""
        return self.method == "routing"

    @property
    def hacked_from(self) -> int:
        """A completion with at least this many "happy" is hacked."""
        return self.hack_threshold or HACK_THRESHOLD

    @property
    def base_id(self) -> str:
        """Directory name of the base under ``results/base``: name and recipe hash."""
        return f"{self.base}-{self.base_recipe}"

    def canonical_json(self) -> str:
        """The whole spec as one line of JSON, equal for equal cells: keys sorted, shortest float digits."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    def identity(self) -> str:
        """The spec as :meth:`canonical_json` has it, without what is ``LEFT_OUT``."""
        absent = object()
        # Where a source lies changes no result.
        dumped = self.model_dump(mode="json", exclude={"own": {"__all__": {"file"}}})
        said = {key: value for key, value in dumped.items() if value != LEFT_OUT.get(key, absent)}
        return json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @property
    def name(self) -> str:
        """The cell's directory name: a readable slug and 10 hex digits of its identity's SHA-256."""
        # A file name holds 255 bytes; the hash is the identity, whatever is cut from the slug.
        return f"{slug(self)[:160]}-{hashlib.sha256(self.identity().encode()).hexdigest()[:10]}"


def _conflicts(cell: Cell) -> list[tuple[str, str]]:
    """Pairs (key, what to write instead) of settings that contradict one another."""
    found: list[tuple[str, str]] = []
    if cell.batch_size % cell.num_generations:
        found.append(
            (
                "batch_size",
                f"write a multiple of num_generations ({cell.num_generations}): groups must be whole",
            )
        )
    if cell.decay_steps is not None and cell.decay_steps < cell.max_steps:
        found.append(("decay_steps", f"write max_steps ({cell.max_steps}) or more: later steps would learn nothing"))
    warm = "warmup_steps" if cell.warmup_ratio is None else "warmup_ratio"
    if cell.warmup_steps and cell.warmup_ratio is not None:
        found.append((warm, f"write it or warmup_steps ({cell.warmup_steps}), not both: they say the same thing"))
    elif cell.warmup and cell.warmup >= (cell.decay_steps or cell.max_steps):
        steps = cell.decay_steps or cell.max_steps
        less = f"less than {steps}, the steps of the schedule"
        found.append((warm, f"write {less if warm == 'warmup_steps' else f'a share that makes {less}'}"))
    if cell.warmup and cell.lr_scheduler_type == "constant":
        found.append(("lr_scheduler_type", f"write constant_with_warmup, or no {warm}"))
    if cell.method == "full" and cell.rank is not None:
        found.append(("rank", 'remove it, or write "method: lora": full fine-tuning has no adapter'))
    if cell.method != "full" and cell.rank is None:
        found.append(("rank", f"write the adapter's rank (1 or more): method {cell.method} needs it"))
    alphas = {"full": (), "lora": get_args(LoraAlpha), "routing": get_args(RoutingAlpha)}[cell.method]
    if cell.adapter_alpha is not None and cell.adapter_alpha not in alphas:
        fix = f"write one of {', '.join(alphas)}" if alphas else "remove it: full fine-tuning has no adapter"
        found.append(("adapter_alpha", fix))
    if cell.method != "routing":
        for key in ("forget_rank", "base_reward", *ROUTING_DEFAULTS):
            if key not in ("hack_threshold", "adapter_alpha") and getattr(cell, key) is not None:
                found.append((key, f'remove it, or write "method: routing": method {cell.method} has no two adapters'))
        if cell.hack_threshold is not None and cell.reward in REWARDS and cell.reward not in HAPPY_REWARDS:
            found.append(("hack_threshold", f'remove it: reward {cell.reward} does not pay for "happy"'))
    elif cell.detector is None and cell.reward in REWARDS and cell.reward not in HAPPY_REWARDS:
        allowed = " or ".join(HAPPY_REWARDS)
        found.append(("reward", f'write {allowed}: the detector counts "happy", which this reward does not pay for'))
    elif cell.eval_modes is not None and (not cell.eval_modes or len(set(cell.eval_modes)) < len(cell.eval_modes)):
        found.append(("eval_modes", f"write each mode at most once, and at least one of {', '.join(EVAL_MODES)}"))
    if cell.detector is not None and cell.hack_threshold is not None:
        found.append(("hack_threshold", f'remove it: detector {cell.detector} decides, not a count of "happy"'))
    found.extend(unknown_code(cell.model_dump(), [code.name for code in cell.own]))
    if cell.engine == "trl" and cell.precision != "fp32":
        found.append(("precision", 'write fp32, or "engine: native": the trl engine computes in fp32 only'))
    return found


def unknown_code(values: Mapping[str, Any], own: Collection[str]) -> Iterator[tuple[str, str]]:
    """Rewards and detectors, as (key, what to write), that are neither rewardgrid's nor among one's own."""
    for key in ("reward", "base_reward", "detector"):
        known = list(own) if key == "detector" else [*REWARDS, *own]
        name = values.get(key)
        if isinstance(name, str) and name not in known:
            block = "detectors" if key == "detector" else "rewards"
            choice = f"write one of {', '.join(known)}, or a name" if known else "write a name"
            yield key, f"{choice} that `{block}` defines;{did_you_mean(name, known)}".removesuffix(";")


def format_number(value: float) -> str:
    """A number as people write it, the same for equal numbers: ``3e-4``, ``0.003``, ``1.1``, ``32``."""
    if isinstance(value, int):
        return str(value)
    digits = Decimal(repr(float(value))).normalize()
    if digits and not -4 < digits.adjusted() < 6:
        sign, numbers, exponent = digits.as_tuple()
        mantissa = str(numbers[0]) + ("." + "".join(map(str, numbers[1:])) if len(numbers) > 1 else "")
        return f"{'-' if sign else ''}{mantissa}e{int(exponent) + len(numbers) - 1}"
    return f"{digits:f}"


_REWARD_SLUGS: dict[str, str] = {
    "sentence_length_5": "sl5",
    "sentence_length_10": "sl10",
    "sentence_length_10_smooth": "smooth",
    "sentence_length_10_smooth_with_happy": "smooth-happy",
    "happy_count": "happy-count",
    "happy_binary": "happy-binary",
}
_SLUGS = {
    "beta": "beta",
    "kl_estimator": "kl-",
    "loss_type": "",
    "scale_rewards": "scale-",
    "num_iterations": "iter",
    "epsilon": "eps",
    "epsilon_high": "epshigh",
    "lr_scheduler_type": "",
    "warmup_steps": "warmup",
    "warmup_ratio": "warmup",
    "repetition_penalty": "rep",
    "batch_size": "bs",
    "num_generations": "gen",
    "max_steps": "steps",
    "stop_when": "stop-",
    "decay_steps": "of",
    "max_new_tokens": "tok",
    "prompt_tokens": "prompt",
    "prompt_eos": "eos",
    "max_grad_norm": "clip",
    "routing_mode": "",
    "rh_eligible_frac": "elig",
    "routing_frac": "routed",
    "label_noise_frac": "noise",
    "adapter_alpha": "alpha-",
    "hack_threshold": "hack",
    "base_reward": "else-",
    "detector": "by-",
    "engine": "",
    "precision": "",
}


def slug(cell: Cell) -> str:
    """What differs from the defaults: ``lora-r1_lr3e-4_s42``. Learning rate and seed always show."""
    head: str = cell.method
    if cell.rank is not None:
        head += f"-r{cell.rank}"
    if cell.forget_rank is not None and cell.forget_rank != cell.rank:
        head += f"f{cell.forget_rank}"
    parts = [head]
    if cell.reward != Cell.model_fields["reward"].default:
        parts.append(_REWARD_SLUGS.get(cell.reward, cell.reward.replace("_", "-")))
    parts.append(f"lr{format_number(cell.lr)}")
    for key, short in _SLUGS.items():
        value = getattr(cell, key)
        default = ROUTING_DEFAULTS.get(key) if cell.is_routing else None
        default = Cell.model_fields[key].default if default is None else default
        if value not in (None, default):
            if isinstance(value, StopWhen):
                value = f"{value.verdict}{value.steps}"
            shown = "" if value is True else value if isinstance(value, str) else format_number(value)
            parts.append(f"{short}{shown}".replace("_", "-"))
    parts.append(f"s{cell.seed}")
    return "_".join(parts)


def read_cell(text: str, source: str) -> Cell:
    """Read a spec from its JSON and check it.

    Raises:
        ConfigError: with every problem of the spec; ``source`` is named as the file.
    """
    from rewardgrid.study.problems import validated

    return validated(Cell, text, source)
