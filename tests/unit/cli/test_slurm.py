"""What is asked of SLURM: told before the first job if the executor plugin would refuse it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rewardgrid.cli.slurm import check_gres
from rewardgrid.study.errors import UserError

TAKEN = ("gpu", "gpu:1", "gpu:a100:1", "gpu:3g.40gb:2", "shard:2", "mps:25", "nvme:100G")
REFUSED = ("gpu:1,shard:2", "gpu:nvidia-a100:1", "'gpu:1'", "gpu: 1", "gpu:1\n", "gpu:a:b:1", "gpu:a100:1X")


def plugin(asked: str) -> str:
    utils = pytest.importorskip("snakemake_executor_plugin_slurm.utils")
    found: str = utils.set_gres_string(SimpleNamespace(resources=Resources(gres=asked)))
    return found


class Resources(dict[str, str]):
    """Those of a job, as Snakemake has them."""

    __getattr__ = dict.__getitem__


@pytest.mark.parametrize("asked", TAKEN)
def test_what_the_plugin_takes_is_taken(asked: str) -> None:
    check_gres({"REWARDGRID_GRES": asked})
    assert plugin(asked) == f" --gres={asked}"


@pytest.mark.parametrize("asked", REFUSED)
def test_what_it_refuses_is_told_with_what_to_write_instead(asked: str) -> None:
    with pytest.raises(UserError, match=r"REWARDGRID_GRES: read .*NAME:NUMBER.*SBATCH_GRES"):
        check_gres({"REWARDGRID_GRES": asked})


@pytest.mark.parametrize("asked", [refused for refused in REFUSED if "\n" not in refused])
def test_the_plugin_does_refuse_it(asked: str) -> None:
    errors = pytest.importorskip("snakemake_interface_common.exceptions")
    with pytest.raises(errors.WorkflowError, match="GRES"):
        plugin(asked)


def test_nothing_asked_for_is_nothing_wrong() -> None:
    check_gres({})
    check_gres({"REWARDGRID_GRES": ""})
