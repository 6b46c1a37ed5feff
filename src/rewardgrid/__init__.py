"""Grids of small reinforcement-learning runs on a tiny story model, and what they say about reward gaming."""

__version__ = "0.1.0"
