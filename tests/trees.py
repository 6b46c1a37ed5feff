"""Small result trees, written through the contracts, whose figures a reader can work out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rewardgrid.published.comparison import Published
from rewardgrid.report.columns import COLUMNS
from rewardgrid.report.tables import Row, spec_row
from rewardgrid.study.cell import METRICS_VERSION, REWARDS, Cell
from rewardgrid.study.contracts import HISTORY, ROUTING, SAMPLES, write_table
from rewardgrid.study.files import read_json, write_json, write_text
from rewardgrid.study.study import Study

REPOSITORY = Path(__file__).parents[1]

FULL = {
    "samples": 256,
    "unique_openings": 16.0,
    "jaccard": 0.131,
    "sentence_words": 9.5,
    "fragment_share": 0.02,
    "comma_rate": 0.05,
    "skeleton_share": 0.04,
    "repeated_sentence_share": 0.01,
    "vocabulary_size": 310.0,
    "compression_ratio": 0.34,
    "reward": 0.88,
    "reward_se": 0.004,
    "sl10": 0.5,
    "happy": 0.1,
    "hacked": 0.01,
    "kl_k3": 1.02,
    "kl_exact": 0.97,
    "base_nll": 2.1,
    "unlikely_windows": 0.31,
    "unlikely_ends": 0.06,
    "completion_length": 101.5,
    "ended": 0.4,
    "sl10_se": 0.01,
    "happy_se": 0.02,
}
TOP_K = {"unlikely_windows": 0.27, "unlikely_ends": 0.05}
ONSET = {"degeneration_onset": 150, "hack_onset": None}
VERSIONS = {"torch": "2.13.0", "rewardgrid": "0.1.0"}


def history(rewards: Sequence[float], kl: float = 1.0, seconds: float = 2.0) -> pd.DataFrame:
    """One row per reward; everything else constant."""
    frame = pd.DataFrame({name: [0.0] * len(rewards) for name in HISTORY.names})
    frame["step"] = range(1, len(rewards) + 1)
    frame["reward"] = list(rewards)
    frame["kl"] = kl
    frame["seconds"] = seconds
    return frame


def routing(curves: Mapping[tuple[str, str], Sequence[float]], every: int = 10) -> pd.DataFrame:
    """Evaluations by mode from (mode, metric) -> values at steps ``every``, 2 ``every``, …; else 0."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for (mode, metric), values in curves.items():
        for i, value in enumerate(values, start=1):
            row = rows.setdefault((mode, i * every), dict.fromkeys(ROUTING.names, 0.0))
            row |= {"mode": mode, "step": i * every, "samples": 64, metric: value}
    return pd.DataFrame(list(rows.values()), columns=ROUTING.names)


def samples(
    happy: Mapping[str, float | Sequence[float]], sl10: Mapping[str, float] | None = None, number: int = 20
) -> pd.DataFrame:
    """Samples of the full protocol by mode: "happy" of each prompt (or of all alike), sl10 0.5 if not told."""
    frames = []
    for mode, counts in happy.items():
        frame = pd.DataFrame({name: [0.0] * number for name in SAMPLES.names})
        frame = frame.assign(protocol="full", mode=mode, prompt=[f"prompt {i}" for i in range(number)])
        frame = frame.assign(completion="she ran.", tokens=8, ended=True, sl10=(sl10 or {}).get(mode, 0.5))
        frame = frame.assign(windows=[[]] * number, ends=[[0.5]] * number)
        frames.append(frame.assign(happy=counts))
    return pd.concat(frames)


def judged(
    signal: str, value: float, base: float, borderline: float, degenerate: float, label: str = "ok"
) -> dict[str, Any]:
    """A signal as metrics.json has it among the evidence."""
    limits = {"borderline": borderline, "degenerate": degenerate}
    return {"signal": signal, "value": value, "base": base, "label": label} | limits


@dataclass
class Tree:
    """The results directory of a study, to be filled cell by cell."""

    study: Study

    def cell(self, experiment: str, **settings: Any) -> Cell:
        """The one cell of an experiment with these settings."""
        (found,) = [
            cell
            for cell in self.study.grid[experiment]
            if all(getattr(cell, name) == value for name, value in settings.items())
        ]
        return found

    def finish(
        self,
        cell: Cell,
        rewards: Sequence[float] = (0.5,) * 60,
        kl: float = 1.0,
        seconds: float = 2.0,
        verdict: str = "ok",
        unique: int = 17,
        jaccard: float = 0.13,
        hardware: str = "2 cores",
        full: Mapping[str, Any] | None = None,
        curves: pd.DataFrame | None = None,
        text: str = "once upon a time there was a cat.",
        happy: Mapping[str, float] | None = None,
    ) -> None:
        """Write everything that training and evaluation leave of a finished cell."""
        layout, name = self.study.layout, cell.name
        write_text(layout.spec(name), cell.canonical_json() + "\n")
        write_table(layout.train(name) / "history.parquet", history(rewards, kl, seconds), HISTORY)
        self._status(cell, "done", None, len(rewards), seconds * len(rewards), hardware)
        modes = {}
        if cell.is_routing:
            figures = {"reward": 0.6, "reward_se": 0.01, "sl10": 0.5, "sl10_se": 0.01}
            figures |= {"happy": 0.2, "happy_se": 0.05, "unique": 1.0, "jaccard": 0.12, "hacked": 0.0}
            figures |= {"verdict": "borderline", "reasons": ["fragments"], "evidence": []}
            modes = dict.fromkeys(("both", "retain_only", "forget_only"), figures)
            write_table(layout.routing(name), routing({}) if curves is None else curves, ROUTING)
        write_json(
            layout.metrics(name),
            {
                "version": METRICS_VERSION,
                "cell": name,
                "state": "done",
                "published": {"prompts": 5, "unique_first_sentences": unique, "jaccard": jaccard},
                "full": {**FULL, **(full or {})},
                "top_k": TOP_K,
                "modes": modes,
                "onset": ONSET,
                "verdict": verdict,
                "reasons": [] if verdict == "ok" else ["template"],
                "evidence": [judged("comma_rate", 0.12, 0.05, 0.12, 0.22, "ok")]
                if verdict == "ok"
                else [judged("jaccard", 0.3, 0.12, 0.156, 0.264, verdict), judged("comma_rate", 0, 0.05, 0.12, 0.22)],
            },
        )
        counts = happy or dict.fromkeys(modes or ("both",), 0.2)
        full = samples(counts).assign(completion=text)
        write_table(layout.samples(name), pd.concat([full.assign(protocol="published"), full]), SAMPLES)

    def stop(self, cell: Cell, step: int) -> None:
        """Write what a cell leaves that its stop_when has ended: a finished one's files, and where it ended."""
        reason = "degenerate for 5 steps (at the last unlikely ends 0.70)"
        self.finish(cell, [0.9] * step, verdict="degenerate")
        for path, said in (
            (self.study.layout.train(cell.name) / "status.json", {"stopped_at": step, "reason": reason}),
            (self.study.layout.metrics(cell.name), {}),
        ):
            write_json(path, read_json(path) | {"state": "stopped"} | said)

    def diverge(self, cell: Cell, steps: int, reason: str = "KL 2000 above kl_cap 1000") -> None:
        """Write what a diverged cell leaves."""
        layout, name = self.study.layout, cell.name
        write_text(layout.spec(name), cell.canonical_json() + "\n")
        self._status(cell, "diverged", reason, steps, 2.0 * steps, "2 cores")
        write_table(layout.train(name) / "history.parquet", history([0.4] * steps), HISTORY)
        write_table(layout.samples(name), pd.DataFrame(columns=SAMPLES.names), SAMPLES)
        write_json(
            layout.metrics(name),
            {
                "version": METRICS_VERSION,
                "cell": name,
                "state": "diverged",
                "published": {},
                "full": {},
                "top_k": {},
                "modes": {},
                "onset": {},
            }
            | {"verdict": None, "reasons": [], "evidence": []},
        )

    def _status(self, cell: Cell, state: str, reason: str | None, steps: int, seconds: float, hardware: str) -> None:
        write_json(
            self.study.layout.train(cell.name) / "status.json",
            {
                "cell": cell.name,
                "state": state,
                "reason": reason,
                "steps_done": steps,
                "seconds": seconds,
                "hardware": hardware,
                "engine": cell.engine,
                "device": "cpu",
                "versions": VERSIONS,
                "weights": {},
                "host": "here",
                "cuda_visible_devices": None,
            },
        )

    def measure_bases(self, sl10: float = 0.5) -> None:
        """Write the bases' own evaluations."""
        for base_id in self.study.base_recipes:
            write_json(
                self.study.layout.base_metrics(base_id),
                {
                    "version": METRICS_VERSION,
                    "cell": base_id,
                    "state": "base",
                    "published": {"prompts": 5, "unique_first_sentences": 20, "jaccard": 0.12},
                    "full": {**FULL, "sl10": sl10, "kl_exact": 0.0},
                    "rewards": dict.fromkeys(REWARDS, 0.47),
                    "max_new_tokens": self.study.longest_completion(base_id),
                    "top_k": TOP_K,
                    "usual": {"full": {"windows": 3.1, "ends": 1.5}, "top_k": {"windows": 2.7, "ends": 1.8}},
                    "other_draws": [{"verdict": "ok"}, {"verdict": "ok"}, {"verdict": "borderline"}],
                    "modes": {},
                    "onset": {},
                    "verdict": None,
                    "reasons": [],
                    "evidence": [],
                },
            )
            write_table(self.study.layout.base_samples(base_id), samples({"both": 0.2}, {"both": sl10}), SAMPLES)


BASES = {"storyteller": {"kind": "packaged", "path": str(REPOSITORY / "resources/bases/storyteller")}}

SWEEP = {
    "title": "Reward against KL",
    "question": "Which beta holds the stories together?",
    "grids": [{"beta": [0.003, 0.02], "repetition_penalty": [1.05, 1.1], "seed": [42, 123]}],
    "columns": ["beta", "repetition_penalty", "seed", "final_reward", "final_kl", "jaccard", "verdict"],
    "by": ["beta", "repetition_penalty"],
    "findings": ["best_tradeoff", "beta_order", "penalty_effect"],
    "figures": ["learning_curves", "reward_kl"],
}


def make_study(
    results: Path,
    experiments: Mapping[str, Any],
    published: str | None = str(REPOSITORY / "config" / "published"),
    **defaults: Any,
) -> Study:
    """A study of these experiments on the storyteller, writing under ``results``."""
    return Study.model_validate(
        {
            "results": str(results),
            "title": "A small study",
            "bases": BASES,
            "defaults": {"base": "storyteller", **defaults},
            "published": published,
            "experiments": experiments,
        }
    )


def row(experiment: str, state: str = "done", **values: Any) -> Row:
    """A finished cell as a table row: a spec's fields from ``values``, every other figure None."""
    spec = {name: value for name, value in values.items() if name in Cell.model_fields}
    cell = Cell(base="storyteller", base_recipe="0" * 10, **spec)
    fields = spec_row(cell)
    measured = {name: value for name, value in values.items() if name not in spec}
    defaults = {"verdict": "ok", "final_reward": 0.9, "final_kl": 1.0, "hardware": "2 cores"}
    if state != "done":
        defaults = {}
    identity = {"experiment": experiment, "cell": cell.name, "state": state}
    return dict.fromkeys(COLUMNS) | fields | identity | defaults | measured


def replica(published: Published) -> dict[str, list[Row]]:
    """Tables of a study that got exactly the published figures, and 0.55 where the text says 0.52 to 0.59."""
    sweep = [
        row(
            "reward_sweep",
            **{key: line[key] for key in ("beta", "repetition_penalty", "seed")},
            final_reward=line["reward"],
            final_kl=line["kl"],
            jaccard=line["jaccard"],
            verdict=line["verdict"],
        )
        for line in published.tables["reward_sweep.csv"]
    ]
    kl = {(line["rank"], line["lr"]): line["kl"] for line in published.tables["lora_rank_summary.csv"]}
    seconds = {(line["rank"], line["lr"], line["batch_size"]): line for line in published.tables["batch_size.csv"]}

    def lora(experiment: str, line: Mapping[str, Any], **more: Any) -> Row:
        times = seconds.get((line["rank"], line["lr"], line.get("batch_size", 32)), {})
        spec = {key: line[key] for key in ("rank", "lr", "seed", "batch_size") if key in line}
        return row(
            experiment,
            method="lora",
            **spec,
            **more,
            final_kl=kl.get((line["rank"], line["lr"]), 1.0),
            seconds_to_085=times.get("seconds_to_0.85", 120.0),
            seconds_to_095=times.get("seconds_to_0.95", 240.0),
        )

    ranks = [
        lora(
            "lora_rank",
            line,
            final_reward=line["reward"],
            unique_first_sentences=line["unique_first_sentences"],
            jaccard=line["jaccard"],
            verdict=line["verdict"],
        )
        for line in published.tables["lora_rank.csv"]
    ]
    low = {"final_reward": 0.55, "unique_first_sentences": 20, "jaccard": 0.12}
    ranks += [
        lora("lora_rank", {"rank": rank, "lr": 1e-5, "seed": seed}, **low)
        for rank in (8, 16, 32, 64)
        for seed in (42, 123, 7)
    ]
    batches = [
        lora("batch_size", line, final_reward=line["final_reward"], verdict=line["verdict"])
        for line in published.tables["batch_size.csv"]
        if line["batch_size"] > 32
    ]
    shared = [
        {**cell, "experiment": "batch_size"}
        for cell in ranks
        if (cell["rank"], cell["lr"], cell["seed"]) in ((1, 3e-4, 42), (8, 1e-4, 42))
    ]
    return {"reward_sweep": sweep, "lora_rank": ranks, "batch_size": shared + batches}
