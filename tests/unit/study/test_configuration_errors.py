"""Every mistake in a configuration is one line: file, key, what was read, what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rewardgrid.study.errors import ConfigError, Problem
from rewardgrid.study.layers import merge, read_yaml, typed
from rewardgrid.study.study import load_study, sound_part

STORYTELLER = {"kind": "packaged", "path": str(Path(__file__).parents[3] / "resources/bases/storyteller")}
SOUND: dict[str, Any] = {
    "bases": {"storyteller": STORYTELLER},
    "experiments": {"one": {"title": "One", "grids": [{"seed": [1, 2]}]}},
}


def problems(tmp_path: Path, *overlays: dict[str, Any]) -> list[Problem]:
    """What is wrong with the sound configuration (a.yaml) with these (b.yaml, c.yaml) laid over it."""
    files = []
    for letter, content in zip("abc", (SOUND, *overlays), strict=False):
        files.append(tmp_path / f"{letter}.yaml")
        files[-1].write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        load_study(files)
    return [Problem(Path(p.file).name, p.key, p.read, p.fix) for p in caught.value.problems]


def fixed(**values: Any) -> dict[str, Any]:
    return {"experiments": {"one": {"fixed": values}}}


def sample(**ranges: Any) -> dict[str, Any]:
    return {"experiments": {"one": {"grids": [{}], "sample": {"n": 2, "ranges": ranges}}}}


def teacher(**values: Any) -> dict[str, Any]:
    return {"storyteller": {"teacher": {"kind": "gguf", "licence": "MIT"} | values}}


def routing(**values: Any) -> dict[str, Any]:
    return fixed(method="routing", rank=4, reward="happy_count", **values)


def test_the_sound_configuration_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(SOUND))
    assert len(load_study([path]).cells) == 2


@pytest.mark.parametrize(
    ("overlay", "key", "read", "fix"),
    [
        ({"titel": "x"}, "titel", "x", 'unknown key; did you mean "title"?'),
        (fixed(xyz=1), "experiments.one.fixed.xyz", 1, "unknown key; known: adapter_alpha"),
        (fixed(leraning_rate=1), "experiments.one.fixed.leraning_rate", 1, 'did you mean "lr"?'),
        (fixed(lora_alpah=1), "experiments.one.fixed.lora_alpah", 1, 'did you mean "adapter_alpha"?'),
        (
            {"experiments": {"one": {"grids": [{"seed": 2**32}]}}},
            "experiments.one.grids[0].seed",
            2**32,
            "write a number less than 4294967296",
        ),
        (
            {"experiments": {"one": {"grids": [{"seed": 2**63}]}}},
            "experiments.one.grids[0].seed",
            2**63,
            "write a number less than 4294967296",
        ),
        (fixed(max_steps=2**63), "experiments.one.fixed.max_steps", 2**63, "write a number less than 2147483648"),
        (
            fixed(stop_when={"verdict": "ok", "for": 5}),
            "experiments.one.fixed.stop_when",
            "ok",
            "write one of 'borderline' or 'degenerate'",
        ),
        (
            fixed(stop_when={"verdict": "degenerate", "for": 0}),
            "experiments.one.fixed.stop_when",
            0,
            "write a number greater than or equal to 1",
        ),
        (
            fixed(stop_when={"verdict": "degenerate", "for": 5, "steps": 5}),
            "experiments.one.fixed.stop_when",
            5,
            "unknown key; known: for, verdict",
        ),
        ({"evaluation": {"seed": 2**63}}, "evaluation.seed", 2**63, "write a number less than 4294967296"),
        (
            {"bases": {"hub": {"kind": "hub", "eval_prompts": 200}}, "defaults": {"base": "hub"}},
            "bases.hub.eval_prompts",
            200,
            "write at least 256, which evaluation.samples needs",
        ),
        *(
            ({"results": path}, "results", path, "write a plain path such as results")
            for path in (
                *("out/", "./out", "out//x", "{x}", "<results>", "~", "~/out", "-x", ".", "", "a/../b", "$HOME/x"),
                *("//out", "/", "out*", "a\nb"),
            )
        ),
        *(
            ({"experiments": {name: {"title": "T", "grids": [{}]}}}, f"experiments.{name}", name, "is a target of")
            for name in ("all", "base", "train", "table", "results", "bases", "tell", "stories")
        ),
        (fixed(bete=1), "experiments.one.fixed.bete", 1, 'unknown key; did you mean "beta"?'),
        ({"defaults": {"bete": 1}}, "defaults.bete", 1, 'unknown key; did you mean "beta"?'),
        (fixed(results_version=2), "experiments.one.fixed.results_version", 2, "remove it"),
        (fixed(lr="fast"), "experiments.one.fixed.lr", "fast", "write a valid number"),
        (fixed(lr=True), "experiments.one.fixed.lr", True, "write a valid number"),
        (fixed(lr=".nan"), "experiments.one.fixed.lr", ".nan", "write a valid number"),
        (fixed(lr=float("inf")), "experiments.one.fixed.lr", float("inf"), "write a finite number"),
        (fixed(lr=0), "experiments.one.fixed.lr", 0, "write a number greater than 0"),
        (fixed(max_steps="10"), "experiments.one.fixed.max_steps", "10", "write a valid integer"),
        (fixed(max_steps=1.5), "experiments.one.fixed.max_steps", 1.5, "write a valid integer"),
        (fixed(prompt_eos="no"), "experiments.one.fixed.prompt_eos", "no", "write a valid boolean"),
        (
            fixed(reward="sentence_lenth_5"),
            "experiments.one.fixed.reward",
            "sentence_lenth_5",
            '"sentence_length_5"?',
        ),
        (fixed(base="storytele"), "experiments.one.fixed.base", "storytele", 'did you mean "storyteller"?'),
        (
            fixed(batch_size=24),
            "experiments.one.fixed.batch_size",
            24,
            "write a multiple of num_generations (16)",
        ),
        (
            fixed(max_steps=8, decay_steps=7),
            "experiments.one.fixed.decay_steps",
            7,
            "write max_steps (8) or more",
        ),
        (fixed(num_generations=1), "experiments.one.fixed.num_generations", 1, "greater than or equal to 2"),
        (fixed(rank=4), "experiments.one.fixed.rank", 4, 'remove it, or write "method: lora"'),
        (fixed(routing_frac=0.5), "experiments.one.fixed.routing_frac", 0.5, 'write "method: routing"'),
        (fixed(eval_modes=["both"]), "experiments.one.fixed.eval_modes", ["both"], 'write "method: routing"'),
        (fixed(hack_threshold=1), "experiments.one.fixed.hack_threshold", 1, 'does not pay for "happy"'),
        (
            {"evaluation": {"published_prompts": 6}},
            "evaluation.published_prompts",
            6,
            "divides published_samples (20)",
        ),
        (
            fixed(engine="trl", precision="bf16"),
            "experiments.one.fixed.precision",
            "bf16",
            'write fp32, or "engine: native"',
        ),
        (routing(forget_rank=0), "experiments.one.fixed.forget_rank", 0, "greater than or equal to 1"),
        (routing(forget_rank=-2), "experiments.one.fixed.forget_rank", -2, "greater than or equal to 1"),
        (
            routing(rh_eligible_frac=1.5),
            "experiments.one.fixed.rh_eligible_frac",
            1.5,
            "less than or equal to 1",
        ),
        (
            routing(rh_eligible_frac=-0.1),
            "experiments.one.fixed.rh_eligible_frac",
            -0.1,
            "greater than or equal to 0",
        ),
        (
            routing(routing_mode="share"),
            "experiments.one.fixed.routing_mode",
            "share",
            'did you mean "shared"?',
        ),
        (routing(eval_modes=["forget"]), "experiments.one.fixed.eval_modes", "forget", '"forget_only"?'),
        (routing(eval_modes=[]), "experiments.one.fixed.eval_modes", [], "at least one of both"),
        (
            fixed(method="routing", rank=4, reward="sentence_length_5"),
            "experiments.one.fixed.reward",
            "sentence_length_5",
            "the detector counts",
        ),
        (fixed(max_new_tokens=505), "experiments.one.fixed.max_new_tokens", 505, "write at most 504"),
        (
            fixed(max_new_tokens=504, prompt_eos=True),
            "experiments.one.fixed.max_new_tokens",
            504,
            "write at most 503",
        ),
        (
            fixed(prompt_tokens=9),
            "experiments.one.fixed.prompt_tokens",
            9,
            "write 8, the length of the prompts",
        ),
        ({"experiments": {"one": {"grids": []}}}, "experiments.one.grids", [], "at least 1 item"),
        (
            {"experiments": {"one": {"grids": [{"seed": []}]}}},
            "experiments.one.grids[0].seed",
            [],
            "at least one",
        ),
        ({"experiments": {"one": None}}, "experiments", {"one": None}, "leaves every experiment out; write one"),
        (fixed(stop_when={"verdict": "degenerate"}), "experiments.one.fixed.stop_when", None, "for: missing; write"),
        (
            fixed(stop_when="degenerate"),
            "experiments.one.fixed.stop_when",
            "degenerate",
            "keys to values: for, verdict",
        ),
        (sample(nope=[1, 2]), "experiments.one.sample.ranges.nope", {"choices": [1, 2]}, "unknown key; known: "),
        (sample(lr=None), "experiments.one.sample.ranges.lr", None, "keys to values: choices, log, uniform"),
        (sample(lr=[]), "experiments.one.sample.ranges.lr.choices", [], "at least 1 item"),
        (
            sample(seed={"uniform": [1.2, 1.8]}),
            "experiments.one.sample.ranges.seed",
            {"uniform": [1.2, 1.8]},
            "whole numbers as ends, not",
        ),
        (
            sample(lr={"uniform": [-1e308, 1e308]}),
            "experiments.one.sample.ranges.lr.uniform",
            [-1e308, 1e308],
            "whose difference is a number",
        ),
        (
            {"experiments": {"one": {"grids": [{"seed": list(range(400)), "lr": [0.1] * 300}]}}},
            "experiments.one.grids",
            "1 grids",
            "makes 120,000 cells; write lists that make at most 100,000",
        ),
        ({"experiments": {"oen": {"grids": [{"seed": 1}]}}}, "experiments.oen.title", None, 'did you mean "one"?'),
        (fixed(reward=False), "experiments.one.fixed.reward", False, "write the name of one, as a text"),
        (fixed(reward=["a"]), "experiments.one.fixed.reward", ["a"], "write the name of one, as a text"),
        ({"results": "a" * 300}, "results", "a" * 300, "can be none (File name too long); name another one"),
        (
            {"experiments": {"a" * 300: {"title": "A", "grids": [{"seed": 1}]}}},
            f"experiments.{'a' * 300}",
            "a" * 300,
            "at most 100 letters",
        ),
        (fixed(lr=10**400), "experiments.one.fixed.lr", ..., "finite number"),
        ({"experiments": {"one": {"by": ["rnak"]}}}, "experiments.one.by", "rnak", 'did you mean "rank"?'),
        ({"experiments": {"../x": None}}, "experiments.../x", "../x", "write a name of letters"),
        ({"bases": {"b": {"kind": "packged"}}}, "bases.b.kind", "packged", 'did you mean "packaged"?'),
        ({"bases": {"storyteller": {"pth": "x"}}}, "bases.storyteller.pth", "x", 'did you mean "path"?'),
        (
            {"bases": {"storyteller": {"prompt_tokens": 0}}},
            "bases.storyteller.prompt_tokens",
            0,
            "greater than or equal to 1",
        ),
        ({"storyteller": {"teacher": {"kind": "ggu"}}}, "storyteller.teacher.kind", "ggu", 'did you mean "gguf"?'),
        (teacher(model="x", sha256="12"), "storyteller.teacher.sha256", "12", "write text of the form ^[0-9a-f]{64}$"),
        (teacher(model="y", modell="x"), "storyteller.teacher.modell", "x", 'unknown key; did you mean "model"?'),
        (teacher(model="x", licence=None), "storyteller.teacher.licence", None, "missing; write this key"),
        ({"storyteller": {"bases": {"s": {"layrs": 2}}}}, "storyteller.bases.s.layrs", 2, 'did you mean "layers"?'),
        ({"evaluation": {"samples": 3}}, "evaluation.samples", 3, "greater than or equal to 20"),
    ],
)
def test_a_mistake_is_named_with_file_key_value_and_remedy(
    tmp_path: Path, overlay: dict[str, Any], key: str, read: object, fix: str
) -> None:
    (problem,) = problems(tmp_path, overlay)
    assert (problem.file, problem.key) == ("b.yaml", key)
    assert problem.read == read or read is ...
    assert fix in problem.fix


@pytest.mark.parametrize(
    "text",
    [
        "title: 2024-99-99",
        "title: !!int abc",
        "title: !!bool maybe",
        "title: !!timestamp abc",
        f"title: {'[' * 3000}",
        "rewards: &a {x: *a}",
        "seed: " + "1" * 5000,
        "experiments: 3",
        "experiments: [1]",
    ],
    ids=range(9),
)
def test_what_is_no_configuration_is_one_clear_message(text: str, tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(text)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(SOUND))
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    with pytest.raises(ConfigError) as caught:
        load_study(files)
    assert {Path(each.file).name for each in caught.value.problems} == {"b.yaml"}
    assert sound_part(files, caught.value) is None


def test_half_a_letter_is_named_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(SOUND))
    (tmp_path / "b.yaml").write_text('experiments: {one: {title: "a\\ud800b", columns: ["\\udfff"]}}\n')
    with pytest.raises(ConfigError) as caught:
        load_study([tmp_path / "a.yaml", tmp_path / "b.yaml"])
    assert [problem.key for problem in caught.value.problems] == ["experiments.one.title", "experiments.one.columns[0]"]
    str(caught.value).encode()


def test_a_setting_that_is_missing_is_asked_for_in_the_grid(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, fixed(method="lora"))
    assert (problem.key, problem.read) == ("experiments.one.grids[0].rank", None)
    assert "method lora needs it" in problem.fix
    (problem,) = problems(tmp_path, fixed(method="routing", rank=4))
    assert problem.key == "experiments.one.grids[0].reward"


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("bases: {storyteller: {kind: hub}}\nexperiments: {one: {title: x, grids: [{lr: [1e-5, 3E-4]}]}}\n")
    assert [cell.lr for cell in load_study([path]).grid["one"]] == [1e-5, 3e-4]


@pytest.mark.parametrize(
    "grids",
    [[{"seed": [1, 1]}], [{"seed": [1, 2]}, {"seed": 2}], [{"lr": [1e-5, "1e-5"]}], [{}, {"beta": 0.02}]],
)
def test_a_cell_that_an_experiment_names_twice_is_an_error(tmp_path: Path, grids: list[dict[str, Any]]) -> None:
    (problem,) = problems(tmp_path, {"experiments": {"one": {"grids": grids}}})
    assert "gives the same cell twice" in problem.fix


@pytest.mark.parametrize("path", ["out", "my out/x", "/scratch/me/out", "../out", "a.b-c_d", "out/-x"])
def test_plain_places_for_results_are_allowed(path: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(SOUND | {"results": path}))
    assert str(load_study([tmp_path / "a.yaml"]).layout.root) == path


@pytest.mark.parametrize("inside", ["", "/below"])
def test_results_cannot_lie_where_a_file_is(inside: str, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    (found,) = problems(tmp_path, {"results": f"{tmp_path}/out{inside}"})
    assert (found.key, found.fix) == ("results", f"{tmp_path}/out is no directory; name another one")


@pytest.mark.parametrize(
    ("text", "number"), [("010", 8), ("1:30", 90), ("0x10", 16), ("1_000", 1000), ("0b11", 3), ("1:30.5", 90.5)]
)
def test_what_yaml_reads_as_another_number_is_told_with_its_line(text: str, number: float, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"title: x\nresults: {text}\n")
    with pytest.raises(ConfigError, match=f"line 2: read '{text} is the number {number} in YAML; write that, or put"):
        read_yaml(path)
    path.write_text(f"title: '{text}'\n")
    assert read_yaml(path) == {"title": text}


def test_plain_numbers_are_what_they_look_like(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: [0, -3, +4, 1.5, 0.001, 1.e+3, .5, -1.5e-3, 10.0, .inf, -.inf]\n")
    assert read_yaml(path)["a"] == [0, -3, 4, 1.5, 0.001, 1000.0, 0.5, -0.0015, 10.0, float("inf"), -float("inf")]


def test_a_word_after_the_configuration_files_is_told_to_go_before_them(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"all words after --configfile are read as such, so other words go before it"
    ):
        read_yaml(tmp_path / "results/cells/full/evaluation/metrics.json")
    with pytest.raises(ConfigError, match=r"--configfile: .* read 'lora_rank'"):
        read_yaml("lora_rank")


def test_nested_values_of_the_command_line_are_read_as_yaml_reads_them() -> None:
    texts = {
        "seed": "9",
        "lr": ["1e-5", "0.1"],
        "prompt_eos": "true",
        "rank": "null",
        "title": "a b",
        "x": "010",
        "y": "",
    }
    assert typed({"defaults": texts, "published": "null"}) == {
        "defaults": {
            "seed": 9,
            "lr": ["1e-5", 0.1],
            "prompt_eos": True,
            "rank": None,
            "title": "a b",
            "x": "010",
            "y": "",
        },
        "published": None,
    }


def test_two_experiments_may_share_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(merge(SOUND, {"experiments": {"two": {"title": "Two", "grids": [{"seed": 2}]}}})))
    study = load_study([path])
    assert study.grid["two"][0] == study.grid["one"][1]
    assert len(study.cells) == 2


def test_all_mistakes_of_all_files_come_in_one_go(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        {"titel": "x", "defaults": {"lr": "fast"}, "bases": {"storyteller": {"pth": 3}}},
        {
            "experiments": {
                "two": {"title": 2, "grids": []},
                "one": {"grids": [{"beta": -1}, {"reward": "no"}]},
            }
        },
    )
    assert {(problem.file, problem.key) for problem in found} == {
        ("b.yaml", "titel"),
        ("b.yaml", "defaults.lr"),
        ("b.yaml", "bases.storyteller.pth"),
        ("c.yaml", "experiments.two.title"),
        ("c.yaml", "experiments.two.grids"),
        ("c.yaml", "experiments.one.grids[0].beta"),
        ("c.yaml", "experiments.one.grids[1].reward"),
    }


def test_a_mistake_is_blamed_on_the_file_whose_value_it_is(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, fixed(lr="fast"), {"title": "innocent"})
    assert problem.file == "b.yaml"
    (problem,) = problems(tmp_path, fixed(lr=1e-3), fixed(lr="faster"))
    assert problem.file == "c.yaml"


def test_a_mistake_on_the_command_line_is_blamed_on_it(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(SOUND))
    with pytest.raises(ConfigError, match=r"^1 problem .*\n  --config: defaults\.lr: read 'fast'"):
        load_study([path], merge(SOUND, {"defaults": {"lr": "fast"}}))


def test_null_leaves_an_experiment_out(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(merge(SOUND, {"experiments": {"two": None}})))
    assert list(load_study([path]).active) == ["one"]


def test_mappings_merge_and_anything_else_replaces() -> None:
    below = {"a": {"x": 1, "y": [1, 2]}, "b": {"z": 1}}
    assert merge(below, {"a": {"y": [3]}, "b": None}) == {"a": {"x": 1, "y": [3]}, "b": None}
    assert below == {"a": {"x": 1, "y": [1, 2]}, "b": {"z": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: a\ntitle: b\n", "line 2: read \"the key 'title' stands twice in one block\""),
        ("a: {b: 1, b: 2}\n", "line 1: read \"the key 'b' stands twice"),
        ("a: [1\nb: 2\n", "write valid YAML"),
        ("a: \x00\n", "write valid YAML"),
        ("- a\n", "write a mapping of keys to values"),
        ("", "write a mapping of keys to values"),
    ],
)
def test_a_file_that_is_no_sound_yaml_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert f"{path}: " in str(caught.value)
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "missing.yaml")
    (tmp_path / "directory.yaml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "directory.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"title: \xe9t\xe9\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "latin.yaml")


def test_a_blocks_own_keys_may_override_merged_ones_wherever_it_is_merged_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("deep: {er: {one: &one {k: 1, l: 2}, two: &two {<<: *one, k: 3}}}\nthree: {<<: *two, l: 4}\n")
    assert read_yaml(path)["three"] == {"k": 3, "l": 4}
