"""The tokenizer of bases that are made here, as the library and as transformers read it."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tests.stories import FILE, told
from tokenizers import Tokenizer

from rewardgrid.base.load import read_vocabulary
from rewardgrid.base.tokenizer import save_tokenizer, train_tokenizer
from rewardgrid.study.errors import UserError

STORIES = told()["story"].tolist()
SIZE = 1000  # and so there are words that have to be spelt


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(STORIES, SIZE)


def test_special_tokens_and_delimiters_have_the_first_places(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_to_token(number) for number in range(6)] == ["[UNK]", "[EOS]", "!", ",", ".", "?"]


def test_the_vocabulary_has_the_size_that_was_asked_for(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == SIZE
    small = train_tokenizer(STORIES, 100)
    assert small.get_vocab_size() == 100
    assert small.encode("the", add_special_tokens=False).tokens == ["the"]
    assert small.encode("lantern", add_special_tokens=False).tokens[:2] == ["l", "##a"]
    with pytest.raises(UserError, match="vocabulary: read 40; write at least 60"):
        train_tokenizer(STORIES, 40)


def test_equally_common_words_stand_in_alphabetical_order() -> None:
    small = train_tokenizer(["pear fig apple fig"], 63)
    assert [small.id_to_token(number) for number in range(60, 63)] == ["fig", "apple", "pear"]
    padded = train_tokenizer(["pear fig apple fig"], 65)
    assert [padded.id_to_token(number) for number in (63, 64)] == ["[unused0]", "[unused1]"]


def test_a_plain_encode_appends_the_end_and_one_without_special_tokens_does_not(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("The boy ran.").tokens == ["the", "boy", "ran", ".", "[EOS]"]
    assert tokenizer.encode("The boy ran.", add_special_tokens=False).tokens == ["the", "boy", "ran", "."]


def test_text_is_lowered_and_every_punctuation_mark_is_a_token_of_its_own(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("Oh No?!", add_special_tokens=False).tokens[-3:] == ["no", "?", "!"]


def test_an_apostrophe_belongs_to_its_word() -> None:
    tokenizer = train_tokenizer(["he didn't see the boy's hat"], 80)
    assert tokenizer.encode("The boy's? He DIDN'T!", add_special_tokens=False).tokens == [
        *("the", "boy's", "?", "he", "didn't", "!"),
    ]
    assert tokenizer.encode("he's", add_special_tokens=False).tokens == ["he", "##'", "##s"]
    assert tokenizer.decode(tokenizer.encode("he's the boy, isn't he?").ids) == "he's the boy, isn't he?"


def test_a_story_comes_back_from_its_tokens_in_lower_case(tokenizer: Tokenizer) -> None:
    for text in STORIES:
        ids = tokenizer.encode(text).ids
        assert 0 not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.lower()


def test_a_word_that_no_story_uses_is_spelt_and_comes_back(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("A zyzzyva sang.", add_special_tokens=False).ids
    assert tokenizer.decode(ids) == "a zyzzyva sang."
    assert tokenizer.encode("7", add_special_tokens=False).tokens == ["[UNK]"]


def test_another_process_learns_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path, 512)
    code = (
        "import sys; from pathlib import Path; from rewardgrid.base.corpus import read_stories; "
        "from rewardgrid.base.tokenizer import *; p = Path(sys.argv[2]); p.mkdir(); "
        f"save_tokenizer(train_tokenizer(read_stories(Path(sys.argv[1]), 'story'), {SIZE}), p, 512)"
    )
    subprocess.run([sys.executable, "-c", code, str(FILE), str(tmp_path / "other")], check=True)

    def digests(directory: Path) -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.glob("*.json"))]

    assert len(digests(tmp_path)) == 3
    assert digests(tmp_path) == digests(tmp_path / "other")


def test_transformers_reads_it_and_decodes_as_we_do(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(tokenizer, tmp_path, 512)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id, theirs.bos_token_id) == (1, 1, 0, None)
    assert theirs("The boy ran.").input_ids == tokenizer.encode("The boy ran.").ids
    draws = random.Random(0)
    for _ in range(200):
        ids = [draws.randrange(SIZE) for _ in range(20)]
        assert tokenizer.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


def test_surfaces_add_up_to_the_decoded_text(tokenizer: Tokenizer) -> None:
    vocabulary = read_vocabulary(tokenizer, {"vocab_size": SIZE + 3, "eos_token_id": 1}, rejoin=False)
    assert (vocabulary.size, vocabulary.eos, vocabulary.unk, vocabulary.comma) == (SIZE + 3, 1, 0, 3)
    assert vocabulary.delimiters == (4, 5, 2)
    assert len(vocabulary.surfaces) == SIZE + 3
    assert vocabulary.surfaces[SIZE:] == ("", "", "")  # the model may know more ids than the tokenizer
    assert vocabulary.surfaces[0] == vocabulary.surfaces[1] == ""
    assert vocabulary.surfaces[4] == "."
    assert vocabulary.surfaces[tokenizer.token_to_id("happy")] == " happy"
    assert vocabulary.surfaces[tokenizer.token_to_id("##p")] == "p"
    draws = random.Random(1)
    for _ in range(100):
        ids = [tokenizer.token_to_id("the"), *(draws.randrange(SIZE) for _ in range(15))]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "the" + "".join(
            vocabulary.surfaces[number] for number in ids[1:]
        )
