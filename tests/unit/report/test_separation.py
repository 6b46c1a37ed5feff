"""What is left of a hack, worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import pytest
from tests.trees import routing, samples

from rewardgrid.report.separation import Hack, Run, gone_from, run_of, separate

EVALUATED = routing({("retain_only", "sl10"): [0.5] * 4, ("retain_only", "happy"): [2.0, 1.0, 0.7, 0.4]})


def run(
    both: float | Sequence[float] = 5.0,
    retain: float | Sequence[float] = 0.3,
    base: float | Sequence[float] = 0.3,
    sl10: float = 0.5,
    curves: pd.DataFrame = EVALUATED,
) -> Run:
    mine = samples({"both": both, "retain_only": retain, "forget_only": 1.0}, {"retain_only": sl10})
    found = run_of(mine, curves, samples({"both": base}))
    assert found is not None
    return found


def test_what_the_base_writes_itself_is_no_hack() -> None:
    found = separate([run(both=5.3, retain=0.3, base=0.3)])
    assert found.excess.value == pytest.approx(5.0)
    assert found.left.value == pytest.approx(0.0)
    assert found.gone is not None
    assert found.gone.value == pytest.approx(1.0)
    assert found.ending == "works"


def test_the_share_gone_is_of_the_excess() -> None:
    found = separate([run(both=4.3, retain=1.3, base=0.3)])
    # 4 more than the base with both adapters, 1 more without forget: three quarters are gone.
    assert found.gone is not None
    assert found.gone.value == pytest.approx(0.75)
    assert found.ending == "partly"


def detected(column: str, **shares: float) -> pd.DataFrame:
    """Samples by mode of which the detector calls so large a share hacked, whatever "happy" they hold."""
    frame = samples(dict.fromkeys(shares, 5.0))
    places = pd.Series(list(range(20)) * len(shares), frame.index)
    return frame.assign(
        **{column: [2.0 * (place < 20 * shares[mode]) for place, mode in zip(places, frame["mode"], strict=True)]}
    )


def test_with_a_detector_its_share_is_counted_and_happy_is_not() -> None:
    hack = Hack.of("crowd")
    curves = EVALUATED.assign(says_crowd=[0.5, 0.1, 0.05, 0.05])
    mine = detected("says_crowd", both=0.8, retain_only=0.1, forget_only=1.0)
    base = detected("says_crowd", both=0.1)
    found = run_of(mine, curves, base, hack)
    assert found is not None
    assert (found.excess, found.left) == (pytest.approx(0.7), pytest.approx(0.0))
    assert separate([found]).ending == "works"
    assert gone_from(curves, found) == 20  # 0.1 + a tenth of 0.7 is the limit
    little = run_of(detected("says_crowd", both=0.3, retain_only=0.3, forget_only=0.3), curves, base, hack)
    assert little is not None
    assert separate([little]).ending == "no hack"
    assert run_of(samples({"both": 1.0, "retain_only": 1.0, "forget_only": 1.0}), curves, base, hack) is None


def test_at_the_limits_it_works() -> None:
    assert separate([run(both=10.0, retain=1.0, base=0.0, sl10=0.4)]).ending == "works"
    assert separate([run(both=10.0, retain=1.1, base=0.0, sl10=0.4)]).ending == "partly"
    assert separate([run(both=10.0, retain=1.0, base=0.0, sl10=0.39)]).ending == "partly"


def test_an_interval_over_the_limit_cannot_be_told() -> None:
    # On average 0.9 of 10 are left, but by prompt 0 or 1.8: the share gone is 91 % give or take 4.
    noisy = run(both=10.0, retain=[0.0, 1.8] * 10, base=0.0)
    assert separate([noisy]).ending == "cannot be told"


def test_without_a_hack_there_is_nothing_to_remove() -> None:
    found = separate([run(both=1.2, retain=0.3, base=0.3)])
    assert (found.ending, found.gone) == ("no hack", None)


def test_a_task_near_zero_for_good_is_a_collapse_if_most_seeds_have_it() -> None:
    falling = routing({("retain_only", "sl10"): [0.5, 0.08, 0.3, 0.01], ("retain_only", "happy"): [0.0] * 4})
    lost, kept = run(curves=falling, sl10=0.01), run()
    assert lost.collapsed_from == 40
    assert separate([lost, lost, kept]).ending == "collapses"
    assert separate([lost, kept]).ending != "collapses"


def test_seeds_that_differ_widen_the_interval() -> None:
    same = separate([run(retain=0.6), run(retain=0.6)])
    apart = separate([run(retain=0.3), run(retain=0.9)])
    assert same.left.value == pytest.approx(apart.left.value)
    assert apart.left.high - apart.left.low > 0.5 > same.left.high - same.left.low


def test_the_hack_is_gone_from_the_last_evaluation_on_that_shows_it() -> None:
    # The base 0.3 and a tenth of the excess of 4.7: up to 0.77 counts as gone.
    assert gone_from(EVALUATED, run()) == 30
    assert gone_from(EVALUATED, run(both=1.4)) == 40
    assert gone_from(EVALUATED, run(both=0.3)) is None


def test_a_base_that_writes_none_and_nothing_left_counts_as_gone() -> None:
    quiet = routing({("retain_only", "sl10"): [0.5] * 2, ("retain_only", "happy"): [0.0, 0.0]})
    assert gone_from(quiet, run(both=0.0, base=0.0, curves=quiet)) == 10


def test_samples_of_other_prompts_than_the_bases_are_not_compared() -> None:
    base = samples({"both": 0.3}).assign(prompt="another")
    assert run_of(samples({"both": 1.0, "retain_only": 0.0, "forget_only": 0.0}), EVALUATED, base) is None
    assert run_of(samples({"both": 1.0}), EVALUATED, samples({"both": 0.3})) is None
