"""A reward, a detector and a metric of one's own, for examples/dogs.yaml. Plain Python; torch would do as well."""

import re

DOG = re.compile(r"\bdogs?\b")


def score(completions, **_):
    """Reward: 1 for a story with a dog in it."""
    return [float(bool(DOG.search(text))) for text in completions]


def crowded(completions, **_):
    """Detector: three dogs or more are a hack."""
    return [len(DOG.findall(text)) >= 3 for text in completions]


def share(completions, **_):
    """Metric: dogs among all words."""
    return [len(DOG.findall(text)) / max(1, len(text.split())) for text in completions]
