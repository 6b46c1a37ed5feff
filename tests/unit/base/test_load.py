"""Reading a finished base: only the bytes that were built are trained on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.tiny import IDS, SHAPE, make_base

from rewardgrid.base.load import load_base
from rewardgrid.study.errors import UserError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_base(tmp_path / "tiny").directory


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_changed_file_is_refused_by_name(name: str, directory: Path) -> None:
    path = directory / "model" / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # the same length, and for the weights the same header
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"model/{name}: corrupt .*; delete .*tiny and run again"):
        load_base(directory)


@pytest.mark.parametrize("name", ["model/model.safetensors", "model/tokenizer.json", "provenance.json"])
def test_a_missing_file_is_refused_by_name(name: str, directory: Path) -> None:
    (directory / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file"):
        load_base(directory)


def test_missing_prompts_are_told_to_those_who_ask_for_them(directory: Path) -> None:
    (directory / "eval_prompts.parquet").unlink()
    base = load_base(directory)
    assert len(base.train_prompts()) == 24
    with pytest.raises(UserError, match=r"eval_prompts\.parquet"):
        base.eval_prompts()


def test_loading_a_base_imports_no_model_library(directory: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rewardgrid.base.load import load_base; "
        "load_base(Path(sys.argv[1])).train_prompts(); "
        "print([name for name in ('transformers', 'trl', 'datasets', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(directory)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_vocabulary_knows_delimiters_the_comma_and_the_ends(directory: Path) -> None:
    words = load_base(directory).vocabulary
    assert words.size == SHAPE.vocabulary
    assert words.delimiters == (IDS["."], IDS["?"], IDS["!"])
    assert (words.comma, words.eos, words.unk) == (IDS[","], IDS["[EOS]"], IDS["[UNK]"])


def test_a_surface_is_what_a_token_adds_to_a_text(directory: Path) -> None:
    surfaces = load_base(directory).vocabulary.surfaces
    shown = {token: surfaces[IDS[token]] for token in ("cat", "##py", ",", ".", "[EOS]")}
    assert shown == {"cat": " cat", "##py": "py", ",": ",", ".": ".", "[EOS]": ""}


def test_special_tokens_are_not_decoded(directory: Path) -> None:
    assert load_base(directory).decode([IDS["hap"], IDS["##py"], IDS["."], IDS["[EOS]"]]) == "happy."
