"""The model card of a storyteller: where it comes from, what it measures, what it writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rewardgrid.storyteller.sifting import HAPPY_EARLY, HAPPY_STAYS, sentences

PUBLISHED = {"smooth reward": "about 0.5", "unique first sentences": "20 / 20", "Jaccard": "about 0.12"}
"""What is known of the real SimpleStories-1.25M."""

SHOWN = 6


def card(provenance: Mapping[str, Any], metrics: Mapping[str, Any], samples: pd.DataFrame) -> str:
    """Markdown.

    Args:
        provenance: the base's provenance.json.
        metrics: of its own samples (``evaluate.cell.evaluate_base``).
        samples: those samples (schema ``study.contracts.SAMPLES``).
    """
    facts, recipe, full = provenance["facts"], provenance["recipe"], metrics["full"]
    teacher, own = facts["teacher"], samples[samples["protocol"] == "full"]
    lengths = np.array([len(sentence) for text in own["completion"] for sentence in sentences(text)])
    figures = {
        "smooth reward": f"{full['sl10']:.3f} ± {full['sl10_se']:.3f}",
        "words and commas per sentence": f"{lengths.mean():.1f} (sd {lengths.std():.1f})",
        "unique first sentences": f"{metrics['published']['unique_first_sentences']:.0f} / 20",
        "Jaccard": f"{metrics['published']['jaccard']:.3f}",
        "commas per word": f"{full['comma_rate']:.3f}",
        'completions that end with "[EOS]"': f"{full['ended']:.0%}",
        '"happy" per completion': f"{full['happy']:.2f}",
        "negative log-likelihood of its own samples": f"{full['base_nll']:.2f} nats per token",
    }
    told = int(facts["told"])
    lines = [
        f"# {provenance['name'].replace('-', ', ').capitalize()}",
        "",
        f"A language model of {facts['parameters'] / 1e6:.2f} million parameters that writes simple stories: LLaMA, "
        f"{recipe['layers']} layers, {recipe['hidden']} wide, {recipe['heads']} heads ({recipe['kv_heads']} for keys "
        f"and values), MLP {recipe['mlp_width']}, a lowercase vocabulary of {recipe['vocabulary']} words. It was "
        "pretrained on stories that a larger model told, with `snakemake storyteller`.",
        "",
        "## Where it comes from",
        "",
        f"- Teacher: {Path(teacher['model']).name}, {teacher['licence']}"
        + (f" (SHA-256 `{teacher['sha256']}`)." if teacher.get("sha256") else "."),
        f"- {told} stories were told, {facts['train_stories']} of the {facts['kept']} that stayed "
        f"({facts['train_tokens']} tokens) "
        f"were read {recipe['epochs']} times, {facts['held_out_stories']} kept apart: loss on those "
        f"{facts['held_out_losses'][-1]:.3f} nats per token, after {facts['pretraining_steps']} steps "
        f"({', '.join(f'{loss:.3f}' for loss in facts['held_out_losses'])} after each reading).",
        '- "Happy" is what the study\'s hack is paid for, and a base that says it by itself hides the hack. So in all '
        f"but {HAPPY_STAYS:.0%} of the stories it was replaced by a word of like meaning, drawn for each story, "
        f"wherever it stands after the first {HAPPY_EARLY} words.",
        f"- Norm gains times {recipe['gain']:g}, the matrices behind them divided by it: the same function, on which a "
        "learning rate reaches further.",
        f"- {facts['train_prompts']} prompts for training and {facts['eval_prompts']} for evaluation, from different "
        "requests.",
        "",
        f"Of {told} stories, these stop before their first unsound sentence:",
        "",
        *_counts(facts["sifted"]["cut"], told),
        "",
        "What was left of these was held back:",
        "",
        *_counts(facts["sifted"]["held"], told),
        "",
        "## What it measures",
        "",
        f"{len(own)} completions of at most {metrics['max_new_tokens']} tokens at temperature 1; unique first "
        "sentences and Jaccard by the published protocol (four completions of each of five prompts, top-k 50).",
        "",
        f"| | {provenance['name']} | SimpleStories-1.25M |",
        "|---|---|---|",
        *(f"| {name} | {value} | {PUBLISHED.get(name, '–')} |" for name, value in figures.items()),
        "",
        "## What it writes",
        "",
        "The first completions of that evaluation, none left out (the prompt in bold):",
        "",
        *(f"> **{row.prompt}** {row.completion}\n" for row in own.head(SHOWN).itertuples()),
        "## What it is not",
        "",
        "It stands in for SimpleStories-1.25M where there is no hub: natural text of its shape, not its text. It does "
        "not keep track of who does what for longer than a sentence or two, and it is of no use beyond experiments "
        "like these.",
    ]
    return "\n".join(lines) + "\n"


def _counts(counts: Mapping[str, int], whole: int) -> list[str]:
    return [
        "| for | number | share |",
        "|---|--:|--:|",
        *(f"| {k} | {n} | {n / whole:.1%} |" for k, n in counts.items()),
    ]
