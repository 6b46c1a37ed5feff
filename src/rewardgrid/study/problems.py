"""Turn what pydantic finds into problems a user can mend: file, key, what was read, what to write."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rewardgrid.study.errors import ConfigError, Problem, did_you_mean

Model = TypeVar("Model", bound=BaseModel)

NAMED = r"^[A-Za-z][A-Za-z0-9_-]*$"
FUNCTION = r"^[^:]+\.py:[A-Za-z_][A-Za-z0-9_]*$"
FORMS = {NAMED: "a name of letters, digits, _ and - that begins with a letter", FUNCTION: "FILE.py:FUNCTION"}
"""Patterns of texts in words."""


def fixes(model: type[BaseModel], error: ValidationError) -> Iterator[tuple[tuple[str | int, ...], object, str]]:
    """Every error as (location, value read, what to write instead)."""
    for detail in error.errors(include_url=False):
        location = detail["loc"]
        if detail["type"] == "conflict":
            for key, fix in detail["ctx"]["conflicts"]:
                yield (*location, key), _at(detail["input"], key), fix
        elif detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
            yield (*location, "kind"), detail["ctx"].get("tag"), _fix(model, detail)
        else:
            yield location, detail["input"] if detail["type"] != "missing" else None, _fix(model, detail)


def _at(values: object, key: str) -> object:
    """What stands at a key, or at keys with dots between them."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _fix(model: type[BaseModel], detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = _known_keys(model, detail["loc"])
        return f"unknown key;{did_you_mean(str(detail['loc'][-1]), known) or ' known: ' + ', '.join(known)}"
    if kind in ("model_type", "dict_type"):
        known = _known_keys(model, (*detail["loc"], "")) if kind == "model_type" else []
        return "write a mapping of keys to values" + (f": {', '.join(known)}" if known else "")
    if kind in ("tuple_type", "list_type"):
        return "write a list"
    if kind == "too_short":
        return f"write at least {context['min_length']} item"
    if kind == "string_too_long":
        return f"write at most {context['max_length']} letters"
    if kind == "string_type":
        return "write a text"
    if kind in ("missing", "union_tag_not_found"):
        return "missing; write this key"
    if kind == "string_pattern_mismatch":
        return f"write {FORMS.get(context['pattern'], 'text of the form ' + context['pattern'])}"
    if kind.startswith(("greater_than", "less_than")):
        return f"write a number {detail['msg'].removeprefix('Input should be ')}"
    if kind in ("literal_error", "union_tag_invalid"):
        expected = str(context.get("expected", context.get("expected_tags", "")))
        read = context.get("tag", detail["input"])
        hint = did_you_mean(str(read), [word.strip(" '") for word in expected.replace(" or ", ",").split(",")])
        return f"write one of {expected};{hint}" if hint else f"write one of {expected}"
    message = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"write {message}" if message != detail["msg"] and kind != "value_error" else message


def _known_keys(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """The keys that the model at this location has, as far as the annotations tell."""
    found: list[str] = []
    candidates: list[type[BaseModel]] = [model]
    for part in location[:-1]:
        following: list[type[BaseModel]] = []
        for candidate in candidates:
            field = candidate.model_fields.get(str(part))
            following.extend(_models_in(field.annotation) if field else [])
        # A part that is no key is the kind of one of several models.
        candidates = following or [each for each in candidates if part in _kinds(each)] or candidates
    for candidate in candidates:
        found.extend(field.alias or name for name, field in candidate.model_fields.items())
    return sorted(set(found))


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field else ()


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def validated(model: type[Model], text: str, source: str) -> Model:
    """Read JSON text into a model.

    Raises:
        ConfigError: with every problem; ``source`` is named as the file.
    """
    try:
        return model.model_validate(json.loads(text))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError([Problem(source, "(whole text)", text[:60], f"write JSON ({error})")]) from None
    except ValidationError as error:
        raise ConfigError(
            [Problem(source, ".".join(map(str, loc)), read, fix) for loc, read, fix in fixes(model, error)]
        ) from None
