"""The reference engine: TRL's GRPOTrainer, set so that its loss is the study's, with our sampler in its rollouts.

TRL supplies the loss, the reference model, PEFT's LoRA and the optimizer loop; it is what the native engine is checked
against. Four things are ours: completions (exact sampling from the run's own draws), the two adapters of a routing
cell (PEFT's multi-adapter support loses one of them inside TRL), checkpoints (safetensors instead of pickle), and the
estimates of the KL that TRL lacks. These and the scale of adapters are written here once more, from their definitions:
an error in :mod:`rewardgrid.train.grpo` or :func:`rewardgrid.train.routing.adapters_of` is not made on both sides.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
warnings.filterwarnings("ignore", message=".*TRL_EXPERIMENTAL.*")

import transformers
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rewardgrid.base.load import Base
from rewardgrid.lm.adapters import adapted, channel_scale, initial, merge
from rewardgrid.lm.draws import generator
from rewardgrid.lm.foreign import Foreign
from rewardgrid.lm.hf.layout import from_hf
from rewardgrid.lm.hf.models import begin_adapter, load_module, whole_state
from rewardgrid.lm.hf.peft import PREFIX, TARGETS, from_peft, to_peft
from rewardgrid.lm.memory import keep_freed_memory
from rewardgrid.lm.model import Weights, token_logps
from rewardgrid.lm.sampler import Completions, sample
from rewardgrid.lm.shape import Shape
from rewardgrid.study.cell import SHARED_ALPHA, Cell
from rewardgrid.study.study import Recording
from rewardgrid.train.engines import check_engine
from rewardgrid.train.grpo import k3, mean_over
from rewardgrid.train.keeper import Keeper
from rewardgrid.train.own import OwnCodeError
from rewardgrid.train.record import Outcome
from rewardgrid.train.rollout import (
    Assessor,
    Draws,
    Rollout,
    with_eos,
)
from rewardgrid.train.routing import FORGET, active_adapters, adapters_of, reach
from rewardgrid.train.stop_rule import Watch
from rewardgrid.train.stopping import asked_to_stop
from rewardgrid.train.weights import frozen_base


def settings(cell: Cell, directory: str, steps: int, device: torch.device) -> GRPOConfig:
    """Every TRL default that matters, set explicitly: several have moved between versions."""
    return GRPOConfig(
        output_dir=directory,
        max_steps=steps,
        per_device_train_batch_size=cell.batch_size,
        num_generations=cell.num_generations,
        max_completion_length=cell.max_new_tokens,
        steps_per_generation=1,
        num_iterations=cell.num_iterations,
        gradient_accumulation_steps=1,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=cell.repetition_penalty,
        # TRL has k3 alone: the others are added to its loss (see _compute_loss).
        beta=cell.beta if cell.kl_estimator == "k3" else 0.0,
        loss_type=cell.loss_type,
        scale_rewards=cell.scale_rewards,
        epsilon=cell.epsilon,
        epsilon_high=cell.epsilon_high,
        importance_sampling_level="token",
        use_bias_correction_kl=False,
        learning_rate=cell.lr,
        lr_scheduler_type=cell.lr_scheduler_type,
        # Less than 1 is a share of all steps to transformers, which once called it warmup_ratio.
        warmup_steps=cell.warmup_steps if cell.warmup_ratio is None else cell.warmup_ratio,
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        max_grad_norm=cell.max_grad_norm,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        # The data set already holds the prompts of every step in order.
        shuffle_dataset=False,
        seed=cell.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=False,
    )


class AdaptedLinear(nn.Module):
    """A frozen linear layer with a routing cell's adapters side by side.

    ``reach`` is shared by all layers of a model: (1, B, R), whose parameters each sequence's gradient reaches.
    """

    scale: Tensor

    def __init__(self, linear: nn.Linear, a: Tensor, b: Tensor, scale: Tensor, reach: dict[str, Tensor | None]) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias  # of a model that is frozen
        self.lora_A, self.lora_B = nn.Parameter(a), nn.Parameter(b)
        self.register_buffer("scale", scale)
        self.reach = reach

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, in) -> (B, T, out)."""
        if not torch.is_grad_enabled():  # a token at a time: cheaper than what `adapted` does for whole sequences
            return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.lora_A) * self.scale, self.lora_B)
        out = adapted(
            x.reshape(1, -1, x.shape[-1]),
            self.weight.unsqueeze(0),
            self.lora_A.unsqueeze(0),
            self.lora_B.unsqueeze(0),
            self.scale.unsqueeze(0),
            (self.weight.shape[0],),
            self.reach["rows"],
        )
        out = out if self.bias is None else out + self.bias
        return out.reshape(*x.shape[:-1], -1)


class Trainer(GRPOTrainer):
    """GRPOTrainer for one cell: completions from the cell's own draws, gradients routed by their labels."""

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self, cell: Cell, base: Base, steps_done: int, device: torch.device, own_rollouts: bool = True
    ) -> None:
        self.cell, self.base, self.steps_done = cell, base, steps_done
        self.adapters = adapters_of(cell)
        check_engine(cell, base.config, str(base.model_dir / "config.json"))
        self.shape, self.frozen = frozen_base(base)
        if isinstance(self.shape, Foreign):
            self.shape.module.to(device)
        self.frozen = {key: weight.to(device) for key, weight in self.frozen.items()}
        self.assessor = Assessor([cell], base, device)
        self.pool = with_eos(base.train_prompts().ids, cell, base.vocabulary.eos)
        self.shared_reach: dict[str, Tensor | None] = {"rows": None}
        self.place = device
        self.watch = Watch.of([cell], base, self.shape, self.frozen) if cell.stop_when else None
        self.scratch = tempfile.TemporaryDirectory(prefix="rewardgrid-trl-")
        self.rollout: Rollout | None = None
        self.schedule: Any = None
        self.row: dict[str, float] = {}
        path = str(base.model_dir)
        model = load_module(base.model_dir)
        # Padding is [EOS], which a prompt may hold (prompt_eos): its embedding is trained like any other.
        model.get_input_embeddings().padding_idx = None
        if cell.is_routing:
            self._install(model)
        lora = None
        if cell.method == "lora":
            alphas = {None: cell.rank, "constant": SHARED_ALPHA, "sqrt": math.sqrt(SHARED_ALPHA)}
            lora = LoraConfig(
                r=cell.rank,
                lora_alpha=alphas[cell.adapter_alpha],
                use_rslora=cell.adapter_alpha == "sqrt",  # alpha / sqrt(rank)
                lora_dropout=0.0,
                bias="none",
                target_modules="all-linear" if isinstance(self.shape, Foreign) else TARGETS,
                task_type="CAUSAL_LM",
            )
        texts = base.train_prompts().text
        steps = cell.max_steps - steps_done
        prompts = [texts[place % len(texts)] for place in range(steps * cell.prompts_per_step)]
        super().__init__(
            model=model,
            reward_funcs=_paid if own_rollouts else self._score,
            args=settings(cell, self.scratch.name, steps, device),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            # tokenizer.json as it stands; AutoTokenizer makes a Qwen2's anew, as byte-level BPE whatever it was.
            processing_class=PreTrainedTokenizerFast.from_pretrained(path, padding_side="left"),
            peft_config=lora,
            rollout_func=_rollout if own_rollouts else None,
        )
        if cell.method == "lora":
            if isinstance(self.shape, Foreign):
                begin_adapter(self.model, self.adapters[0], cell.seed)
                return
            fresh = to_peft(self.shape, initial(self.shape, self.adapters, cell.seed), self.adapters, "default")
            self._load({"default": fresh})

    # --- adapters --------------------------------------------------------------------------------------

    def _install(self, model: nn.Module) -> None:
        """Freeze the model and put a routing cell's adapters beside each projection."""
        assert isinstance(self.shape, Shape)
        model.requires_grad_(False)
        start = initial(self.shape, self.adapters, self.cell.seed)
        tensors = [to_peft(self.shape, start, self.adapters, adapter.name) for adapter in self.adapters]
        cell = self.cell
        assert cell.rank is not None
        assert cell.forget_rank is not None
        forget = 1.0 if cell.adapter_alpha == "own_rank" else cell.rank / cell.forget_rank
        scale = torch.tensor([1.0] * cell.rank + [forget] * cell.forget_rank)
        for name, module in list(model.named_modules()):
            if name.split(".")[-1] in TARGETS:
                key = f"{PREFIX}{name}"
                a = torch.cat([each[f"{key}.lora_A.weight"] for each in tensors])
                b = torch.cat([each[f"{key}.lora_B.weight"] for each in tensors], 1)
                parent = model.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.split(".")[-1], AdaptedLinear(module, a, b, scale, self.shared_reach))

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The trained weights under the names of Hugging Face (``model``) or PEFT (one entry per adapter)."""
        state = {key: value.detach() for key, value in self.model.state_dict().items()}
        if self.cell.method == "full":
            return {"model": whole_state(self.model)}
        if self.cell.method == "lora":
            return {
                "default": {key.replace(".default.", "."): value for key, value in state.items() if ".lora_" in key}
            }
        found, start = {}, 0
        for adapter in self.adapters:
            stop = start + adapter.rank
            found[adapter.name] = {
                f"{PREFIX}{key}.weight": value[start:stop] if key.endswith("A") else value[:, start:stop]
                for key, value in state.items()
                if key.endswith((".lora_A", ".lora_B"))
            }
            start = stop
        return found

    @torch.no_grad()
    def _load(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put PEFT tensors of the one adapter into the model."""
        for name, parameter in self.model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(tensors["default"][name.replace(".default.", ".")])

    def merged(self, mode: str | None = None) -> Weights:
        """Weights (C = 1) to sample from, with the adapters of an evaluation mode switched on (None: all)."""
        if isinstance(self.shape, Foreign):
            return whole_state(self.model)
        tensors = self.tensors()
        if not self.adapters:
            return from_hf(self.shape, tensors["model"])
        side_by_side = from_peft(self.shape, [(adapter, tensors[adapter.name]) for adapter in self.adapters])
        scale = channel_scale(self.adapters, active_adapters(mode) if mode else None)
        return merge(self.shape, self.frozen, side_by_side, scale.unsqueeze(0).to(self.place))

    # --- the step --------------------------------------------------------------------------------------

    @property
    def step_number(self) -> int:
        """Optimizer steps done since the cell's beginning."""
        return self.steps_done + int(self.state.global_step)

    @torch.no_grad()
    def make_rollout(self) -> Rollout:
        """The completions of this step, from the cell's own draws."""
        cell = self.cell
        draws = Draws.of_step([cell], self.pool, [self.step_number // cell.num_iterations]).to(self.place)
        penalty = torch.tensor([cell.repetition_penalty], device=self.place) if cell.repetition_penalty != 1 else None
        done = sample(self.shape, self.merged(), draws.prompts, draws.tokens, self.base.vocabulary.eos, penalty)
        said = self.assessor.ask(draws.prompts, done, [f"step {self.step_number + 1}"])
        return self.assessor.assess(draws, done, said)

    def _score(self, prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        """Rewards of TRL's own completions (used to time it as it is usually run)."""
        starts = torch.tensor([self.processing_class(prompts)["input_ids"]])
        longest = max(map(len, completion_ids))
        eos = self.base.vocabulary.eos
        ids = torch.tensor([[*row, *[eos] * (longest - len(row))] for row in completion_ids]).unsqueeze(0)
        lengths = torch.tensor([len(row) for row in completion_ids])
        mask = (torch.arange(longest) < lengths.unsqueeze(1)).unsqueeze(0)
        done = Completions(ids, mask, eos)
        said = self.assessor.ask(starts, done, [f"step {self.step_number + 1}"])
        paid: list[float] = self.assessor.scores(done, said)[0].reward[0].tolist()
        return paid

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # TRL shuffles the batch with the global generator: make that a function of the step too.
        torch.manual_seed(int(generator(self.cell.seed, "trl shuffle", self.step_number).integers(2**31)))
        out: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.cell.is_routing and self.rollout is not None:
            out["flagged"] = self.rollout.labels.flagged[0]
        return out

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        if "flagged" in inputs:
            is_forget = [[adapter.name == FORGET for adapter in self.adapters for _ in range(adapter.rank)]]
            exclusive = self.cell.routing_mode == "exclusive"
            channels = torch.tensor(is_forget, device=self.place)
            self.shared_reach["rows"] = reach(inputs["flagged"].unsqueeze(0), channels, exclusive)
        loss: Tensor = super()._compute_loss(model, inputs)
        if self.cell.kl_estimator in ("k1", "k2"):
            loss = loss + self._other_kl(inputs)
        self.row = {
            "loss": float(loss.detach()),
            "kl": self._metrics["train"]["kl"][-1] if self.beta else self._divergence(),
            "entropy": self._metrics["train"]["entropy"][-1],
        }
        return loss

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **options: Any) -> Any:
        """TRL's, which the loss is made of; the last ones are kept for :meth:`_other_kl`."""
        found = super()._get_per_token_logps_and_entropies(*arguments, **options)
        self.logps = found[0]
        return found

    def _other_kl(self, inputs: dict[str, Any]) -> Tensor:
        """What k1 or k2 adds to the loss, averaged as its other part is.

        With r = reference probability / probability of a sampled token, k1 is -log r and k2 is (log r)^2 / 2 (Schulman
        2020, "Approximating KL divergence"); the gradient is autograd's.
        """
        cell, mask = self.cell, inputs["completion_mask"].to(self.logps.dtype)
        sequences = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1).unsqueeze(0)
        with torch.no_grad():
            reference = token_logps(self.shape, self.frozen, sequences, inputs["prompt_ids"].shape[1])[0]
        log_r = reference - self.logps
        per_token = {"k1": -log_r, "k2": log_r**2 / 2}[cell.kl_estimator] * mask
        if cell.loss_type == "grpo":
            mean = (per_token.sum(1) / mask.sum(1)).mean()
        elif cell.loss_type == "dr_grpo":
            mean = per_token.sum() / (cell.batch_size * cell.max_new_tokens)
        else:
            mean = per_token.sum() / mask.sum()
        return cell.beta * mean

    @torch.no_grad()
    def _divergence(self) -> float:
        """The mean k3 of the rollout, which TRL leaves out where beta is 0."""
        if self.rollout is None:
            return math.nan
        logps, reference = (
            token_logps(self.shape, weights, self.rollout.sequences, self.cell.prompt_length)
            for weights in (self.merged(), self.frozen)
        )
        return float(mean_over(k3(logps, reference).flatten(), self.rollout.completions.mask.flatten()))

    @torch.no_grad()
    def unlikely(self) -> dict[str, float]:
        """What ``stop_when`` is decided by, of the rollout; nothing without one."""
        if self.watch is None or self.rollout is None:
            return {}
        reference = token_logps(self.shape, self.frozen, self.rollout.sequences, self.cell.prompt_length)
        return {key: float(share[0]) for key, share in self.watch.shares(reference, self.rollout.completions).items()}

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW without weight decay; the same implementation after a resume."""
        if self.optimizer is None:
            parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            args = self.args
            self.optimizer = torch.optim.AdamW(
                parameters,
                lr=self.cell.lr,
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
                weight_decay=0.0,
                foreach=False,
            )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule of the whole run, also after a resume."""
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: self.rate(self.steps_done + step)
            )
        return self.lr_scheduler

    def rate(self, step: int) -> float:
        """Share of the peak learning rate at a step of the whole run, from 0."""
        cell, decay_steps = self.cell, self.cell.decay_steps or self.cell.max_steps
        if cell.lr_scheduler_type == "linear" and not self.args.warmup_steps:
            return max(0.0, 1 - step / decay_steps)  # transformers' but for the last bit
        if self.schedule is None:
            nothing = torch.optim.SGD([torch.zeros(1)], lr=1.0)
            warmup = self.args.get_warmup_steps(decay_steps)
            made = transformers.get_scheduler(cell.lr_scheduler_type, nothing, warmup, decay_steps)
            self.schedule = getattr(made, "lr_lambdas")[0]  # noqa: B009 - `constant` and others are all LambdaLR
        return float(self.schedule(step))

    def state_tensors(self) -> dict[str, Tensor]:
        """Trained parameters and their moments, to continue from."""
        state: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                state[f"parameters/{name}"] = parameter
                for key, value in self.optimizer.state[parameter].items():
                    state[f"{key}/{name}"] = value
        return {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put parameters and moments back to where :meth:`state_tensors` was taken."""
        self.create_optimizer()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[f"parameters/{name}"])
                self.optimizer.state[parameter] = {
                    key: tensors[f"{key}/{name}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")
                }


def _rollout(prompts: list[str], trainer: Trainer) -> dict[str, Any]:
    """TRL's hook for own completions. Which prompts a step has is the cell's business, not the data set's."""
    rollout = trainer.rollout = trainer.make_rollout()
    lengths = rollout.completions.lengths[0].tolist()
    ids = rollout.completions.ids[0].tolist()
    return {
        "prompt_ids": rollout.sequences[0, :, : trainer.cell.prompt_length].tolist(),
        "completion_ids": [row[:length] for row, length in zip(ids, lengths, strict=True)],
        "logprobs": None,
        "paid": rollout.rewards[0].tolist(),
    }


def _paid(completions: list[str], paid: list[float], **_: Any) -> list[float]:
    """TRL's reward function: what the rollout was paid."""
    return paid


class Recorder(TrainerCallback):
    """Freezes a run that has diverged, and tells the keeper of each step."""

    def __init__(self, keeper: Keeper, trainer: Trainer) -> None:
        self.keeper, self.trainer = keeper, trainer
        self.began = time.perf_counter()
        self.alive = True

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the step's clock."""
        self.began = time.perf_counter()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """A step that has diverged must not change the weights."""
        trainer = self.trainer
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
        kl = trainer.row["kl"]
        if not finite or kl > trainer.cell.kl_cap or not math.isfinite(trainer.row["loss"]):
            for gradient in gradients:
                gradient.zero_()
            for group in trainer.optimizer.param_groups:
                group["lr"] = 0.0
            self.alive = False

    def on_log(self, _: Any, __: Any, control: Any, logs: Mapping[str, Any], **___: Any) -> None:
        """After each step: its row of the history, and what else is due."""
        trainer, keeper, cell, rollout = self.trainer, self.keeper, self.trainer.cell, self.trainer.rollout
        if "grad_norm" not in logs or rollout is None:
            return  # the summary at the end of training
        step = trainer.step_number
        row: dict[str, Any] = {key: float(value[0]) for key, value in trainer.assessor.summary(rollout).items()}
        row |= (
            trainer.unlikely()
            | trainer.row
            | {
                "step": step,
                "grad_norm": float(logs["grad_norm"]),
                "lr": cell.lr * trainer.rate(step - 1),
                "seconds": time.perf_counter() - self.began,
            }
        )
        keeper.after_step(row, rollout, 0, trainer, self.alive)
        if keeper.outcome is not None:
            control.should_training_stop = True
        elif step % cell.num_iterations == 0 and asked_to_stop():
            raise keeper.stop(trainer)


def train(
    cells: Sequence[Cell], base: Base, directories: Sequence[Path], recording: Recording, device: str | None = None
) -> list[Outcome]:
    """Train cells one after another; the same entry point and files as the native engine's."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    return [_train_one(cell, base, path, recording, place) for cell, path in zip(cells, directories, strict=True)]


def _train_one(cell: Cell, base: Base, directory: Path, recording: Recording, device: torch.device) -> Outcome:
    keeper = Keeper(cell, base, directory, recording)
    try:
        return keeper.outcome or _train_kept(keeper, base, device)
    finally:
        keeper.release()


def _train_kept(keeper: Keeper, base: Base, device: torch.device) -> Outcome:
    trainer = Trainer(keeper.cell, base, keeper.step, device)
    try:
        if keeper.found:
            trainer.restore(keeper.found.tensors)
        trainer.add_callback(Recorder(keeper, trainer))
        # Progress is ours; TRL's own callback prints a dictionary per step.
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    except OwnCodeError as error:
        keeper.fail(trainer, error)
        raise
    finally:
        trainer.scratch.cleanup()
    assert keeper.outcome is not None
    return keeper.outcome
