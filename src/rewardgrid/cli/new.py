"""``python -m rewardgrid new``: a small study that stands alone, to begin one's own from."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from rewardgrid.study.errors import UserError
from rewardgrid.study.files import write_text
from rewardgrid.study.layers import CONFIG

TEMPLATE = Path(__file__).parent / "template"
"""The files of a new study, in which NAME stands for its name."""
STUDIES = Path("studies")
LONGEST = 60


def new_study(name: str) -> list[Path]:
    """Write ``studies/NAME``: the study, its rewards and its prompts. Returns the files, the study first.

    Raises:
        UserError: no study can have this name, something of this name is there already, or this is not the repository's
            directory.
    """
    if not Path(CONFIG).is_file():
        raise UserError(f"There is no {CONFIG} here: run it in the repository's directory.")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or len(name) > LONGEST:
        raise UserError(
            f"new: read {name!r}; write a name of letters, digits, _ and - that begins with a letter and has at most "
            f"{LONGEST} of them, such as my_study"
        )
    directory, results = STUDIES / name, Path("results") / name
    for place in (directory, results):
        if place.exists() or place.is_symlink():
            raise UserError(f"new: read {name!r}, but {place} is there already; choose another name")
    try:
        STUDIES.mkdir(exist_ok=True)
        # Written beside its place and then moved there: what is cut off leaves nothing by halves.
        with tempfile.TemporaryDirectory(prefix=".new-", dir=STUDIES) as beside:
            whole = Path(beside) / name
            for file in TEMPLATE.iterdir():
                write_text(whole / file.name, file.read_text(encoding="utf-8").replace("NAME", name))
            whole.rename(directory)
    except OSError as error:
        raise UserError(f"new: cannot write {directory} ({error.strerror}); {STUDIES} must be a directory") from None
    return sorted(directory.iterdir(), key=lambda file: (file.suffix != ".yaml", file.name))
