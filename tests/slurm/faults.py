"""What the fault suite injected and what it cost, as a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from rewardgrid.study.files import read_json, write_json, write_text


@dataclass
class Injection:
    """One kind of fault: how often, what its cells lost, what the user was told."""

    times: int = 0
    steps_again: int = 0
    told: str = ""


@dataclass
class Trial:
    """The faults of one test."""

    injections: dict[str, Injection] = field(default_factory=dict)

    def injected(self, fault: str, told: str, times: int = 1, steps_again: int = 0) -> None:
        """A fault was injected ``times`` times, and all was as it should be afterwards.

        Args:
            told: where the user learned of it.
            steps_again: steps that were computed twice because of it.
        """
        one = self.injections.setdefault(fault, Injection(told=told))
        one.times += times
        one.steps_again += steps_again


@dataclass
class Faults:
    """The faults of all tests that passed, in any process of the suite."""

    so_far: Path
    out: Path

    def add(self, trial: Trial) -> None:
        """Count those of one more test, and write the report as it is now."""
        with FileLock(self.so_far.with_suffix(".lock")):
            known = read_json(self.so_far) if self.so_far.exists() else {}
            injections = {fault: Injection(**values) for fault, values in known.items()}
            for fault, more in trial.injections.items():
                one = injections.setdefault(fault, Injection(told=more.told))
                one.times += more.times
                one.steps_again += more.steps_again
            write_json(self.so_far, {fault: vars(one) for fault, one in injections.items()})
            write_json(self.out / "faults.json", [{"fault": fault, **vars(one)} for fault, one in injections.items()])
            write_text(self.out / "faults.md", table(injections))


def table(injections: dict[str, Injection]) -> str:
    """For docs/reliability.md."""
    lines = [
        "| fault | injected | results lost or changed | steps computed again | the user is told |",
        "|---|--:|---|--:|---|",
    ]
    lines += [f"| {fault} | {one.times} | none | {one.steps_again} | {one.told} |" for fault, one in injections.items()]
    return "\n".join(lines) + "\n"
