"""``python -P -m rewardgrid.programs NAME ...``: a program of ``workflow/scripts``, wherever rewardgrid lies.

Rules start their programs so, and their text is the same in a checkout, in an installed package and in a container.
"""

from __future__ import annotations

import runpy
import sys

from rewardgrid.study.shipped import HOME

if __name__ == "__main__":
    runpy.run_path(str(HOME / "workflow" / "scripts" / f"{sys.argv.pop(1)}.py"), run_name="__main__")
