"""Reading a finished base: only the bytes that were built are trained on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.tiny import IDS, SHAPE, make_base
from tokenizers import Tokenizer, models, pre_tokenizers

from rewardgrid.base.decoding import decode, rejoins
from rewardgrid.base.load import load_base, read_vocabulary
from rewardgrid.base.prompts import cut_prompts
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import write_json


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


def test_a_token_that_merges_marks_closes_a_sentence_and_a_word_that_ends_in_one_does_not(tmp_path: Path) -> None:
    base = make_base(tmp_path / "tiny")
    config = base.config | {"vocab_size": SHAPE.vocabulary + 8}
    added = ['."', '?"', "...", "!?", "him.", "3.", ',"', "\u2026"]
    base.tokenizer.add_tokens(added)
    words = read_vocabulary(base.tokenizer, config, rejoin=False)
    plain = [IDS["."], IDS["?"], IDS["!"]]
    assert list(words.delimiters) == [*plain, *(SHAPE.vocabulary + place for place in range(4))]


def test_text_is_joined_as_transformers_joins_it(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    directory = tmp_path / "model"
    directory.mkdir()
    words = ["w1", "'", "w2", ".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re"]
    for model in (
        models.WordPiece({token: place for place, token in enumerate(words)}, unk_token="w1"),
        models.WordLevel({token: place for place, token in enumerate(words)}, unk_token="w1"),
        models.BPE({token: place for place, token in enumerate(words)}, []),
    ):
        tokenizer = Tokenizer(model)
        if not isinstance(model, models.WordPiece):
            tokenizer.add_tokens(["'"])
        tokenizer.save(str(directory / "tokenizer.json"))
        for settings in (
            {},
            {"clean_up_tokenization_spaces": True},
            {
                "clean_up_tokenization_spaces": True,
                "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
            },
        ):
            write_json(directory / "tokenizer_config.json", settings)
            theirs = PreTrainedTokenizerFast.from_pretrained(directory)
            rows = [[0, 1, 2, 3], [0, 1, 1, 2, 4, 0, 9, 11, 3], [2, 7, 8, 10, 6, 5, 1]]
            ours = decode(tokenizer, rows, rejoins(directory, tokenizer))
            assert ours == [theirs.decode(row) for row in rows]
    assert decode(tokenizer, [[0, 1, 2, 3]], rejoin=True) == ["w1'w2."]


def test_prompts_are_decoded_like_all_other_text(tmp_path: Path) -> None:
    words = ["w1", "'", "w2", "."]
    tokenizer = Tokenizer(models.WordLevel({token: place for place, token in enumerate(words)}, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    prompts = cut_prompts(["w1 ' w2 . w1"], tokenizer, tokens=4, most=1, order=0, rejoin=True)
    assert prompts.text == ["w1'w2."]
