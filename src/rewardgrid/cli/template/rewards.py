"""What the study NAME pays for, and what it measures besides. docs/own_study.md says what such functions are given."""

import re


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def alliteration(completions: list[str], **_: object) -> list[float]:
    """Reward: the share of words that begin with s."""
    return [sum(word[0] == "s" for word in _words(text)) / max(1, len(_words(text))) for text in completions]


def distinct(completions: list[str], **_: object) -> list[float]:
    """Metric: distinct words among all words; it falls when a story says one thing again and again."""
    return [len(set(_words(text))) / max(1, len(_words(text))) for text in completions]
