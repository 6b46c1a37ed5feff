"""`python -m rewardgrid show`, `compare`, `status` and `cells`: what people read of cells, whatever stands in them."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from tests.trees import BASES, SWEEP, Tree, history, make_study

from rewardgrid.__main__ import main
from rewardgrid.cli.cells import print_table, short_names
from rewardgrid.cli.show import compare, differences, find, on_same_prompts, see, show
from rewardgrid.cli.status import details, display, look, plain
from rewardgrid.study.cell import Cell
from rewardgrid.study.contracts import ROLLOUTS, SAMPLES, read_table, write_table
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json, write_json
from rewardgrid.study.history import LiveHistory
from rewardgrid.train.lease import identity

STEERING = "\x1b]0;title\x07\x1b[2J\r\n\x9b31m[red]x[/]\u202e"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Two finished cells of one seed, one that diverged, one that runs; four that wait."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    tree = Tree(make_study(Path("results"), {"sweep": SWEEP}, published=None))
    weak, strong, third, fourth = tree.study.grid["sweep"][:4]
    tree.finish(weak, rewards=[0.25 + step / 100 for step in range(60)], verdict="degenerate", text="happy, happy.")
    tree.finish(strong, text="the fox slept.")
    tree.diverge(third, 20)
    run(tree, fourth)
    return tree


def run(tree: Tree, cell: Cell) -> None:
    """What a running cell has at step 40."""
    layout = tree.study.layout
    rows = history([0.1 + step / 100 for step in range(40)]).to_dict("records")
    LiveHistory(layout.live_history(cell.name), rows).append()
    now = time.time()
    progress = {"step": 40, "max_steps": cell.max_steps, "reward": 0.49, "kl": 0.2, "speed": 2.0, "left": 30.0}
    beat = {"token": "t", **identity(), "started": now, "beat": now, "stepped": now}
    write_json(layout.cell(cell.name) / "lease-1.json", beat | progress)
    flags = dict.fromkeys(("eligible", "routed", "noise", "flagged"), False)
    figures = {"ids": [1], "reward": 0.5, "sl10": 0.5, "happy": 1.0} | flags
    texts = [{"step": step, "prompt": "a fox", "completion": f"of step {step}", **figures} for step in (1, 20)]
    write_table(layout.checkpoints(cell.name) / "step-000020" / "rollouts.parquet", pd.DataFrame(texts), ROLLOUTS)


def cells(tree: Tree) -> list[Cell]:
    return tree.study.grid["sweep"]


# --- finding a cell ------------------------------------------------------------------------------------


def test_a_cell_is_found_by_path_name_and_the_beginning_of_name_or_hash(tree: Tree) -> None:
    study, cell = tree.study, cells(tree)[0]
    slug, _, digest = cell.name.rpartition("-")
    place = study.layout.cell(cell.name)
    words = [cell.name, slug + "-", digest, digest[:4], str(place), f"{place}/", str(place / "train/status.json")]
    assert {find(study, word)[1].name for word in words} == {cell.name}


def test_a_cell_of_another_configuration_is_found_where_it_lies(tree: Tree, tmp_path: Path) -> None:
    other = make_study(tmp_path / "elsewhere", {"x": SWEEP | {"fixed": {"lr": 0.5}}}, published=None)
    cell = other.grid["x"][0]
    Tree(other).finish(cell)
    layout, found = find(tree.study, str(other.layout.cell(cell.name) / "train"))
    assert found == cell
    assert layout.root == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("full_", "8 cells begin so; write more of the name, or of its hash:\n  full_"),
        ("fulll_lr1e-5_s42", "no cell's name or hash begins so; did you mean \"full_lr1e-5_s42-"),
        ("results/cells/full-0", "no cell's directory; give one as results/cells/NAME"),
        ("\x1b[2J", "\ufffd[2J: no cell's name"),
    ],
)
def test_a_word_that_means_none_or_several_is_answered_with_what_to_write(tree: Tree, word: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        find(tree.study, word)
    assert message in str(raised.value)


# --- showing -------------------------------------------------------------------------------------------


def test_a_finished_cell_is_shown_with_curve_onset_evidence_and_samples(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    show(tree.study, cells(tree)[0].name, samples=2)
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "lr=1e-5" not in lines[lines.index("Spec  what differs from the defaults, then the rest") + 1]
    assert "beta=0.003  repetition_penalty=1.05" in text.replace("\n", " ")
    (curve,) = [line for line in lines if line.startswith("reward  ")]
    assert curve.split()[1:] == ["▁▁▁▁▁▂▂▂▂▂▃▃▃▃▃▄▄▄▄▄▅▅▅▅▅▆▆▆▆▆▇▇▇▇▇█████", "0.25", "0.84"]
    assert "no hacking, degeneration from step 150" in lines
    assert "Verdict  degenerate: template" in lines
    assert re.search(r"jaccard +0.3 +0.12 +0.156 +0.264 +degenerate", text)
    assert [line for line in lines if line.startswith("prompt ")] == [
        "prompt 0 | happy, happy.",
        "prompt 1 | happy, happy.",
    ]
    assert not any(line.startswith("happy ") for line in lines)  # nothing in it


def test_of_a_routing_cell_it_is_told_what_each_set_of_adapters_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    routing = {"rank": 4, "method": "routing", "reward": "sentence_length_10_smooth_with_happy"}
    tree = Tree(make_study(tmp_path / "results", {"two": {**SWEEP, "by": [], "grids": [routing]}}, published=None))
    (cell,) = tree.study.grid["two"]
    tree.finish(cell)
    show(tree.study, cell.name, samples=0)
    assert re.search(r"retain_only +0.5 +0.2 +borderline: fragments", capsys.readouterr().out)
    earlier = read_json(tree.study.layout.metrics(cell.name))
    for figures in earlier["modes"].values():
        figures.pop("verdict", None)
        figures.pop("reasons", None)
    write_json(tree.study.layout.metrics(cell.name), earlier)
    show(tree.study, cell.name, samples=0)
    assert re.search(r"retain_only +0.5 +0.2 +not judged", capsys.readouterr().out)


def test_a_running_cell_is_shown_as_far_as_it_is(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    show(tree.study, cells(tree)[3].name, samples=3)
    text = capsys.readouterr().out
    assert "Curves  40 of 2000 steps" in text
    assert "hacking and degeneration: known when the cell is evaluated" in text
    assert "Samples  rollouts of step 20" in text
    assert "a fox | of step 20" in text
    assert "of step 1\n" not in text


def test_cells_that_wait_or_diverged_are_shown_too(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    show(tree.study, cells(tree)[4].name, samples=3)
    text = capsys.readouterr().out
    assert "not a step yet" in text
    assert "none yet" in text
    show(tree.study, cells(tree)[2].name, samples=3)
    assert "KL 2000 above kl_cap 1000" in capsys.readouterr().out


def test_two_cells_stand_side_by_side_on_one_scale(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = cells(tree)[:2]
    compare(tree.study, [a.name, b.name], samples=1)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"\nseed +42 +123 *\n", text)
    (curve,) = [line.split() for line in text.splitlines() if line.startswith("reward  ")]
    # 0.25 to 0.84, and 0.5 throughout: the middle of the same scale.
    assert curve[1:] == ["▁▁▂▃▃▄▅▆▆▇██", "0.25", "0.84", "▄" * 12, "0.5", "0.5"]
    assert re.search(r"prompt 0 \| happy, happy\. +prompt 0 \| the fox slept\.", text)
    assert text.count("| happy") == 1


def test_on_a_narrow_terminal_nothing_is_cut_off_and_paths_stay_whole(
    tree: Tree, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    a, b = cells(tree)[:2]
    show(tree.study, a.name, samples=1)
    text = capsys.readouterr().out
    assert "…" not in text
    assert f"\n{tree.study.layout.cell(a.name)}\n" in text
    assert re.search(r"\njaccard +0.3 +0.12 +degenera", text)
    assert re.search(r"\nreward +▁▂▄▅▇█ +0.25 +0.84", text)
    compare(tree.study, [a.name, b.name], samples=1)
    text = capsys.readouterr().out
    assert "…" not in text
    assert f"A  {a.name}\n" in text
    assert re.search(r"\nreward +▁▂▄▅▇█ +0.84 +▄▄▄▄▄▄ +0.5 *\n", text)


def test_only_what_differs_is_named(tree: Tree) -> None:
    a, b = cells(tree)[:2]
    assert differences(a, b) == [("seed", "42", "123")]
    assert differences(a, a) == []


def test_samples_are_compared_on_prompts_that_both_have(tree: Tree) -> None:
    layout, (a, b) = tree.study.layout, cells(tree)[:2]
    theirs = read_table(layout.samples(b.name), SAMPLES)
    theirs["prompt"] = theirs["prompt"].replace({"prompt 0": "another", "prompt 1": "a third"})
    write_table(layout.samples(b.name), theirs, SAMPLES)
    pairs = on_same_prompts(see(layout, a), see(layout, b))
    assert [one["prompt"] for one, _ in pairs] == [f"prompt {number}" for number in range(2, 20)]
    assert pairs[0][0]["completion"] == "happy, happy."
    assert pairs[0][1]["completion"] == "the fox slept."
    running = see(layout, cells(tree)[3])
    assert on_same_prompts(see(layout, a), running) == []


def test_no_text_of_a_cell_steers_the_terminal(
    tree: Tree, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, (a, b, third) = tree.study.layout, cells(tree)[:3]
    for cell in (a, b):
        frame = read_table(layout.samples(cell.name), SAMPLES).assign(completion=STEERING, prompt=STEERING)
        write_table(layout.samples(cell.name), frame, SAMPLES)
        metrics = read_json(layout.metrics(cell.name))
        metrics |= {"verdict": STEERING, "reasons": [STEERING]}
        metrics["evidence"][0] |= {"signal": STEERING, "label": STEERING}
        write_json(layout.metrics(cell.name), metrics)
    status = layout.train(third.name) / "status.json"
    write_json(status, read_json(status) | {"reason": STEERING})
    for cell in (a, third):
        show(tree.study, cell.name, samples=3)
    compare(tree.study, [a.name, b.name], samples=2)
    compare(tree.study, [a.name, third.name], samples=2)
    print("\n".join(plain([look(layout, cell) for cell in cells(tree)])))
    print(display([look(layout, cell) for cell in cells(tree)]).plain)
    text = capsys.readouterr().out
    assert all(line.isprintable() for line in text.split("\n"))
    assert "[red]x[/]" in text.replace("\n", "")  # text, and no markup


def test_the_commands_are_there_and_a_mistake_is_one_message(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    Path("config").mkdir()
    study = {"results": "results", "title": "A small study", "bases": BASES, "published": None}
    study |= {"defaults": {"base": "storyteller"}, "experiments": {"sweep": SWEEP}}
    Path("config/config.yaml").write_text(yaml.safe_dump(study))
    a, b = (cell.name for cell in cells(tree)[:2])
    assert main(["show", a, "--samples", "1"]) == 0
    assert main(["compare", a, b]) == 0
    assert "Onset and verdict" in capsys.readouterr().out
    assert main(["compare", a, "nothing"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: nothing: no cell's name or hash begins so;")


# --- status and cells ----------------------------------------------------------------------------------


def test_done_cells_have_their_reward_and_verdict_and_the_onset_of_hacking(tree: Tree) -> None:
    layout, (a, b) = tree.study.layout, cells(tree)[:2]
    metrics = read_json(layout.metrics(a.name))
    write_json(layout.metrics(a.name), metrics | {"onset": {"hack_onset": 30, "degeneration_onset": None}})
    # Of 60 rewards from 0.25 on, the last 50: 0.35 to 0.84.
    assert details(look(layout, a)) == ["final reward 0.595", "degenerate", "hacks from step 30"]
    assert details(look(layout, b)) == ["final reward 0.500", "ok"]


def test_a_refreshed_status_reads_a_finished_history_once(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, cell = tree.study.layout, cells(tree)[0]
    look(layout, cell)
    monkeypatch.setattr("rewardgrid.cli.status.rewards_so_far", lambda *_: [0.5, 1.0])
    assert look(layout, cell).reward == pytest.approx(0.595)
    os.utime(layout.train(cell.name) / "history.parquet", (1, 1))
    assert look(layout, cell).reward == 0.75


def test_a_running_cell_shows_the_curve_of_its_reward(tree: Tree) -> None:
    text = display([look(tree.study.layout, cells(tree)[3])]).plain
    assert "▁▁▁▂▂▂▃▃▃▄▄▄▅▅▅▆▆▆▇▇▇███  step 40/2000  reward 0.490" in text


def test_the_list_of_cells_fits_a_terminal_of_80_columns(
    tree: Tree, capsys: pytest.CaptureFixture[str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print_table(tree.study.layout, cells(tree))
    text = capsys.readouterr().out
    assert text.splitlines()[0].split() == ["state", "beta", "repetition_penalty", "seed", "cell"]
    assert text.splitlines()[1].split() == ["done", "0.003", "1.05", "42", "full_lr1e-5_beta0.003_rep1.05_s42"]
    monkeypatch.chdir(root)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["cells"]) == 0
    text = capsys.readouterr().out
    assert max(len(line) for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()) <= 80
    assert "They differ too in" in text


def test_cells_of_one_slug_keep_their_hash() -> None:
    one = Cell(base="storyteller", base_recipe="0" * 10)
    other, third = one.model_copy(update={"base_recipe": "1" * 10}), one.model_copy(update={"seed": 7})
    assert short_names([one, third]) == {one.name: "full_lr1e-5_s42", third.name: "full_lr1e-5_s7"}
    assert short_names([one, other, third]) == {
        one.name: one.name,
        other.name: other.name,
        third.name: "full_lr1e-5_s7",
    }
