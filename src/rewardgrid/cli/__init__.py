"""Commands of ``python -m rewardgrid``."""
