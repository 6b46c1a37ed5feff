"""From token ids to text, as ``transformers`` does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models

from rewardgrid.study.files import read_object

REJOINED = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'"} | {
    f" {ending}": ending for ending in ("n't", "'m", "'s", "'ve", "'re")
}
"""What ``transformers`` joins to the word before, in this order, where a tokenizer's configuration asks for it."""


def rejoins(directory: Path, tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer of this directory joins punctuation to words, beyond what tokenizer.json does itself."""
    path = directory / "tokenizer_config.json"
    settings: dict[str, Any] = read_object(path) if path.is_file() else {}
    forced = settings.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
    # transformers makes the same exception of BPE, whose spaces are part of its tokens
    return bool(settings.get("clean_up_tokenization_spaces")) and bool(
        forced or not isinstance(tokenizer.model, models.BPE)
    )


def decode(tokenizer: Tokenizer, rows: Sequence[Sequence[int]], rejoin: bool) -> list[str]:
    """The text of each row of token ids, without special tokens."""
    texts: list[str] = tokenizer.decode_batch(rows, skip_special_tokens=True)
    if rejoin:
        for apart, joined in REJOINED.items():
            texts = [text.replace(apart, joined) for text in texts]
    return texts
