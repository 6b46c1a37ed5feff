"""A cell's name is its identity: equal for equal specs, another for any other spec, and safe as a path."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rewardgrid.study.cell import HAPPY_REWARDS, LEFT_OUT, Cell, format_number, read_cell
from rewardgrid.study.errors import ConfigError

positive = st.floats(min_value=1e-12, max_value=1e9, allow_nan=False)
share = st.floats(min_value=0, max_value=1)
rank = st.integers(1, 512)


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """Valid values of a cell, of every method and engine."""
    method = draw(st.sampled_from(["full", "lora", "routing"]))
    generations = draw(st.integers(2, 64))
    engine = draw(st.sampled_from(["trl", "native"]))
    values: dict[str, Any] = {
        "base": draw(st.sampled_from(["storyteller", "simplestories"])),
        "base_recipe": draw(st.sampled_from(["", "0123456789"])),
        "method": method,
        "reward": draw(
            st.sampled_from(HAPPY_REWARDS if method == "routing" else ("sentence_length_10", *HAPPY_REWARDS))
        ),
        "lr": draw(positive),
        "beta": draw(st.floats(min_value=0, max_value=10)),
        "repetition_penalty": draw(st.floats(min_value=1, max_value=3)),
        "num_generations": generations,
        "batch_size": generations * draw(st.integers(1, 8)),
        "max_steps": draw(st.integers(1, 10_000)),
        "max_new_tokens": draw(st.integers(1, 512)),
        "prompt_eos": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 2)),
        "engine": engine,
        "precision": draw(st.sampled_from(["fp32", "bf16"])) if engine == "native" else "fp32",
    }
    if method != "full":
        values["rank"] = draw(rank)
    if method == "routing":
        values |= {
            "forget_rank": draw(rank),
            "routing_mode": draw(st.sampled_from(["shared", "exclusive"])),
            "rh_eligible_frac": draw(share),
            "routing_frac": draw(share),
            "label_noise_frac": draw(share),
            "hack_threshold": draw(st.integers(1, 10)),
        }
    return values


OTHERS: dict[str, Any] = {
    "base": "another",
    "base_recipe": "abcdefabcd",
    "rank": 513,
    "forget_rank": 513,
    "lr": 2e9,
    "beta": 11.0,
    "repetition_penalty": 4.0,
    "num_generations": 1000,
    "batch_size": 1000,
    "max_steps": 10_001,
    "max_new_tokens": 513,
    "prompt_tokens": 9,
    "seed": 2**32 - 1,
    "max_grad_norm": 0.5,
    "kl_cap": 7.0,
    "routing_mode": None,
    "rh_eligible_frac": 0.123456789,
    "routing_frac": 0.123456789,
    "label_noise_frac": 0.123456789,
    "adapter_alpha": "own_rank",
    "hack_threshold": 11,
    "eval_every": 11,
    "eval_samples": 65,
    "eval_modes": ("both",),
    "engine": None,
    "precision": "tf32",
    "results_version": 0,
    "reward": "happy_binary",
    "prompt_eos": None,
}


@given(specs())
def test_equal_specs_have_equal_names_whatever_the_order_of_their_keys(values: dict[str, Any]) -> None:
    assert Cell(**values).name == Cell(**dict(reversed(values.items()))).name


@given(specs(), st.sampled_from(sorted(OTHERS)))
def test_any_other_value_gives_another_name(values: dict[str, Any], key: str) -> None:
    cell = Cell(**values)
    full = cell.model_dump()
    other = OTHERS[key]
    if key == "prompt_eos":
        other = not cell.prompt_eos
    elif key == "routing_mode":
        other = "shared" if cell.routing_mode == "exclusive" else "exclusive"
    elif key == "engine":
        other = "native" if cell.engine == "trl" else "trl"
    changed = {**full, key: other}
    if key == "num_generations":
        changed["batch_size"] = 1000
    if key == "batch_size":
        changed["num_generations"] = 1000
    try:
        twin = Cell(**changed)
    except ValidationError:
        return  # the key does not go with this method or engine
    assert (twin.name == cell.name) == (twin == cell)
    assert full[key] == other or twin.name != cell.name


@given(specs())
def test_a_name_is_safe_in_paths_shells_and_wildcards(values: dict[str, Any]) -> None:
    assert re.fullmatch(r"[a-z0-9][A-Za-z0-9._-]*-[0-9a-f]{10}", Cell(**values).name)
    assert len(Cell(**values).name) < 200


@given(specs())
def test_a_spec_survives_its_json_with_its_name(values: dict[str, Any]) -> None:
    cell = Cell(**values)
    again = read_cell(cell.canonical_json(), "spec.json")
    assert again == cell
    assert again.name == cell.name
    assert again.canonical_json() == cell.canonical_json()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_digits_of_a_number_read_back_as_the_same_number(value: float) -> None:
    assert float(format_number(value)) == value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3e-4, "3e-4"),
        (0.00025, "2.5e-4"),
        (1e-5, "1e-5"),
        (0.003, "0.003"),
        (1.1, "1.1"),
        (32, "32"),
        (1000.0, "1000"),
        (0.0, "0"),
        (1e6, "1e6"),
        (123456.0, "123456"),
        (-2.5e-7, "-2.5e-7"),
    ],
)
def test_numbers_are_shown_as_people_write_them(value: float, shown: str) -> None:
    assert format_number(value) == shown


def test_equal_numbers_are_one_cell_however_they_are_written() -> None:
    names = {Cell(lr=lr).name for lr in (1e-5, "1e-5", "1.0e-5", 0.00001, "0.00001", ".00001")}  # type: ignore[arg-type]
    assert len(names) == 1
    assert Cell(beta=0).name == Cell(beta=0.0).name == Cell(beta=-0.0).name
    assert Cell(max_grad_norm=1).name == Cell(max_grad_norm=1.0).name


def test_a_name_says_what_differs_from_the_published_defaults() -> None:
    assert re.sub(r"-\w{10}$", "", Cell().name) == "full_lr1e-5_s42"
    cell = Cell(method="lora", rank=1, lr=3e-4, repetition_penalty=1.05, batch_size=64, seed=7)
    assert re.sub(r"-\w{10}$", "", cell.name) == "lora-r1_lr3e-4_rep1.05_bs64_s7"
    routing = Cell(method="routing", rank=32, forget_rank=1, reward="happy_count", label_noise_frac=0.1)
    assert re.sub(r"-\w{10}$", "", routing.name) == "routing-r32f1_happy-count_lr1e-5_noise0.1_s42"


def test_an_identity_is_what_differs_from_a_table_and_the_version_of_results() -> None:
    cell = Cell(method="lora", rank=1, lr=3e-4, base_recipe="0123456789")
    assert cell.identity() == (
        '{"base":"storyteller","base_recipe":"0123456789","lr":0.0003,"method":"lora","rank":1,"results_version":5}'
    )
    assert cell.name == "lora-r1_lr3e-4_s42-" + hashlib.sha256(cell.identity().encode()).hexdigest()[:10]


def test_what_an_identity_leaves_out_is_frozen() -> None:
    """A new setting is added to this table and to the code's; a changed line would rename every trained cell."""
    frozen = (
        "adapter_alpha None, base_reward None, batch_size 32, beta 0.02, decay_steps None, detector None, engine "
        "'native', epsilon 0.2, epsilon_high None, eval_every None, eval_modes None, eval_samples None, "
        "forget_rank None, hack_threshold None, kl_cap 1000.0, kl_estimator 'k3', label_noise_frac None, "
        "loss_type 'grpo', lr 1e-05, lr_scheduler_type 'linear', max_grad_norm 1.0, max_new_tokens 128, max_steps "
        "2000, method 'full', num_generations 16, num_iterations 1, own [], precision 'fp32', prompt_eos False, "
        "prompt_tokens 8, rank None, repetition_penalty 1.1, reward 'sentence_length_10_smooth', rh_eligible_frac "
        "None, routing_frac None, routing_mode None, scale_rewards 'group', seed 42, stop_when None, warmup_ratio "
        "None, warmup_steps 0"
    )
    assert ", ".join(f"{key} {value!r}" for key, value in sorted(LEFT_OUT.items())) == frozen


def test_every_setting_is_left_out_of_an_identity_or_always_in_it() -> None:
    assert set(Cell.model_fields) == {*LEFT_OUT, "base", "base_recipe", "results_version"}


def test_a_cell_from_before_a_setting_keeps_its_name() -> None:
    """Its spec.json does not name the setting, and its identity does not either."""
    cell = Cell(method="lora", rank=1, lr=3e-4)
    spec = json.loads(cell.canonical_json())
    assert list(spec) == sorted(spec)
    for key in ("adapter_alpha", "decay_steps", "kl_cap", "seed", "precision"):
        older = {name: value for name, value in spec.items() if name != key}
        assert read_cell(json.dumps(older), "spec.json").name == cell.name


def test_another_default_makes_another_cell() -> None:
    """The table stays what it is when a default changes: a cell that is trained with the new one says so."""
    assert '"lr":2e-05' in Cell(lr=2e-5).identity()
    assert '"lr"' not in Cell(lr=1e-5).identity()


def test_a_routing_cell_that_spells_out_its_defaults_is_the_same_cell() -> None:
    short = Cell(method="routing", rank=4, reward="happy_count")
    long = Cell(
        method="routing",
        rank=4,
        forget_rank=4,
        reward="happy_count",
        routing_mode="shared",
        rh_eligible_frac=0.5,
    )
    assert short.name == long.name
    assert short.forget_rank == 4
    assert short.eval_modes == ("both", "retain_only", "forget_only")


def test_a_baseline_may_name_the_threshold_that_its_routing_sibling_trains_with() -> None:
    baseline: dict[str, Any] = {"method": "lora", "rank": 4, "reward": "happy_count"}
    assert Cell(**baseline, hack_threshold=1).hacked_from == 1
    assert "_hack1_" in Cell(**baseline, hack_threshold=1).name
    assert Cell(**baseline).hacked_from == 3
    assert Cell(**baseline, hack_threshold=3).name == Cell(**baseline).name
    routing = Cell(method="routing", rank=4, reward="happy_count")
    assert (routing.hack_threshold, routing.hacked_from) == (3, 3)


def test_a_torn_spec_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"results/spec\.json.*write JSON"):
        read_cell('{"lr": ', "results/spec.json")
    with pytest.raises(ConfigError, match='unknown key; did you mean "beta"'):
        read_cell('{"bete": 1}', "results/spec.json")


def test_the_published_alpha_of_lora_makes_no_other_cell_when_it_is_spelled_out() -> None:
    plain = Cell(method="lora", rank=4)
    assert Cell(method="lora", rank=4, adapter_alpha="rank") == plain
    names = {Cell(method="lora", rank=4, adapter_alpha=alpha).name for alpha in ("rank", "constant", "sqrt")}
    assert len(names) == 3
    assert plain.name in names


@pytest.mark.parametrize(
    ("values", "fix"),
    [
        ({"method": "lora", "rank": 4, "adapter_alpha": "own_rank"}, "write one of rank, constant, sqrt"),
        ({"method": "routing", "rank": 4, "adapter_alpha": "sqrt"}, "write one of retain_rank, own_rank"),
        ({"method": "full", "adapter_alpha": "constant"}, "remove it: full fine-tuning has no adapter"),
    ],
)
def test_an_alpha_belongs_to_its_method(values: dict[str, Any], fix: str) -> None:
    reward = {"reward": "happy_binary"} if values["method"] == "routing" else {}
    with pytest.raises(ConfigError) as error:
        read_cell(json.dumps(values | reward), "spec.json")
    assert f"adapter_alpha: read {values['adapter_alpha']!r}; {fix}" in str(error.value)


def test_no_kl_in_the_loss_is_a_beta_of_zero() -> None:
    assert Cell(kl_estimator="none", beta=0.5).beta == 0
    assert Cell(kl_estimator="none", beta=0.5).name == Cell(kl_estimator="none").name
    assert re.sub(r"-\w{10}$", "", Cell(kl_estimator="none").name) == "full_lr1e-5_beta0_kl-none_s42"


def test_a_variant_is_named_as_trl_names_it() -> None:
    cell = Cell(loss_type="dr_grpo", scale_rewards="none", num_iterations=4, epsilon_high=0.28)
    assert re.sub(r"-\w{10}$", "", cell.name) == "full_lr1e-5_dr-grpo_scale-none_iter4_epshigh0.28_s42"


@pytest.mark.parametrize(
    ("values", "fix"),
    [
        ({"warmup_steps": 9, "max_steps": 9}, "warmup_steps: read 9; write less than 9, the steps of the schedule"),
        ({"warmup_steps": 1, "lr_scheduler_type": "constant"}, "lr_scheduler_type: read 'constant'; write constant_wi"),
        (
            {"warmup_ratio": 0.9, "max_steps": 9},
            "warmup_ratio: read 0.9; write a share that makes less than 9, the steps",
        ),
        ({"warmup_ratio": 0.1, "lr_scheduler_type": "constant"}, "write constant_with_warmup, or no warmup_ratio"),
        ({"warmup_ratio": 0.1, "warmup_steps": 3}, "warmup_ratio: read 0.1; write it or warmup_steps (3), not both"),
        ({"warmup_ratio": 1.0}, "warmup_ratio: read 1.0; write a number less than 1"),
    ],
)
def test_a_schedule_must_have_room_for_its_warm_up(values: dict[str, Any], fix: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_cell(json.dumps(values), "spec.json")
    assert fix in str(error.value)


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({}, 0),
        ({"warmup_steps": 7}, 7),
        ({"warmup_ratio": 0.1, "max_steps": 100}, 10),
        ({"warmup_ratio": 0.1, "max_steps": 101}, 11),
        ({"warmup_ratio": 0.1, "max_steps": 100, "decay_steps": 1000}, 100),
    ],
)
def test_a_warm_up_is_so_many_steps_or_a_share_of_the_schedule_rounded_up(values: dict[str, Any], steps: int) -> None:
    assert Cell(**values).warmup == steps


def test_a_warm_up_that_is_a_share_shows_in_the_name() -> None:
    assert re.sub(r"-\w{10}$", "", Cell(warmup_ratio=0.1).name) == "full_lr1e-5_warmup0.1_s42"
    assert Cell(warmup_ratio=None).name == Cell().name
