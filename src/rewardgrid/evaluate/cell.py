"""Evaluate a base or a finished cell: files in, ``metrics.json`` and tables out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rewardgrid.base.load import Base
from rewardgrid.evaluate.course import base_rollouts, course
from rewardgrid.evaluate.diversity import published
from rewardgrid.evaluate.samples import METRIC, PAID, Protocol, by_mode, draw, own_figures, summary
from rewardgrid.evaluate.samples import hacked as hacked_samples
from rewardgrid.lm.foreign import Architecture
from rewardgrid.lm.model import Weights
from rewardgrid.study.cell import METRICS_VERSION, REWARDS, Cell, Reward
from rewardgrid.study.contracts import (
    COURSE,
    HISTORY,
    MODE_SAMPLES,
    ROLLOUTS,
    ROUTING,
    SAMPLES,
    SAYS,
    read_table,
    write_table,
)
from rewardgrid.study.files import read_json, write_json
from rewardgrid.study.own import Code, OwnFunction, code_of
from rewardgrid.study.steps import first_reaching, lasting_from
from rewardgrid.study.study import Evaluation
from rewardgrid.study.verdict import Signals, verdict
from rewardgrid.train.keeper import mend
from rewardgrid.train.rollout import Assessor
from rewardgrid.train.surprise import Usual, unlikely, usual
from rewardgrid.train.weights import frozen_base, load_policy


def protocols(settings: Evaluation, max_new_tokens: int, other: int = 0) -> list[Protocol]:
    """Published (few samples for few prompts), full (nothing cut off), and as many with the published top-k.

    ``other`` counts further draws of the same protocols.
    """
    seed, top_k = settings.seed + other, settings.published_top_k
    return [
        Protocol(
            "published",
            settings.published_samples,
            settings.published_prompts,
            max_new_tokens,
            seed,
            top_k=top_k,
            open_only=True,
        ),
        Protocol("full", settings.samples, settings.samples, max_new_tokens, seed),
        Protocol("top_k", settings.samples, settings.samples, max_new_tokens, seed, top_k=top_k),
    ]


def sample_all(
    shape: Architecture,
    policy: Weights,
    reference: Weights,
    base: Base,
    cell: Cell,
    wanted: list[Protocol],
    also: Sequence[Reward | str] = (),
    metrics: Mapping[str, OwnFunction] | None = None,
    own: Sequence[Code] = (),
) -> dict[str, pd.DataFrame]:
    """The samples of each protocol, by its name; metrics and further code of one's own are asked about the full one."""
    found = {}
    for each in wanted:
        full = each.name == "full"
        asked = assessor(cell, base, metrics, own) if full else assessor(cell, base)
        found[each.name] = draw(shape, policy, reference, base, each, asked, also=also if full else ())
    return found


def assessor(
    cell: Cell, base: Base, metrics: Mapping[str, OwnFunction] | None = None, own: Sequence[Code] = ()
) -> Assessor:
    """What scores a cell's samples, with metrics and further code of one's own."""
    codes = [code_of(f"{METRIC}{name}", metric) for name, metric in (metrics or {}).items()]
    return Assessor([cell], base, torch.device("cpu"), metrics=[*codes, *own])


def measurements(
    samples: Mapping[str, pd.DataFrame], limits: Mapping[str, Usual], hacked_from: int
) -> dict[str, dict[str, float | int | None]]:
    """Figures by protocol; ``limits`` are what is usual for the base under it."""
    few, full, top_k = (samples[name] for name in ("published", "full", "top_k"))
    return {
        "published": published(list(few["prompt"]), list(few["completion"])),
        "full": summary(full, hacked_from, limits["full"]),
        "top_k": unlikely(top_k, limits["top_k"]),
    }


def signals(figures: Mapping[str, Any]) -> Signals:
    """What the verdict looks at, of a cell's or a base's figures by protocol."""
    return {
        **figures["full"],
        **{f"{name}_top_k": value for name, value in figures["top_k"].items()},
        **{name: figures["published"][name] for name in ("unique_first_sentences", "prompts")},
    }


def evaluate_base(base: Base, settings: Evaluation, max_new_tokens: int, out: Path, own: Sequence[Code] = ()) -> None:
    """Measure a base's own samples, the reference of every verdict; writes metrics.json and samples.parquet.

    ``usual`` holds the quantiles that cells are compared with; ``rewards`` what the base earns untrained, by what is
    paid for; ``says`` the share of its stories of which a function of one's own says anything but 0;
    ``other_draws`` the verdicts on further draws of the same base, which should all be ok.

    Args:
        own: rewards and detectors of one's own that cells on this base use; they are asked about its samples too.

    Raises:
        UserError: the model's context is too short for such completions, or there are too few evaluation prompts.
    """
    base.check_room("evaluation", base.eval_prompts().ids.shape[1], max_new_tokens)
    shape, weights = frozen_base(base)
    cell = Cell(max_new_tokens=max_new_tokens)

    def drawn(other: int, **further: Any) -> dict[str, pd.DataFrame]:
        wanted = protocols(settings, max_new_tokens, other)
        return sample_all(shape, weights, weights, base, cell, wanted, **further)

    paid = [*REWARDS, *(code.name for code in own)]
    samples = drawn(0, also=paid, metrics=settings.metrics, own=own)
    write_table(out / "samples.parquet", pd.concat(samples.values()), SAMPLES)
    limits = {name: usual(samples[name]) for name in ("full", "top_k")}
    figures: dict[str, Any] = {
        "version": METRICS_VERSION,
        "cell": base.directory.name,
        "state": "base",
        "max_new_tokens": max_new_tokens,
        **measurements(samples, limits, cell.hacked_from),
        "usual": limits,
        "rewards": {name: float(samples["full"][f"{PAID}{name}"].mean()) for name in paid},
        "modes": {},
        "onset": {},
        "verdict": None,
        "reasons": [],
        "evidence": [],
    }
    if settings.metrics:
        figures["own"] = own_figures(samples["full"], settings.metrics)
    if own:
        said = {code.name: samples["full"][f"{SAYS}{code.name}"] != 0 for code in own if not code.parts}
        figures["says"] = {name: float(holds.mean()) for name, holds in said.items()}
    figures["other_draws"] = [
        judge(measurements(drawn(other), limits, cell.hacked_from), figures, cell, settings)
        for other in range(1, settings.base_draws + 1)
    ]
    write_json(out / "metrics.json", figures)


def evaluate_cell(directory: Path, cell: Cell, base: Base, reference_file: Path, settings: Evaluation) -> None:
    """Measure a trained cell and judge it against its base.

    Writes below ``directory/evaluation``: samples.parquet, routing.parquet, course.parquet and, last, metrics.json. A
    diverged cell gets metrics that say so and hold no figures.

    Raises:
        UserError: training has not finished, what it left is damaged beyond mending, or there are too few evaluation
            prompts.
    """
    train, out = directory / "train", directory / "evaluation"
    mend(directory, cell)
    status = read_json(train / "status.json")
    figures: dict[str, Any] = {
        "version": METRICS_VERSION,
        "cell": cell.name,
        "state": status["state"],
        "max_new_tokens": cell.max_new_tokens,
        "published": {},
        "full": {},
        "top_k": {},
        "modes": {},
        "onset": {},
        "verdict": None,
        "reasons": [],
        "evidence": [],
    }
    frames = [pd.DataFrame(columns=SAMPLES.names)]
    steps = pd.DataFrame(columns=COURSE.names)
    if status["state"] in ("done", "stopped"):
        reference = read_json(reference_file)
        shape, frozen = frozen_base(base)
        policy = load_policy(train / "weights", cell, base)[1]
        wanted = protocols(settings, cell.max_new_tokens)
        samples = sample_all(shape, policy, frozen, base, cell, wanted, metrics=settings.metrics)
        frames = list(samples.values())
        figures |= measurements(samples, reference["usual"], cell.hacked_from)
        if settings.metrics:
            figures["own"] = own_figures(samples["full"], settings.metrics)
        if cell.is_routing:
            figures["modes"]["both"] = of_mode(samples["full"], figures["full"], reference, cell, settings)
            for mode in ("retain_only", "forget_only"):
                alone = load_policy(train / "weights", cell, base, mode)[1]
                (full,) = (each for each in wanted if each.name == "full")
                frames.append(draw(shape, alone, frozen, base, full, assessor(cell, base), mode))
                seen = summary(frames[-1], cell.hacked_from, reference["usual"]["full"])
                figures["modes"][mode] = of_mode(frames[-1], seen, reference, cell, settings)
        figures |= judge(figures, reference, cell, settings)
        steps, figures["onset"] = course_of(train, cell, base, settings)
    write_table(out / "samples.parquet", pd.concat(frames), SAMPLES)
    write_table(out / "course.parquet", steps, COURSE)
    mode_samples = read_table(train / "mode_samples.parquet", MODE_SAMPLES)
    write_table(out / "routing.parquet", routing_table(mode_samples, cell.hacked_from), ROUTING)
    write_json(out / "metrics.json", figures)


def of_mode(
    samples: pd.DataFrame, seen: Signals, reference: Mapping[str, Any], cell: Cell, settings: Evaluation
) -> dict[str, Any]:
    """The figures of one set of active adapters, and the verdict on what it writes, by the summary of its samples.

    Every set is sampled by the full protocol and by no other, so the verdict looks at what that one shows.
    """
    return by_mode(samples, cell.hacked_from) | _judged(seen, reference["full"], reference, cell, settings)


def judge(figures: Mapping[str, Any], reference: Mapping[str, Any], cell: Cell, settings: Evaluation) -> dict[str, Any]:
    """The verdict with its reasons and evidence, from the figures of cell and base by protocol."""
    return _judged(signals(figures), signals(reference), reference, cell, settings)


def _judged(
    seen: Signals, own: Signals, reference: Mapping[str, Any], cell: Cell, settings: Evaluation
) -> dict[str, Any]:
    """The same from the signals of the cell and those of the base."""
    base = dict(own)
    if reference["max_new_tokens"] != cell.max_new_tokens:
        # The base was sampled to another length: what depends on length cannot be compared.
        base |= {"completion_length": None, "compression_ratio": None}
    found = verdict(seen, base, settings.thresholds)
    return {
        "verdict": found.label,
        "reasons": list(found.reasons),
        "evidence": [asdict(judged) for judged in found.evidence],
    }


def course_of(train: Path, cell: Cell, base: Base, settings: Evaluation) -> tuple[pd.DataFrame, dict[str, int | None]]:
    """A run's course (schema COURSE), and the steps from which it is not ok and hacks."""
    shape, weights = frozen_base(base)
    own = base_rollouts(shape, weights, base, cell, settings)
    rollouts = read_table(train / "rollouts.parquet", ROLLOUTS)
    steps = course(rollouts, own, shape, weights, base, cell.prompt_length, settings.thresholds)
    hacked = read_table(train / "history.parquet", HISTORY)["hacked"].tolist()
    usual_share = float(hacked_samples(own, cell.hacked_from).mean())
    return steps, {
        "degeneration_onset": lasting_from(steps["step"].tolist(), (steps["verdict"] != "ok").tolist()),
        "hack_onset": first_reaching(hacked, usual_share + settings.hack_onset),
    }


def routing_table(samples: pd.DataFrame, hacked_from: int) -> pd.DataFrame:
    """Figures by step and mode (:data:`rewardgrid.study.contracts.ROUTING`) of a run's evaluations.

    Of a detector of one's own, as the column ``says_NAME``, the share of completions that it calls hacked.
    """
    rows, said = [], [name for name in samples.columns if name.startswith(SAYS)]
    for (step, mode), group in samples.groupby(["step", "mode"], sort=True):
        figures = by_mode(group, hacked_from)
        figures |= {name: float((group[name] != 0).mean()) for name in said}
        kept = {name: figures[name] for name in (*ROUTING.names, *said) if name in figures}
        rows.append({"step": step, "mode": mode} | kept)
    return pd.DataFrame(rows, columns=[*ROUTING.names, *said])
