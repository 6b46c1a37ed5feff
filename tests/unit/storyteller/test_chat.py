"""Chat templates: a conversation is written as the model's makers wrote theirs, by a program that can only write."""

from __future__ import annotations

import pytest

from rewardgrid.storyteller.chat import Chat
from rewardgrid.study.errors import UserError

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello"},
]


def chat(template: str) -> Chat:
    return Chat(template, {"bos_token": "<s>", "eos_token": "</s>"}, "model/config")


def test_a_conversation_stops_after_the_last_word_of_its_last_turn() -> None:
    plain = chat(
        "{{ bos_token }}{% for m in messages %}\n<{{ m.role }}>{{ m['content'] }}</{{ m.role }}>\n{% endfor %}"
    )
    begun, closing = plain.write(TURNS)
    assert begun == "<s><system>Be brief.</system>\n<user>Hello</user>\n<assistant>Hello"
    assert closing == "</assistant>"


def test_line_feeds_after_a_block_and_spaces_before_it_are_dropped() -> None:
    laid_out = chat(
        "{% for m in messages %}\n    {% if true %}\n{{ m.content }}{{ eos_token }}\n    {% endif %}\n{% endfor %}\n"
    )
    assert laid_out.write(TURNS) == ("Be brief.</s>\nHello</s>\nHello", "</s>")


def test_loop_controls_are_there() -> None:
    last = chat("{% for m in messages %}{% if not loop.last %}{% continue %}{% endif %}{{ m.content }};{% endfor %}")
    assert last.write(TURNS) == ("Hello", ";")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}", "is no Jinja"),
        ("{{ raise_exception('System role not supported') }}", "does not take turns of .* .System role not supported."),
        ("{{ messages[7].content }}", "does not take turns"),
        ("{{ messages | length / 0 }}", "does not take turns"),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            "does not write the assistant's last turn .* and close it",
        ),
        (
            "{% for m in messages %}{{ m.content | upper }};{% endfor %}",
            "does not write the assistant's last turn as it",
        ),
        ("{{ messages[0].content }};", "does not write the assistant's last turn"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(template: str, words: str) -> None:
    with pytest.raises(UserError, match=f"model/config: its chat template {words}"):
        chat(template).write(TURNS)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ range(99999999) | list }}",
        "{% include 'config.json' %}",
    ],
)
def test_a_template_stays_in_its_sandbox(template: str) -> None:
    with pytest.raises(UserError, match="its chat template does not"):
        chat(template).write(TURNS)
