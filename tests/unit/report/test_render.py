"""The report's scripts from a tree of results to RESULTS.md."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.own import source
from tests.trees import REPOSITORY, SWEEP, Tree, make_study, routing

from rewardgrid.report.render import about_verdicts, drawn_longer, duration, mean_sd, squeezed
from rewardgrid.study.files import read_json, write_json
from rewardgrid.study.study import Study

Make = Callable[..., Tree]

NASTY = "she said <script>alert(1)</script> | `x` *y* [z](w) and ran. " * 20

ROUTED = {
    "title": "Two adapters",
    "grids": [{"seed": [1, 2]}],
    "fixed": {"method": "routing", "rank": 4, "reward": "sentence_length_10_smooth_with_happy", "max_steps": 60},
    "columns": ["rank", "seed", "both_happy", "retain_only_happy"],
    "by": ["rank"],
    "findings": ["hack_removed", "stories", "windows", "collapse"],
    "figures": ["routing_curves"],
}


def script(name: str, *arguments: object) -> int:
    """Run one of the programs of workflow/scripts as its command line would."""
    main: Callable[..., int] = runpy.run_path(str(REPOSITORY / "workflow" / "scripts" / f"{name}.py"))["main"]
    return main([str(argument) for argument in arguments])


def report(study: Study) -> str:
    """Make every file of the report; returns RESULTS.md."""
    root = Path(study.results)
    root.mkdir(parents=True, exist_ok=True)
    checked = root / "study.json"
    checked.write_text(study.model_dump_json())
    for name in study.active:
        assert script("table", "--study", checked, "--experiment", name, "--out", study.layout.table(name)) == 0
        assert script("figures", "--study", checked, "--experiment", name, "--out", root / "figures" / name) == 0
    assert script("findings", "--study", checked, "--tables", root / "tables", "--out", root / "findings.json") == 0
    compared = []
    if study.published:
        compared = ["--published", root / "published.json"]
        assert script("published", "--study", checked, "--tables", root / "tables", "--out", compared[1]) == 0
    results = ["--study", checked, "--findings", root / "findings.json", "--out", root / "R.md"]
    assert script("results", *results, *compared) == 0
    return (root / "R.md").read_text()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A sweep with one diverged and one missing cell, and a routing experiment."""
    made = Tree(make_study(tmp_path_factory.mktemp("filled") / "results", {"reward_sweep": SWEEP, "routed": ROUTED}))
    made.measure_bases()
    cells = list(made.study.grid["reward_sweep"])
    for cell in cells[:-2]:
        made.finish(cell, [0.5] * 20 + [0.9 - 2 * cell.beta] * 60, kl=1 / (1 + cell.beta), text=NASTY)
    made.diverge(cells[-2], 33)
    curves = {
        ("both", "happy"): [1.0, 4.0, 5.0, 6.0, 6.0, 6.0],
        ("retain_only", "happy"): [1.0, 0.5, 0.0, 0.0, 0.0, 0.0],
        ("retain_only", "sl10"): [0.5] * 6,
        ("forget_only", "happy"): [1.0] * 6,
    }
    happy = {"both": 6.2, "retain_only": 0.3, "forget_only": 1.0}
    for cell in made.study.grid["routed"]:
        made.finish(cell, curves=routing(curves), text="happy happy happy.", happy=happy)
    return made


@pytest.fixture(scope="module")
def text(filled: Tree) -> str:
    """RESULTS.md of that tree."""
    return report(filled.study)


def test_results_are_the_same_twice(filled: Tree, text: str) -> None:
    assert report(filled.study) == text


def test_results_say_where_the_figures_come_from(filled: Tree, text: str) -> None:
    assert text.startswith("# A small study\n")
    (base_id,) = filled.study.base_recipes
    assert f"| Base | `{base_id}`: " in text
    assert "kind packaged, path " in text
    assert "Its own samples: sl10 0.500, happy 0.10, unique/20 20, Jaccard 0.120" in text
    assert "| Cells | 10: 8 done, 1 diverged, 1 missing |" in text
    assert "| Hardware | 2 cores |" in text
    assert "| Libraries | rewardgrid 0.1.0, torch 2.13.0 |" in text
    assert "| Code | " in text


def test_a_hurried_reader_finds_questions_and_answers_first(filled: Tree, text: str) -> None:
    short, rest = text.split("## How to read this", 1)
    sweep, routed = [line for line in short.splitlines() if line.startswith("| [")]
    question, cells, answer, published = sweep.strip("| ").split(" | ")
    assert question == "[Which beta holds the stories together?](#reward_sweep)"
    assert cells == "6 ok, 1 diverged, 1 missing"
    assert answer == "Best trade-off: 0.89 at beta 0.003, penalty 1.05, the base itself 0.47 *(7 cells, 2 seeds)*"
    assert published.startswith("Reward 0.998 at beta 0.003 is gibberish")
    kept = "98 % of the hack gone, 100 % of the base's sl10 kept"
    works = f"works (2 seeds; {kept}), but retain_only's stories are borderline"
    assert routed == f"| [Two adapters](#routed) | 2 ok | Forget adapter cut away: {works} *(2 cells, 2 seeds)* | – |"
    assert "| question | cells | answer | published, on SimpleStories-1.25M |" in short
    assert "**Order of beta: KL and reward fall as beta rises (KL 0.997 → 0.980)** *(4 cells, 2 seeds)*" in rest
    assert '<a id="reward_sweep"></a>' in rest
    assert "Which beta holds the stories together?" in rest


def test_missing_and_diverged_cells_are_named(filled: Tree, text: str) -> None:
    *_, diverged, missing = filled.study.grid["reward_sweep"]
    assert f"- `{diverged.name}`: at step 33: KL 2000 above kl_cap 1000" in text
    assert f"- `{missing.name}`: not started" in text
    assert "| 0.02 | 1.1 | 42 | – | – | – | diverged at step 33 |" in text
    assert "| 0.02 | 1.1 | 123 | – | – | – | missing |" in text


def test_a_verdict_leads_to_its_cell_on_the_page_and_nowhere_where_there_is_none(filled: Tree, text: str) -> None:
    assert "report.html" not in text
    root = Path(filled.study.results)
    made = root / "linked.md"
    files = ["--study", root / "study.json", "--findings", root / "findings.json", "--page", root / "report.html"]
    assert script("results", *files, "--published", root / "published.json", "--out", made) == 0
    linked = made.read_text()
    first, *_ = filled.study.grid["reward_sweep"]
    assert f"| [ok; not ok from step 150](report.html#cell={first.name}) |" in linked
    assert "| base, for reference |" in linked
    # What `publish` does to it: see rules/report.smk.
    assert re.sub(r"\[([^]]*)\]\(report\.html[^)]*\)", r"\1", linked) == text


def test_a_report_without_a_cells_samples_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = Tree(make_study(tmp_path / "results", {"reward_sweep": SWEEP}, published=None))
    tree.measure_bases()
    for cell in tree.study.grid["reward_sweep"]:
        tree.finish(cell)
    report(tree.study)
    lost = tree.study.layout.samples(tree.study.grid["reward_sweep"][0].name)
    lost.unlink()
    root = Path(tree.study.results)
    files = ["--study", root / "study.json", "--findings", root / "findings.json", "--out", root / "R.md"]
    assert script("results", *files) == 2
    assert f"{lost}: no such file, though its cell is measured (1 such cell); delete " in capsys.readouterr().err


def test_a_base_shows_what_it_earns_and_hacks_by_code_of_ones_own(tree: Make, tmp_path: Path) -> None:
    path = source(tmp_path)
    block = {
        "title": "Own",
        "grids": [{"reward": ["words", "happy_count"]}],
        "columns": ["reward", "final_reward", "sl10"],
    }
    routed = {
        "title": "Detected",
        "fixed": {"method": "routing", "rank": 2, "reward": "words", "detector": "long"},
        "grids": [{"seed": 1}],
        "columns": ["reward", "hacked"],
    }
    made = make_study(tmp_path / "results", {"own": block, "routed": routed}, None)
    own = {"rewards": {"words": {"python": f"{path}:words"}}, "detectors": {"long": {"python": f"{path}:long"}}}
    study = Study.model_validate(made.model_dump() | own)
    filled = Tree(study)
    for cell in study.cells.values():
        filled.finish(cell)
    filled.measure_bases()
    metrics = study.layout.base_metrics(next(iter(study.base_recipes)))
    write_json(metrics, read_json(metrics) | {"says": {"long": 0.625, "words": 1.0}})
    assert "| words | – | 0.500 | base, for reference |" in report(
        study
    )  # it was measured before there was such a reward
    found = read_json(metrics)
    write_json(metrics, found | {"rewards": found["rewards"] | {"words": 0.731}})
    text = report(study)
    assert "| words | 0.731 | 0.500 | base, for reference |" in text
    assert "| happy_count | 0.470 | 0.500 | base, for reference |" in text
    assert "| words | 0.625 | base, for reference |" in text


def test_a_base_that_was_drawn_longer_than_a_cell_says_so() -> None:
    row = {"max_new_tokens": 40}
    assert drawn_longer({"max_new_tokens": 96}, [row, {"max_new_tokens": 96}]) == ", to 96 tokens"
    assert drawn_longer({"max_new_tokens": 40}, [row]) == ""


def test_tables_show_cells_means_and_the_base(filled: Tree, text: str) -> None:
    assert "| 0.003 | 1.05 | 42 | 0.894 | 0.997 | 0.130 | ok; not ok from step 150 |" in text
    # The gain is to be read from the base's own reward.
    assert "|  |  |  | 0.470 | – | 0.120 | base, for reference |" in text
    # Two equal seeds: sd and interval have no width.
    assert "| 0.003 | 1.05 | 2 of 2 | 0.894 (0.000) | 0.894 to 0.894 | 0.997 (0.000) | 0.130 (0.000) | 2 ok |" in text
    assert "| 0.02 | 1.1 | 0 of 2 | – | – | – | – | 1 diverged, 1 missing |" in text
    passing = text.split("### Ok in every seed, with a reward of at least 0.85")[1].split("###")[0]
    rows = [line for line in passing.splitlines() if line.startswith("| beta")]
    assert [line.split(" | ")[0] for line in rows] == [
        "| beta 0.003, penalty 1.05",
        "| beta 0.003, penalty 1.1",
        "| beta 0.02, penalty 1.05",
    ]
    assert "mean over the last 50 steps" in text


def test_a_run_that_is_shorter_than_the_window_is_said_to_be(filled: Tree, tmp_path: Path) -> None:
    brief = Tree(make_study(tmp_path / "results", {"reward_sweep": SWEEP}))
    brief.measure_bases()
    first, second, *_ = brief.study.grid["reward_sweep"]
    brief.finish(first, [0.5] * 30)
    brief.finish(second, [0.5] * 60)
    text = report(brief.study)
    said = "1 of 8 runs has only 30 steps: reward and KL are means over all of them, the first ones too."
    assert text.count(said) == 2


def test_figures_of_samples_have_intervals_over_seeds_and_prompts(text: str) -> None:
    lines = [line for line in text.splitlines() if line.startswith("| beta 0.003, penalty 1.05 | 2 | ")]
    # All prompts of the tree's samples alike.
    assert "| 0.000 (0.000 to 0.000) |" in lines[0]
    cells = [line for line in text.splitlines() if line.startswith("| beta 0.003, penalty 1.05, seed ")]
    assert [line.split(" | ")[:2] for line in cells if "(0.000 to 0.000)" in line] == [
        ["| beta 0.003, penalty 1.05, seed 42", "1"],
        ["| beta 0.003, penalty 1.05, seed 123", "1"],
    ]


def test_what_a_model_wrote_cannot_break_the_page(filled: Tree, text: str) -> None:
    assert "<script>" not in text
    quote = next(line for line in text.splitlines() if line.startswith("> “**prompt 0**"))
    assert "&#60;script&#62;alert(1)&#60;/script&#62; &#124; &#96;x&#96; &#42;y&#42; &#91;z&#93;(w)" in quote
    assert len(quote) < 1000
    assert quote.endswith(" …”")


def test_a_title_from_the_configuration_cannot_break_the_page(tree: Make) -> None:
    text = report(tree(reward_sweep={**SWEEP, "title": "<img src=x> | a"}).study)
    assert "## &#60;img src=x&#62; &#124; a" in text
    assert "<img" not in text


def test_every_figure_that_the_page_links_exists(filled: Tree, text: str) -> None:
    links = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert links == [
        "figures/reward_sweep/learning_curves.svg",
        "figures/reward_sweep/reward_kl.svg",
        "figures/routed/routing_curves.svg",
    ]
    assert all((Path(filled.study.results) / link).exists() for link in links)


def test_every_published_configuration_and_claim_stands_on_the_page(filled: Tree, text: str) -> None:
    short, section = text.split("## Beside the published study")
    assert "[**Beside the published study**](#published), base `storyteller`" in short
    assert section.count("| rank 32, forget rank ") == 3
    assert section.count(", penalty 1.") == 6
    # Two seeds each; ours are 0.9 minus twice beta.
    assert re.search(r"0\.903 \(0\.89\d to 0\.91\d\) → 0\.860 \(0\.8\d+ to 0\.8\d+\) ✗", section)
    folded = re.findall(r"<details><summary>(.*?)</summary>", section)
    assert folded[0].startswith("10 not run: 1 of exact_match, 3 of lora_rank, 1 of batch_size, ")
    assert folded[-1].startswith("26 configurations not run, of lora_rank.csv, ")
    assert section.count("<details><summary>") == 3
    assert "| `beta-orders-kl` | reward_sweep | KL falls as beta rises |" in section
    assert "| 72 | routing_label_noise | sl10 of retain_only at step 200 is 0.00–0.23 | – | not run |" in section


def test_what_a_word_means_stands_on_the_page(filled: Tree, text: str) -> None:
    columns = text.split("## Columns")[1]
    for heading in (
        "sl10",
        "base NLL",
        "Jaccard (256)",
        "KL (exact)",
        "unlikely windows",
        "unlikely ends",
        "not ok from",
    ):
        (line,) = [line for line in columns.splitlines() if line.startswith(f"| {heading} |")]
        assert len(line.split("|")[3]) > 30, line
    assert "| 1 |" not in columns


def test_the_page_about_verdicts_is_found_from_wherever_the_results_lie(filled: Tree, text: str) -> None:
    templates = REPOSITORY / "workflow" / "templates"
    assert about_verdicts(REPOSITORY / "results", templates) == "../docs/verdict.md"
    assert about_verdicts(REPOSITORY / "results" / "quick", templates) == "../../docs/verdict.md"
    assert about_verdicts(Path(filled.study.results), templates) is None
    assert "verdict.md" not in text


def test_the_copy_at_the_root_has_links_that_lead_somewhere() -> None:
    page = (
        "[a](../docs/verdict.md) [b](../../docs/verdict.md) ![c](figures/x/y.svg) [d](#e) | [f](report.html#cell=g) |"
    )
    program = REPOSITORY / "workflow" / "templates" / "publish.sed"
    done = subprocess.run(["sed", "-E", "-f", program], input=page, capture_output=True, text=True, check=True)
    assert done.stdout == "[a](docs/verdict.md) [b](docs/verdict.md) ![c](docs/figures/x/y.svg) [d](#e) | f |"


def test_a_study_without_a_published_one_has_no_such_section(tmp_path: Path) -> None:
    alone = make_study(tmp_path / "results", {"reward_sweep": SWEEP}, published=None)
    tree = Tree(alone)
    tree.measure_bases()
    for cell in alone.grid["reward_sweep"]:
        tree.finish(cell)
    text = report(alone)
    assert "published study" not in text
    assert "#published" not in text
    assert "| question | cells | answer |\n" in text
    assert "## Columns" in text


def test_a_study_without_any_finished_cell_still_gives_a_page(tree: Make) -> None:
    text = report(tree(reward_sweep=SWEEP, routed=ROUTED).study)
    assert "| Cells | 10: 0 done, 0 diverged, 10 missing |" in text
    assert "| 8 missing | Best trade-off: not enough cells | " in text
    assert "**Best trade-off: not enough cells** *(0 cells, 0 seeds)*" in text


def test_findings_hold_the_figures_behind_them(filled: Tree, text: str) -> None:
    findings = json.loads((Path(filled.study.results) / "findings.json").read_text())
    order = next(each for each in findings if each["name"] == "beta_order")
    assert order["columns"] == [
        *("figure", "beta 0.003", "beta 0.02", "change", "95 % interval", "change by sd", "P", "n", "adjusted P")
    ]
    (reward,) = [line for line in order["rows"] if line["figure"] == "reward"]
    assert (reward["beta 0.003"], reward["beta 0.02"]) == (pytest.approx(0.894), pytest.approx(0.86))


def test_the_order_of_experiments_and_cells_survives_the_checked_configuration(tmp_path: Path) -> None:
    config = REPOSITORY / "config" / "config.yaml"
    assert script("study", "--files", config, "--out", tmp_path / "study.json") == 0
    study = Study.model_validate(json.loads((tmp_path / "study.json").read_text()))
    assert list(study.active)[:4] == ["reward_sweep", "exact_match", "exact_match_penalty", "lora_rank"]
    assert [cell.beta for cell in study.grid["reward_sweep"]][::4] == [0.003, 0.01, 0.02]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("table", ["--study", "none.json", "--experiment", "e", "--out", "t"], "none.json: no such file"),
        ("results", ["--study", "none.json", "--findings", "f", "--out", "r"], "none.json: no such file"),
        ("study", ["--files", "none.yaml", "--out", "s"], "none.yaml: (file): read 'none.yaml'; no such file"),
        ("study", ["--config", "none.json", "--files", "none.yaml", "--out", "s"], "none.json: no such file"),
    ],
)
def test_a_users_mistake_is_one_message_and_status_2(
    name: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(name, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_an_unknown_experiment_has_no_figures(tree: Make, capsys: pytest.CaptureFixture[str]) -> None:
    made = tree(reward_sweep=SWEEP)
    path = Path(made.study.results) / "study.json"
    path.parent.mkdir(parents=True)
    path.write_text(made.study.model_dump_json())
    assert script("figures", "--study", path, "--experiment", "reward_swep", "--out", path.parent / "f") == 2
    assert 'did you mean "reward_sweep"' in capsys.readouterr().err


def test_start_up_of_the_library_is_light() -> None:
    """Importing the report loads neither torch nor matplotlib nor jinja2."""
    import subprocess

    program = "import sys, rewardgrid.report.render, rewardgrid.report.figures, rewardgrid.published.section; "
    program += (
        "print([name for name in ('torch', 'matplotlib', 'jinja2', 'scipy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_small_formats() -> None:
    assert [duration(seconds) for seconds in (45.4, 600, 9000)] == ["45 s", "10 min", "2.5 h"]
    assert mean_sd("unique_first_sentences", 12.5, 2.12) == "12.5 (2.1)"
    assert mean_sd("unique_first_sentences", 12, None) == "12"
    assert mean_sd("final_reward", None, None) == "–"
    assert squeezed("a  \n\n\n\nb\n\n") == "a\n\nb\n"
