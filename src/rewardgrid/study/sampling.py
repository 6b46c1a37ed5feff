"""Random search in place of a grid (Bergstra and Bengio 2012): points drawn from ranges, the same ones everywhere.

A draw is a function of the seed, the setting's name and its number alone: more points keep those before them, another
range leaves the other settings' draws as they are, and no library's generator decides.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from functools import cached_property
from typing import Annotated, Any, Self, get_args

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from rewardgrid.study.cell import Cell, Count, Number, Seed, Strict

MOST = 10_000
"""Points: each is a cell for every point of the grids, and all are made before anything runs."""
TRIES = 100
"""Draws for each point that is asked for, before there are held to be no more that differ."""


class Range(Strict):
    """What values of one setting are drawn from; exactly one of the three. A list by itself is one of choices."""

    choices: list[Any] | None = Field(default=None, min_length=1, description="one of these, each as likely")
    uniform: tuple[Number, Number] | None = Field(default=None, description="[lowest, highest], all as likely")
    log: tuple[Number, Number] | None = Field(
        default=None, description="[lowest, highest], all magnitudes as likely: as many from 1e-5 to 1e-4 as to 1e-3"
    )

    @model_validator(mode="before")
    @classmethod
    def _choices(cls, value: Any) -> Any:
        return {"choices": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = [name for name in ("choices", "uniform", "log") if getattr(self, name) is not None]
        conflicts = []
        if len(given) != 1:
            fix = "write one of: a list of values, {uniform: [lowest, highest]}, {log: [lowest, highest]}"
            conflicts.append((given[-1] if given else "uniform", fix))
        for name in ("uniform", "log"):
            ends = getattr(self, name)
            if ends is not None and not ends[0] < ends[1]:
                conflicts.append((name, "write the lower end first, and another one after it"))
            elif ends is not None and name == "log" and ends[0] <= 0:
                conflicts.append((name, "write ends above 0, which have a logarithm"))
            elif ends is not None and not math.isfinite(ends[1] - ends[0]):
                conflicts.append((name, "write ends whose difference is a number"))
        if conflicts:
            raise PydanticCustomError("conflict", "no range", {"conflicts": conflicts})
        return self

    def value(self, share: float, whole: bool) -> Any:
        """The value that a share (from 0 to below 1) of the range lies below.

        Few digits, so that names can be read: two where magnitudes are drawn, else a hundredth to a thousandth of the
        range. ``whole``: a whole number, both ends included.
        """
        if self.choices is not None:
            return self.choices[int(share * len(self.choices))]
        if self.log is not None:
            low, high = self.log
            drawn = float(f"{math.exp(math.log(low) + share * math.log(high / low)):.1e}")
        else:
            assert self.uniform is not None
            low, high = self.uniform
            digits = 2 - math.floor(math.log10(high - low))
            drawn = math.floor(low + share * (high - low + 1)) if whole else round(low + share * (high - low), digits)
        inside = min(max(drawn, low), high)
        return round(inside) if whole else inside


class Sample(Strict):
    """So many points, each of a value for every setting that has a range."""

    n: Annotated[Count, Field(le=MOST)] = Field(description="points; more of them keep those that there were")
    seed: Seed = Field(default=0, description="of their draws; cells have seeds of their own")
    ranges: Annotated[dict[str, Range], Field(min_length=1)] = Field(
        description="by field of a cell: a list of values, {uniform: [lowest, highest]} or {log: [lowest, highest]}"
    )

    @model_validator(mode="after")
    def _enough(self) -> Self:
        parts = {key: each.uniform or each.log or () for key, each in self.ranges.items() if _whole(key)}
        broken = {key: end for key, ends in parts.items() for end in ends if end % 1}
        if broken:
            conflicts = [(f"ranges.{key}", f"write whole numbers as ends, not {end:g}") for key, end in broken.items()]
            raise PydanticCustomError("conflict", "no whole numbers", {"conflicts": conflicts})
        found = len(self.points)
        if found < self.n:
            fix = f"write {found} or less, or wider ranges: no more points of them differ at the digits that are kept"
            raise PydanticCustomError("conflict", "too many points", {"conflicts": [("n", fix)]})
        return self

    @cached_property
    def points(self) -> list[dict[str, Any]]:
        """The points in the order in which they were drawn; one that was drawn before is passed over."""
        found: dict[str, dict[str, Any]] = {}
        for number in itertools.count():
            if len(found) == self.n or number == TRIES * self.n:
                return list(found.values())
            point = {key: each.value(_share(self.seed, key, number), _whole(key)) for key, each in self.ranges.items()}
            found.setdefault(repr(point), point)
        raise AssertionError


def _share(seed: int, key: str, number: int) -> float:
    """A draw from 0 to below 1, of 53 bits."""
    digest = hashlib.sha256(f"{seed} {key} {number}".encode()).digest()
    return float(int.from_bytes(digest[:8], "big") >> 11) / float(2**53)


def _whole(key: str) -> bool:
    """Whether a field of a cell is a whole number."""
    return key in Cell.model_fields and _holds_int(Cell.model_fields[key].annotation)


def _holds_int(annotation: Any) -> bool:
    return annotation is int or any(_holds_int(part) for part in get_args(annotation))
