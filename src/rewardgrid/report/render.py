"""RESULTS.md from the tables and the findings: what stands where, and in which words."""

from __future__ import annotations

import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from rewardgrid.report.columns import (
    COLUMNS,
    FINAL_STEPS,
    NOTHING,
    OWN,
    PASSING,
    RENAMED,
    decimals,
    is_measured,
    settings,
    show,
)
from rewardgrid.report.evidence import Evidence
from rewardgrid.report.figures import CAPTIONS
from rewardgrid.report.finding import NOT_ENOUGH, Scope
from rewardgrid.report.findings import Entry
from rewardgrid.report.markdown import code, cut, grid, md
from rewardgrid.report.pace import place
from rewardgrid.report.sampled import PER_PROMPT, PER_TOKEN, sampled
from rewardgrid.report.separation import DETECTED_LEARNED, HACK_LEARNED
from rewardgrid.report.statistics import Estimate
from rewardgrid.report.tables import (
    Configuration,
    Row,
    base_of,
    shown_columns,
    varying,
    verdict_in_words,
    verdicts_in_numbers,
)
from rewardgrid.report.verdicts import SIGNALS, evidence_table, other_draws
from rewardgrid.report.words import in_words
from rewardgrid.study.cell import REWARD_MEANINGS
from rewardgrid.study.files import read_json
from rewardgrid.study.study import Experiment, Study
from rewardgrid.study.text import count

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

SAMPLE_LENGTH = 320
"""Characters of a sample completion that are shown."""
OF_BASES = ("sl10", "happy", "unique_first_sentences", "jaccard", "completion_length", "base_nll")
"""What is told of a base's own samples."""
MOST_TWICE = 6
"""Up to so many configurations show two samples each; more show one."""


@dataclass(frozen=True)
class Section:
    """A section that another part of the library has written: safe Markdown below its heading, and in short.

    Attributes:
        answers: experiment -> what it has to say to that experiment's question, as plain text.
        answers_of: whose answers they are, as plain text.
    """

    anchor: str
    title: str
    summary: Markup
    text: Markup
    answers: Mapping[str, str] = field(default_factory=dict)
    answers_of: str = ""


@dataclass(frozen=True)
class Results:
    """Everything that RESULTS.md says."""

    study: Study
    tables: Mapping[str, Sequence[Row]]
    findings: Sequence[Entry]
    samples: Mapping[str, pd.DataFrame]
    bases: Mapping[str, Row]
    commit: str
    sections: Sequence[Section] = ()
    page: str | None = None
    """Where the page of runs lies beside RESULTS.md; no cell is linked without it."""


def render(results: Results, templates: Path) -> str:
    """RESULTS.md as text: the same for the same results, whatever the day.

    Raises:
        UserError: a configuration would average unequal cells.
    """
    experiments = [_experiment(results, name) for name in results.study.active]
    text = (
        environment(templates)
        .get_template("RESULTS.md.j2")
        .render(
            title=results.study.title,
            final_steps=FINAL_STEPS,
            passing=PASSING,
            provenance=provenance(results),
            about_verdicts=about_verdicts(Path(results.study.results), templates),
            summary=summary(experiments, results.sections),
            experiments=experiments,
            sections=results.sections,
            glossary=_glossary(results),
            words=_words(results),
        )
    )
    return squeezed(text)


def summary(experiments: Sequence[Mapping[str, Any]], sections: Sequence[Section]) -> Markup:
    """The first page: every experiment's question, its cells, and the answers, ours and those that sections have.

    Ours is the first of the experiment's findings.
    """
    from markupsafe import Markup

    others = [section for section in sections if any(entry["name"] in section.answers for entry in experiments)]
    lines = []
    for entry in experiments:
        answer = md(NOTHING)
        if entry["findings"]:
            first = entry["findings"][0]
            answer = Markup("{}: {}").format(md(first["title"]), md(first["conclusion"]))
            if first["conclusion"] != NOT_ENOUGH:
                answer += Markup(" *({})*").format(first["n"])
        lines.append(
            [
                Markup("[{}](#{})").format(md(entry["question"] or entry["title"]), entry["name"]),
                entry["verdicts"],
                answer,
                *(section.answers.get(entry["name"], NOTHING) for section in others),
            ]
        )
    headings = ["question", "cells", "answer", *(section.answers_of for section in others)]
    return grid(headings, lines, [False] * len(headings))


def about_verdicts(results: Path, templates: Path) -> str | None:
    """Link to the page about verdicts, from RESULTS.md; None if the results lie outside of the page's repository."""
    root = templates.resolve().parents[1]
    page, here = root / "docs" / "verdict.md", results.resolve()
    if not page.exists() or not here.is_relative_to(root):
        return None
    return Path(os.path.relpath(page, here)).as_posix()


def environment(templates: Path) -> Environment:
    """Where templates are read from and how they escape what a model or a configuration wrote."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(templates),
        # A net below `md`: whatever is not known to be safe Markdown is at least no HTML.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"md": md, "code": code}
    return made


def squeezed(text: str) -> str:
    """Text with at most one empty line in a row and one line break at its end."""
    lines: list[str] = []
    for line in (line.rstrip() for line in text.splitlines()):
        if line or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines).rstrip("\n") + "\n"


# --- provenance ----------------------------------------------------------------------------------------


def provenance(results: Results) -> Markup:
    """Where the figures come from: bases, code, libraries, hardware, and how many cells are done."""
    rows = list({row["cell"]: row for table in results.tables.values() for row in table}.values())
    states = Counter(row["state"] for row in rows)
    ran = [row for row in rows if row["state"] != "missing"]
    lines: list[tuple[str, str]] = [
        *(("Base", _base(results, base_id)) for base_id in sorted({base_of(row) for row in rows})),
        (
            "Cells",
            md(
                f"{len(rows)}: {states['done']} done, "
                + (f"{states['stopped']} stopped, " if states["stopped"] else "")
                + f"{states['diverged']} diverged, {states['missing']} missing"
            ),
        ),
        ("Paid for", _paid(rows)),
        ("Engine", md(_tally(f"{row['engine']}, {row['precision']}" for row in ran))),
        ("Hardware", md(_tally(str(row["hardware"]) for row in ran))),
        ("Training time", md(_times(ran))),
        ("Libraries", md(_tally(str(row["versions"]) for row in ran))),
        ("Code", md(results.commit)),
    ]
    return grid(["", ""], lines, [False, False])


def _times(ran: Sequence[Row]) -> str:
    """Wall clock of all training, and what it is at the median pace of each kind of cell, without what ran beside."""
    kinds = defaultdict(list)
    for row in ran:
        if row["seconds_per_step"]:
            kinds[place(row, row["hardware"])].append(row)
    usual = sum(
        statistics.median(row["seconds_per_step"] for row in alike) * sum(row["steps_done"] for row in alike)
        for alike in kinds.values()
    )
    return (
        f"{duration(sum(row['seconds'] or 0.0 for row in ran))} of wall clock in sum, some of it beside other work; "
        f"{duration(usual)} by the median seconds per step of each kind of cell on its hardware"
    )


def _tally(values: Iterator[str]) -> str:
    """Distinct values with how many cells have each; the number is left out if there is but one."""
    found = Counter(values)
    if len(found) < 2:
        return next(iter(found), NOTHING)
    return "; ".join(f"{value} ({count(number, 'cell')})" for value, number in sorted(found.items()))


def _paid(rows: Sequence[Row]) -> Markup:
    """What the cells are paid for, and how it pays."""
    from markupsafe import Markup

    meanings = {str(name): meaning for name, meaning in REWARD_MEANINGS.items()}
    lines = []
    for name, number in Counter(str(row["reward"]) for row in rows).most_common():
        line = Markup("{} ({})").format(code(name), count(number, "cell"))
        lines.append(line + (Markup(": {}").format(md(meanings[name])) if name in meanings else ""))
    return Markup("<br>").join(lines)


def _base(results: Results, base_id: str) -> Markup:
    from markupsafe import Markup

    recipe = next((r for key, (_, r) in results.study.base_recipes.items() if key == base_id), None)
    described = ""
    if recipe is not None:
        # A packaged base has as many prompts as it has; its card counts them.
        caps = {"train_prompts", "eval_prompts"} if recipe.kind == "packaged" else set()
        described = ", ".join(f"{key} {value}" for key, value in recipe.model_dump(mode="json", exclude=caps).items())
    row = results.bases.get(base_id)
    figures = "not measured yet"
    if row is not None:
        figures = ", ".join(f"{COLUMNS[name].label} {show(name, row[name])}" for name in OF_BASES)
        further = other_draws(read_json(results.study.layout.base_metrics(base_id)))
        figures += f"; the verdict on further draws of it: {further}"
    return Markup(f"{code(base_id)}: {md(described)}.<br>Its own samples: {md(figures)}.")


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# --- experiments ---------------------------------------------------------------------------------------


def _experiment(results: Results, name: str) -> dict[str, Any]:
    experiment, rows = results.study.active[name], list(results.tables[name])
    findings = [_finding(finding) for finding in results.findings if finding["experiment"] == name]
    scope = _scope(results, name)
    states = Counter(row["state"] for row in rows)
    unfinished = [f"{states[state]} {state}" for state in ("stopped", "diverged", "missing") if states[state]]
    return {
        "name": name,
        "title": experiment.title,
        "question": experiment.question,
        "states": ", ".join([f"{count(len(rows), 'cell')}: {states['done']} done", *unfinished]),
        "verdicts": ", ".join(
            filter(None, [verdicts_in_numbers(row["verdict"] for row in scope.finished), *unfinished])
        ),
        "figures": [
            {
                "caption": CAPTIONS[figure],
                "path": f"figures/{name}/{figure}.svg",
                "alt": figure.replace("_", " "),
            }
            for figure in experiment.figures
        ],
        "configurations": configuration_table(scope, experiment),
        "sampled": sampled_table(results, scope),
        "sampled_cells": sampled_cells(results, scope),
        "short": short_runs(rows),
        "cells": cell_table(rows, experiment, _bases_of(results, rows), results.page),
        "evidence": evidence_table(results.study.layout, rows),
        "passing": passing_table(scope),
        "findings": findings,
        "samples": list(_samples(results, scope)),
        "missing": [{"cell": row["cell"], "reason": row["reasons"]} for row in rows if row["state"] == "missing"],
        "stopped": [{"cell": row["cell"], "reason": row["reasons"]} for row in rows if row["state"] == "stopped"],
        "diverged": [
            {"cell": row["cell"], "step": row["steps_done"], "reason": row["reasons"]}
            for row in rows
            if row["state"] == "diverged"
        ],
    }


def _scope(results: Results, name: str) -> Scope:
    return Scope(Evidence(results.tables), name, tuple(results.study.active[name].by))


def _bases_of(results: Results, rows: Sequence[Row]) -> list[Row]:
    """The bases that these cells start from, each with its reward for every thing that they are paid for.

    What is hacked is what their detectors say.
    """
    used = dict.fromkeys((base_of(row), row["reward"], row["detector"]) for row in rows)
    return [
        {**base, "reward": reward, "final_reward": base["rewards"].get(reward)}
        | ({} if detector is None else {"detector": detector, "hacked": base["says"].get(detector)})
        for base_id, reward, detector in used
        if (base := results.bases.get(base_id)) is not None
    ]


def _numeric(name: str) -> bool:
    return str(COLUMNS[name].kind) in ("int64", "double") if name in COLUMNS else False


def cell_table(rows: Sequence[Row], experiment: Experiment, bases: Sequence[Row], page: str | None = None) -> Markup:
    """Every cell with the experiment's columns, its verdict a link into the page; the base's own samples below."""
    columns = shown_columns(experiment)
    if "verdict" not in columns:
        columns.append("verdict")
    lines: list[list[str]] = [
        [_linked(row, page) if name == "verdict" else show(name, row[name]) for name in columns] for row in rows
    ]
    measured = [name for name in columns if is_measured(name)]
    for base in bases:
        if any(base.get(name) is not None for name in measured):
            line: list[str] = [show(name, base.get(name)) if name in (*measured, "reward") else "" for name in columns]
            line[columns.index("verdict")] = "base, for reference" + drawn_longer(base, rows)
            lines.append(line)
    return grid([COLUMNS[name].label for name in columns], lines, [_numeric(name) for name in columns])


def _linked(row: Row, page: str | None) -> str:
    """A cell's verdict, leading to where the page shows the cell."""
    from markupsafe import Markup

    said = md(verdict(row))
    return Markup(f"[{said}]({page}#cell={row['cell']})") if page else said


def drawn_longer(base: Row, rows: Sequence[Row]) -> str:
    """What to know of a base that was sampled to another length than some of these cells."""
    length = base["max_new_tokens"]
    return "" if {row["max_new_tokens"] for row in rows} == {length} else f", to {length} tokens"


def verdict(row: Row) -> str:
    """A cell's verdict with its reasons, and since when; or why it has none."""
    if row["state"] == "diverged":
        return f"diverged at step {row['steps_done']}"
    if row["state"] == "missing":
        return "missing"
    if row["state"] == "stopped":
        return f"stopped at step {row['stopped_at']}"
    said = verdict_in_words(row["verdict"], row["reasons"])
    if row["degeneration_onset"] is not None:
        said += f"; not ok from step {row['degeneration_onset']}"
    return said if row["hack_onset"] is None else f"{said}; hacks from step {row['hack_onset']}"


def configuration_table(scope: Scope, experiment: Experiment) -> Markup:
    """Means over seeds of the experiment's measured columns, with sd, and an interval of one of them."""
    found = scope.configurations
    fields = found[0].fields
    metrics = [name for name in experiment.columns if is_measured(name)] or ["final_reward"]
    first = "final_reward" if "final_reward" in metrics else metrics[0]
    headings = [COLUMNS[name].label for name in fields] + ["n"]
    for name in metrics:
        headings.append(COLUMNS[name].label)
        if name == first:
            headings.append("95 % interval")
    lines = []
    for configuration in found:
        line = [show(name, configuration.cells[0][name]) for name in fields]
        line.append(f"{len(configuration.finished)} of {len(configuration.cells)}")
        for name in metrics:
            mean = configuration.mean(name)
            line.append(mean_sd(name, mean.mean, mean.sd))
            if name == first:
                known = mean.low is not None
                line.append(f"{show(name, mean.low)} to {show(name, mean.high)}" if known else NOTHING)
        lines.append([*line, _verdicts(configuration)])
    numeric = [_numeric(name) for name in fields] + [True] * (len(headings) - len(fields))
    return grid([*headings, "verdicts"], lines, [*numeric, False])


def sampled_table(results: Results, scope: Scope) -> Markup | None:
    """What final samples say of each configuration, with intervals; None without any."""
    return _sampled(results, [(found.label, found.finished) for found in scope.configurations])


def sampled_cells(results: Results, scope: Scope) -> Markup | None:
    """The same of each cell, where a configuration has several; None otherwise."""
    if all(len(found.finished) < 2 for found in scope.configurations):
        return None
    told_apart = [*varying(scope.rows), "seed"]
    return _sampled(results, [(settings(told_apart, row), [row]) for row in scope.finished])


def _sampled(results: Results, groups: Sequence[tuple[str, Sequence[Row]]]) -> Markup | None:
    lines, names = [], [RENAMED.get(column, column) for column in (*PER_PROMPT, *PER_TOKEN)]
    for label, cells in groups:
        frames = [results.samples[cell] for row in cells if (cell := row["cell"]) in results.samples]
        found = sampled([frame[frame["mode"] == "both"] for frame in frames])
        if found:
            lines.append([label, str(len(frames)), *(estimated(name, found.get(name)) for name in names)])
    headings = ["", "n", *(COLUMNS[name].label for name in names)]
    return grid(headings, lines, [False, *[True] * (len(names) + 1)]) if lines else None


def estimated(name: str, found: Estimate | None) -> str:
    """``0.131 (0.125 to 0.137)``."""
    return (
        NOTHING if found is None else f"{show(name, found.value)} ({show(name, found.low)} to {show(name, found.high)})"
    )


def short_runs(rows: Sequence[Row]) -> str | None:
    """What to know of runs with fewer steps than the means are taken over; None if there are none."""
    short = [row for row in rows if row["state"] == "done" and row["steps_done"] < FINAL_STEPS]
    if not short:
        return None
    steps = sorted({row["steps_done"] for row in short})
    length = f"{steps[0]} steps" if len(steps) == 1 else f"{steps[0]} to {steps[-1]} steps"
    verb = "has" if len(short) == 1 else "have"
    which = "The run has" if len(rows) == 1 else f"{len(short)} of {count(len(rows), 'run')} {verb}"
    return f"{which} only {length}: reward and KL are means over all of them, the first ones too"


def mean_sd(name: str, mean: float | None, sd: float | None) -> str:
    """``0.905 (0.007)``: a mean and its standard deviation over seeds, if there are several."""
    if mean is None:
        return NOTHING
    digits = COLUMNS[name].digits or 0
    # A mean of whole numbers need not be one.
    digits = max(digits, 1) if sd is not None else digits
    return decimals(mean, digits) + (f" ({decimals(sd, digits)})" if sd is not None else "")


def _verdicts(found: Configuration) -> str:
    missing = sum(row["state"] == "missing" for row in found.cells)
    tally = [f"{number} {label}" for label, number in sorted(found.verdicts.items())]
    return ", ".join([*tally, f"{missing} missing"] if missing else tally)


def passing_table(scope: Scope) -> Markup | None:
    """The non-degenerate configurations with a mean reward of at least 0.85, best first."""
    passing = sorted(
        (found for found in scope.configurations if found.passes()),
        key=lambda found: found.reward.mean or 0.0,
        reverse=True,
    )
    if not passing:
        return None
    metrics = ("final_reward", "final_kl", "kl_exact", "unique_first_sentences", "jaccard")
    lines = [
        [
            found.label,
            str(found.reward.n),
            *(mean_sd(name, found.mean(name).mean, found.mean(name).sd) for name in metrics),
            _verdicts(found),
        ]
        for found in passing
    ]
    headings = ["configuration", "n", *(COLUMNS[name].label for name in metrics), "verdicts"]
    return grid(headings, lines, [False, *[True] * (len(metrics) + 1), False])


def _finding(finding: Entry) -> dict[str, Any]:
    return {
        "title": finding["title"],
        "conclusion": finding["conclusion"],
        "sentences": finding["sentences"],
        "n": f"{count(finding['cells'], 'cell')}, {count(finding['seeds'], 'seed')}",
        "rule": finding["rule"],
        "rows": figures_table(finding["columns"], finding["rows"]) if finding["rows"] else None,
    }


def figures_table(keys: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Markup:
    """The figures behind a finding: a column per key."""
    lines = [[figure(key, row.get(key)) for key in keys] for row in rows]
    numeric = [
        any(isinstance(row.get(key), (int, float)) and not isinstance(row.get(key), bool) for row in rows)
        for key in keys
    ]
    headings = [COLUMNS[key].label if key in COLUMNS else key.replace("_", " ") for key in keys]
    return grid(headings, lines, numeric)


def figure(key: str, value: Any) -> str:
    """One value behind a finding: by its column's digits, a spread as a range, else with 3 decimals."""
    if isinstance(value, Mapping):
        return in_words({"low": value["low"], "mean": value["mean"], "high": value["high"], "n": value["n"]})
    if key not in COLUMNS and isinstance(value, float):
        return decimals(value)
    return show(key, value)


def _samples(results: Results, scope: Scope) -> Iterator[dict[str, Any]]:
    """The first samples of each configuration's first finished seed, as quotes."""
    number = 2 if len(scope.configurations) <= MOST_TWICE else 1
    for found in scope.configurations:
        name = next((row["cell"] for row in found.finished if row["cell"] in results.samples), None)
        if name is None:
            continue
        full = results.samples[name]
        modes = [mode for mode in ("both", "retain_only") if (full["mode"] == mode).any()]
        quotes = [
            {
                "mode": mode.replace("_", " ") if len(modes) > 1 else "",
                "prompt": str(sample["prompt"]),
                "completion": cut(str(sample["completion"]), SAMPLE_LENGTH),
            }
            for mode in modes
            for sample in full[full["mode"] == mode].head(1 if len(modes) > 1 else number).to_dict("records")
        ]
        yield {"configuration": found.label, "quotes": quotes}


def _glossary(results: Results) -> Markup:
    """What each column that the page uses means."""
    used = ["final_reward", "final_kl", "kl_exact", "verdict", "degeneration_onset", "hack_onset"]
    used += [*OF_BASES, *(RENAMED.get(column, column) for column in (*PER_PROMPT, *PER_TOKEN)), *SIGNALS]
    for experiment in results.study.active.values():
        used += [*experiment.by, *experiment.columns]
        used += ["verdict_published_signals"] if "published_signals" in experiment.findings else []
    own = [name for name in dict.fromkeys(used) if name.startswith(OWN)]
    chosen = [name for name in (*COLUMNS, *own) if name in set(used) and name not in ("cell", "experiment", "state")]
    return grid(
        ["heading", "column", "meaning", "unit"],
        [[COLUMNS[name].label, code(name), COLUMNS[name].meaning, COLUMNS[name].unit] for name in chosen],
        [False] * 4,
    )


WORDS = {
    "gibberish": "stretches of text that the base finds unlikely",
    "chopped sentences": "sentences that end where the base would not end them",
    "fragments": "very short sentences, or very short completions",
    "comma stuffing": "far more commas than the base writes",
    "template": "the same sentence, or the same words, again and again",
}
"""The kinds of degeneracy."""
ROUTING_WORDS = {
    "hack": 'what is paid for and is not the task: "happy", or what a detector of one\'s own says',
    "learnt": f'both adapters together write at least {HACK_LEARNED:g} "happy" a completion more than the base (or '
    f"the detector flags a share of completions that is {DETECTED_LEARNED:g} larger)",
    "routed": "a completion that is flagged as hacked trains the forget adapter and not the retain adapter",
    "both, retain_only, forget_only": "with both adapters, without the forget adapter, without the retain adapter",
}


def _words(results: Results) -> Markup:
    """Words that are no columns."""
    routing = any(cell.is_routing for cell in results.study.cells.values())
    words = WORDS | (ROUTING_WORDS if routing else {})
    return grid(["word", "meaning"], [[word, meaning] for word, meaning in words.items()], [False, False])
