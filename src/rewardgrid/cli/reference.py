"""``python -m rewardgrid reference``: docs/reference.md, from the configuration's models and the report's tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from rewardgrid.report.columns import COLUMNS, MEASURED_COLUMNS, OWN, SPEC_COLUMNS
from rewardgrid.report.figures import CAPTIONS
from rewardgrid.report.findings import FINDINGS
from rewardgrid.study.bases import HubBase, LocalBase, PackagedBase, Pretrained, StorytellerRecipe
from rewardgrid.study.cell import EVAL_MODES, REWARD_MEANINGS, ROUTING_DEFAULTS, Cell, format_number
from rewardgrid.study.own import OwnFunction, OwnReward
from rewardgrid.study.study import WRITABLE, Evaluation, Experiment, Recording, Study
from rewardgrid.study.teachers import GgufTeacher, HubTeacher, LocalTeacher
from rewardgrid.study.thresholds import Above, Below, Thresholds

INTRODUCTION = """\
# Reference

<!-- Made by `python -m rewardgrid reference`; edits are lost. -->

What a study can say, and what its report can show. [first_study.md](first_study.md) is the way in,
[own_study.md](own_study.md) tells of functions and variants.

## Files

`config/config.yaml` is the published study. A file that is given with `--configfile` (to `snakemake` and to
`python -m rewardgrid` alike) is laid over it, a second one over both, and `--config key=value` of `snakemake` over all:

- **Mappings merge**, key by key and at any depth. **Anything else is replaced**: a list, such as `grids` or `columns`,
  as a whole.
- **`null` removes** what the files below say: a base, a reward, a metric, a default, a whole block. What is removed has
  the default that stands here. `experiments: {NAME: null}` leaves an experiment out. Only in `fixed` and `grids` null
  is a value: that of a setting that may have none, whatever `defaults` says.
- **`inherit` cuts the rest off**: with `inherit: [bases]` a file takes the bases from those below it, and nothing else.
  It is a study that *stands alone*; files after it are laid over it as ever.

A study is known by the file in which it begins: the last one that says what it inherits, or that leaves out every
experiment below it; else `config/config.yaml`. `study.json` in its results names it. **A results directory belongs to
one study**: another one that names the same directory is refused before anything runs. Edits of a study, overlays on it
(`config/first_seeds.yaml`), archives that are restored, and directories from before this was recorded are not.

Paths are as seen from where rewardgrid is run: the repository's directory. Every key is checked before anything runs,
and by `python -m rewardgrid check --configfile FILE`; editors complete the keys from `config/schema.json`."""


def reference() -> str:
    """What ``docs/reference.md`` holds."""
    return "\n\n".join([INTRODUCTION, *_keys(), *_rewards(), *_report(), *_limits()]) + "\n"


# --- keys ----------------------------------------------------------------------------------------------


def _keys() -> Iterator[str]:
    yield "## Keys of a study"
    yield keys(Study)
    yield "### `bases`: NAME"
    yield "A language model that cells can start from, of one of three kinds."
    for model in (LocalBase, HubBase, PackagedBase):
        yield from _kind(model)
    yield "### `rewards`: NAME"
    yield keys(OwnReward)
    yield "### `detectors`: NAME, and `evaluation.metrics`: NAME"
    yield keys(OwnFunction)
    yield "### `defaults`; `fixed` and `grids` of an experiment: what a cell is"
    yield (
        "One value of each in `defaults` and `fixed`, one or a list in `grids`. `defaults` hold for every cell unless "
        "its experiment's `fixed`, and then its grid, say otherwise. A cell's name comes from these values, so that "
        "nothing else trains it again."
    )
    yield keys(Cell, WRITABLE, ROUTING_DEFAULTS)
    yield "### `experiments`: NAME"
    yield keys(Experiment)
    yield "### `evaluation`"
    yield "How a finished cell is measured. A change measures all cells again, and trains none."
    yield keys(Evaluation)
    yield "### `recording`"
    yield summary(Recording)
    yield keys(Recording)
    yield "### `storyteller`"
    yield "How the packaged bases were made ([storyteller.md](storyteller.md)). No other study needs it."
    yield keys(StorytellerRecipe)
    yield "`storyteller.teacher`, of one of three kinds:"
    for teacher in (GgufTeacher, LocalTeacher, HubTeacher):
        yield from _kind(teacher)
    yield "`storyteller.bases`, by name:"
    yield keys(Pretrained)


def _kind(model: type[BaseModel]) -> Iterator[str]:
    yield f"**`kind: {model.model_fields['kind'].default}`.** {summary(model)}"
    yield keys(model)


def summary(documented: object) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((documented.__doc__ or "").partition("\n\n")[0].split())


def keys(
    model: type[BaseModel], names: Iterable[str] | None = None, of_routing: Mapping[str, object] | None = None
) -> str:
    """A model's keys with their types, defaults and meanings; those that rewardgrid fills in are left out.

    Args:
        names: of them, only these.
        of_routing: further defaults, where the method is routing.
    """
    schema = model.model_json_schema()
    chosen = set(model.model_fields if names is None else names)
    rows = []
    for name, field in model.model_fields.items():
        said = field.description or ""
        if name not in chosen or name == "kind" or "filled in" in said:
            continue
        default = "required" if field.is_required() else shown(field.get_default(call_default_factory=True))
        if name in (of_routing or {}):
            default = f"{default}; routing: {shown((of_routing or {})[name])}".removeprefix("; ")
        rows.append((f"`{name}`", kind(schema["properties"][name], schema.get("$defs", {})), default, said))
    return table(("key", "type", "default", "meaning"), rows)


def kind(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words. That null is allowed goes without saying: it removes."""
    if "oneOf" in schema:
        return "block"
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return "two limits" if name in (Above.__name__, Below.__name__) else "block"
    if "anyOf" in schema:
        words = dict.fromkeys(kind(each, definitions) for each in schema["anyOf"] if each != {"type": "null"})
        # A name of one's own in place of a given one.
        return " or ".join("a name" if word == "text" and len(words) > 1 else word for word in words)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    match schema.get("type"):
        case "array":
            word = kind(schema["items"], definitions)
            return f"list of {word}s" if word in ("text", "number", "block") else f"list of {word}"
        case "object":
            return "block"
        case "boolean":
            return "`true`, `false`"
        case "integer" | "number" as number:
            return f"{'whole number' if number == 'integer' else number} {', '.join(_range(schema))}".strip()
    return "text"


_RELATIONS = {
    ("minimum", "ge"): "≥",
    ("exclusiveMinimum", "gt"): ">",
    ("maximum", "le"): "≤",
    ("exclusiveMaximum", "lt"): "<",
}
_NO_LIMIT = 2**31
"""What whole numbers stay below because of how they are stored, not for what they mean."""


def _range(schema: Mapping[str, Any]) -> Iterator[str]:
    for names, relation in _RELATIONS.items():
        for name in names:
            if name in schema and schema[name] < _NO_LIMIT:
                yield f"{relation} {format_number(schema[name])}"


def shown(value: object) -> str:
    """A default as YAML has it; nothing where there is none, or where it has a table of its own."""
    if value in (None, "", (), {}, []) or isinstance(value, BaseModel):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple | list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{format_number(value) if isinstance(value, int | float) else value}`"


# --- rewards, and what the report can show -------------------------------------------------------------


def _rewards() -> Iterator[str]:
    yield "## Rewards"
    yield (
        "What `reward` and `base_reward` may name, besides those of `rewards`. A *sentence* is a run of tokens that a "
        "token of `.`, `?` or `!` closes; a completion without one has a share of 0."
    )
    yield table(("reward", "pays"), [(f"`{name}`", meaning) for name, meaning in REWARD_MEANINGS.items()])


def _report() -> Iterator[str]:
    yield "## Findings"
    yield "What `findings` of an experiment may name: what is computed from its table and said in RESULTS.md."
    yield table(
        ("finding", "heading", "says"),
        [(f"`{name}`", title, summary(find)) for name, (title, find) in FINDINGS.items()],
    )
    yield "## Figures"
    yield "What `figures` of an experiment may name."
    yield table(("figure", "shows"), [(f"`{name}`", caption) for name, caption in CAPTIONS.items()])
    yield "## Columns"
    yield (
        "What `columns` of an experiment may name: every key of a cell (above), every metric of `evaluation.metrics` "
        f"as `{OWN}NAME` (its mean) and `{OWN}NAME_se` (the standard error of that), and these. Numbers of samples are "
        "those that `evaluation` has by default. Of a routing cell, every column `both_...` is there as "
        f"{' and '.join(f'`{mode}_...`' for mode in EVAL_MODES if mode != 'both')} too."
    )
    others = [name for name in COLUMNS if name not in SPEC_COLUMNS and name not in MEASURED_COLUMNS]
    rows = [
        (f"`{name}`", COLUMNS[name].label, COLUMNS[name].meaning, COLUMNS[name].unit)
        for name in (*others, *MEASURED_COLUMNS)
        if not name.startswith(tuple(f"{mode}_" for mode in EVAL_MODES if mode != "both"))
    ]
    yield table(("column", "heading", "meaning", "unit"), rows)


def _limits() -> Iterator[str]:
    yield "## Limits of the verdict"
    yield (
        "`evaluation.thresholds`, each key with `borderline` and `degenerate`; [verdict.md](verdict.md) says where "
        "they come from. ≥: worse when larger, ≤: worse when smaller."
    )
    rows = []
    for name, field in Thresholds.model_fields.items():
        limits = field.default
        if isinstance(limits, Above | Below):
            relation = "≥" if isinstance(limits, Above) else "≤"
            both = [f"{relation} {format_number(limit)}" for limit in (limits.borderline, limits.degenerate)]
        else:
            both = [f"≥ {format_number(limits)}", ""]
        rows.append((f"`{name}`", *both, field.description or ""))
    yield table(("signal", "borderline", "degenerate", "what it is"), rows)


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heading, ["---"] * len(heading), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
