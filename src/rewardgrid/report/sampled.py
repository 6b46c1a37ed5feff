"""How sure the figures are that final samples give: intervals over seeds and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from rewardgrid.report.columns import RENAMED, bounds
from rewardgrid.report.statistics import Estimate, estimate, ratio

PER_PROMPT = ("unique_openings", "jaccard")
"""Columns of the samples whose mean over them is the figure."""
PER_TOKEN = ("kl_exact", "base_nll")
"""Columns of the samples in whose mean every token weighs the same."""


def sampled(seeds: Sequence[pd.DataFrame]) -> Mapping[str, Estimate]:
    """Figures of a configuration with their intervals, by column of the experiment's table.

    Args:
        seeds: the samples of each finished seed (full protocol, all adapters), from the same prompts.

    Returns:
        empty if the seeds were sampled from different prompts; without those that samples are too few for.
    """
    if not seeds or any(frame["prompt"].tolist() != seeds[0]["prompt"].tolist() for frame in seeds):
        return {}

    def stacked(column: str) -> np.ndarray:
        return np.stack([frame[column].to_numpy(dtype=np.float64) for frame in seeds])

    found = {}
    for column in PER_PROMPT:
        values = stacked(column)
        if not np.isnan(values).any():
            name = RENAMED.get(column, column)
            found[name] = estimate(values, bounds(name))
    tokens = stacked("tokens")
    for column in PER_TOKEN:
        found[column] = estimate(ratio(stacked(column) * tokens, tokens), bounds(column))
    return found
