"""A model's own way of writing down a conversation: its chat template.

A template is a program in Jinja that comes with the model, so it runs in Jinja's sandbox: it sees the conversation and
the names of two tokens, and can only write text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from rewardgrid.study.errors import UserError

MARK = "\ue000"  # of a range that stands for no character, so no template writes it


@dataclass(frozen=True)
class Chat:
    """A chat template.

    Attributes:
        template: Jinja, as Hugging Face's tokenizers and GGUF files carry it.
        tokens: what a template may name besides the conversation: ``bos_token``, ``eos_token``.
        source: the file that it is from.
    """

    template: str
    tokens: Mapping[str, str]
    source: str

    def write(self, turns: Sequence[Mapping[str, str]]) -> tuple[str, str]:
        """A conversation up to the last word of its last turn, and what closes that turn.

        Args:
            turns: each with its ``role`` and ``content``.

        Raises:
            UserError: the template is not sound, does not take these roles, or does not write the last turn as it is
                and close it.
        """
        *before, last = turns
        text = self._render([*before, {**last, "content": last["content"] + MARK}])
        begun, _, closing = text.partition(MARK)
        if not begun.endswith(last["content"]) or not closing.strip():
            raise UserError(
                f"{self.source}: its chat template does not write the assistant's last turn as it is and close it; "
                "choose a teacher whose template does"
            )
        return begun, closing.strip()

    def _render(self, turns: Sequence[Mapping[str, str]]) -> str:
        program = self._program
        from jinja2 import TemplateError

        try:
            text: str = program.render(messages=turns, add_generation_prompt=False, **self.tokens)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise UserError(
                f"{self.source}: its chat template does not take turns of system, user and assistant ({error}); choose "
                "a teacher whose template does"
            ) from None
        return text

    @cached_property
    def _program(self) -> Any:
        """The template, read once."""
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise UserError('the package jinja2 is missing; run `pip install "rewardgrid[storyteller]"`') from None

        def raise_exception(message: str) -> NoReturn:
            raise TemplateError(message)

        # The settings and the function that templates are written for.
        room = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        room.globals["raise_exception"] = raise_exception
        try:
            return room.from_string(self.template)
        except TemplateError as error:
            raise UserError(f"{self.source}: its chat template is no Jinja ({error}); choose another teacher") from None
