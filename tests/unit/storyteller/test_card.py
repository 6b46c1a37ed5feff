"""The card says what the files say."""

from __future__ import annotations

import pandas as pd

from rewardgrid.storyteller.card import card

PROVENANCE = {
    "name": "storyteller-small",
    "facts": {
        "parameters": 1_311_232,
        "teacher": {"kind": "gguf", "model": "some/where/f.gguf", "licence": "L", "sha256": "abc"},
        "told": 200,
        "kept": 50,
        "sifted": {"cut": {"too short": 30}, "held": {"monotonous": 20, "too little left": 120}},
        "train_stories": 45,
        "train_tokens": 4321,
        "held_out_stories": 5,
        "held_out_losses": [2.75, 2.5],
        "pretraining_steps": 77,
        "train_prompts": 170,
        "eval_prompts": 20,
    },
    "recipe": {
        "layers": 4,
        "hidden": 128,
        "heads": 4,
        "kv_heads": 2,
        "mlp_width": 341,
        "vocabulary": 4096,
        "epochs": 3,
        "gain": 5.0,
    },
}
FULL = {"sl10": 0.4, "sl10_se": 0.01, "comma_rate": 0.05, "ended": 0.25, "happy": 0.125, "base_nll": 1.75}
METRICS = {"max_new_tokens": 128, "full": FULL, "published": {"unique_first_sentences": 19.0, "jaccard": 0.123}}


def test_a_card_has_counts_figures_and_samples() -> None:
    rows = [("full", f"once {n}", "a dog, ran. it sat down") for n in range(8)] + [("published", "no", "not this one.")]
    text = card(PROVENANCE, METRICS, pd.DataFrame(rows, columns=["protocol", "prompt", "completion"]))
    assert text.startswith("# Storyteller, small\n")
    assert "Teacher: f.gguf, L (SHA-256 `abc`)." in text
    assert "1.31 million parameters" in text
    assert "(2.750, 2.500 after each reading)" in text
    assert "| too little left | 120 | 60.0% |" in text
    assert "| too short | 30 | 15.0% |" in text
    assert "loss on those 2.500 nats per token" in text
    assert "45 of the 50 that stayed" in text
    assert "| smooth reward | 0.400 ± 0.010 | about 0.5 |" in text
    assert "| unique first sentences | 19 / 20 | 20 / 20 |" in text
    assert "| words and commas per sentence | 4.0 (sd 0.0) | – |" in text
    assert '| completions that end with "[EOS]" | 25% | – |' in text
    assert "8 completions of at most 128 tokens" in text
    assert text.count("> **once") == 6
    assert "not this one" not in text
