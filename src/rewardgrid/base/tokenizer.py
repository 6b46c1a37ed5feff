"""A lowercase WordPiece tokenizer for bases that are made here: every word of the stories is one token.

Words that the stories never use are spelt in letters, so that any prompt can be read.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from rewardgrid.study.errors import UserError
from rewardgrid.study.files import write_json

UNK, EOS = "[UNK]", "[EOS]"
PUNCTUATION = "!,.?"
SPELLING = [form for letter in string.ascii_lowercase + "'" for form in (letter, f"##{letter}")]


def train_tokenizer(stories: Iterable[str], vocabulary: int) -> Tokenizer:
    """Learn a vocabulary of exactly this size: ``[UNK]`` = 0, ``[EOS]`` = 1, punctuation, letters, then words.

    The commonest words come first, equally common ones in alphabetical order, so that every process agrees. Places
    that are left over hold ``[unused0]``, ``[unused1]``, ... A plain encode appends ``[EOS]``. A word may hold an
    apostrophe ("don't").

    Raises:
        UserError: the vocabulary has no room for the letters.
    """
    fixed = [UNK, EOS, *PUNCTUATION, *SPELLING]
    if vocabulary < len(fixed):
        raise UserError(f"vocabulary: read {vocabulary}; write at least {len(fixed)}, for letters and punctuation")
    tokenizer = _empty(models.WordLevel())
    tokenizer.train_from_iterator(
        stories, trainers.WordLevelTrainer(vocab_size=vocabulary, show_progress=False, special_tokens=[])
    )
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = list(dict.fromkeys([*fixed, *(word for word, _ in words)]))[:vocabulary]
    tokens += [f"[unused{n}]" for n in range(vocabulary - len(tokens))]
    tokenizer = _empty(models.WordPiece({token: place for place, token in enumerate(tokens)}, unk_token=UNK))
    tokenizer.add_special_tokens([UNK, EOS])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _empty(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    marks = pre_tokenizers.Split(Regex(r"[^\w\s']"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marks])
    return tokenizer


def token_ids(tokenizer: Tokenizer, stories: Iterable[str]) -> Iterator[list[int]]:
    """Token ids of each story with the closing [EOS]."""
    return (encoding.ids for encoding in tokenizer.encode_batch_fast(list(stories)))


def save_tokenizer(tokenizer: Tokenizer, directory: Path, context: int) -> None:
    """Write what ``transformers.AutoTokenizer`` reads."""
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"unk_token": UNK, "eos_token": EOS, "pad_token": EOS}
    write_json(directory / "special_tokens_map.json", special)
    write_json(
        directory / "tokenizer_config.json",
        special
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
            "padding_side": "left",
        },
    )
