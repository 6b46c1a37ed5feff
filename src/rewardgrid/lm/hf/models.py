"""Models that are not computed here: transformers loads them, PEFT adapts them. Code of theirs is never run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewardgrid.lm.adapters import Adapter
from rewardgrid.lm.draws import generator
from rewardgrid.lm.foreign import Foreign
from rewardgrid.lm.hf.peft import PREFIX
from rewardgrid.study.errors import UserError


def load_module(directory: Path) -> Any:
    """The model of a Hugging Face directory as transformers makes it, without dropout: the policy is one distribution.

    Raises:
        UserError: transformers is missing.
    """
    config = _config(directory)
    for key, value in vars(config).items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    return _load(directory, config)[0]


def open_foreign(directory: Path) -> tuple[Foreign, dict[str, Tensor]]:
    """A model of any kind, and its weights by name (see :mod:`rewardgrid.lm.foreign`)."""
    module = load_module(directory)
    return Foreign(module), whole_state(module)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """All weights of a model by name, each once though it has several, LoRA adapters of PEFT added in."""
    state = {
        name.removeprefix(PREFIX).replace(".base_layer.", "."): value.detach()
        for name, value in module.state_dict().items()
        if ".lora_" not in name
    }
    tied = set(getattr(module, "_tied_weights_keys", None) or ())
    first = {value.data_ptr() for name, value in state.items() if name not in tied}
    state = {name: value for name, value in state.items() if name not in tied or value.data_ptr() not in first}
    for name, part in module.named_modules():
        if hasattr(part, "get_delta_weight"):
            key = f"{name.removeprefix(PREFIX)}.weight"
            state[key] = state[key] + part.get_delta_weight("default").detach()
    return state


def with_adapter(directory: Path, adapter: Path) -> dict[str, Tensor]:
    """The weights of a model with a PEFT adapter added in."""
    from peft import PeftModel

    return whole_state(PeftModel.from_pretrained(load_module(directory), adapter))


@torch.no_grad()
def begin_adapter(module: nn.Module, adapter: Adapter, seed: int) -> None:
    """Fill PEFT's fresh adapter as ours are (:func:`rewardgrid.lm.adapters.initial`), each matrix from its own draw."""
    for name, parameter in module.named_parameters():
        if ".lora_A." in name:
            draws = generator(seed, f"adapter {adapter.name} {name}").random(tuple(parameter.shape))
            parameter.copy_(torch.from_numpy((2 * draws - 1) / parameter.shape[1] ** 0.5))
        elif ".lora_B." in name:
            parameter.zero_()


def foreign_sizes(directory: Path) -> dict[str, Any]:
    """Sizes of a model under the usual names: ``vocab_size``, and ``max_position_embeddings`` if that is limited."""
    config = _config(directory)
    names = {key: getattr(config, key, None) for key in ("vocab_size", "max_position_embeddings")}
    return {key: value for key, value in names.items() if value is not None}


def check_foreign(directory: Path, kind: str, constants: tuple[str, ...] = ()) -> None:
    """Make sure that transformers loads a model whole and nothing but it, without code of its own.

    Args:
        kind: its ``model_type``.
        constants: ends of the names of tensors that may be there and are no weights.

    Raises:
        UserError: it does not.
    """
    alone = f"{directory / 'config.json'}: model_type: read {kind!r}; transformers, which alone computes this model,"
    try:
        _, report = _load(directory, _config(directory), ignore_mismatched_sizes=True)  # they are in the report
    except Exception as error:  # the library raises what its validators do, of any kind
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{alone} cannot load it without code of its own: {said}; choose another model") from None
    for wrong in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        keys = sorted(key for key in map(str, report[wrong]) if not key.endswith(constants))
        if keys:
            some = ", ".join(keys[:3])
            raise UserError(
                f"{alone} finds that its weights do not fit config.json ({wrong.replace('_', ' ')}: {some}); fetch the "
                "model again, or choose another one"
            )


def _config(directory: Path) -> Any:
    transformers = _library()
    return transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)


def _load(directory: Path, config: Any, **more: Any) -> tuple[Any, dict[str, Any]]:
    model, report = _library().AutoModelForCausalLM.from_pretrained(
        directory,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        **more,
    )
    return model, report


def _library() -> Any:
    """transformers, told to keep quiet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(
            'a model that the native engine does not compute needs transformers; run: pip install "rewardgrid[trl]"'
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="fan_in_fan_out")  # which PEFT sets as a GPT-2 needs it
    return transformers
