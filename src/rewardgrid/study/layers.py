"""The files of a configuration: read, and laid over one another."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from rewardgrid.study.errors import ConfigError, Problem

CONFIG = "config/config.yaml"
"""The published study, which every other file is laid over."""

Layers = Sequence[tuple[str, Mapping[str, Any]]]
"""(file, content) of a configuration, later ones laid over earlier ones."""


class _PlainYaml(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error instead of a silent loss, and ``010`` or ``1:30`` no number."""

    def compose_mapping_node(self, anchor: dict[str, yaml.Node]) -> yaml.MappingNode:
        # Before merge keys (<<) are resolved, which a block's own keys may well override.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands twice in one block", problem_mark=key.start_mark
                )
            seen.add((key.tag, str(key.value)))
        return node

    def construct_yaml_number(self, node: yaml.ScalarNode) -> int | float:
        text = str(node.value)
        value: int | float = (
            self.construct_yaml_int(node) if node.tag.endswith(":int") else self.construct_yaml_float(node)
        )
        if not re.fullmatch(
            r"[-+]?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?|[-+]?\.([0-9].*|inf|Inf|INF)|\.(nan|NaN|NAN)", text
        ):
            raise yaml.MarkedYAMLError(
                problem=f"{text} is the number {value} in YAML; write that, or put quotes around a text",
                problem_mark=node.start_mark,
            )
        return value


for _tag in ("int", "float"):
    _PlainYaml.add_constructor(f"tag:yaml.org,2002:{_tag}", _PlainYaml.construct_yaml_number)


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read one YAML file of the configuration.

    Raises:
        ConfigError: the file is missing, is no YAML, or repeats a key; names the line.
    """
    if Path(path).suffix not in (".yaml", ".yml"):
        fix = (
            "write files that end in .yaml; all words after --configfile are read as such, so other words go before it"
        )
        raise ConfigError([Problem("--configfile", "(file)", str(path), fix)])
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_PlainYaml)
    except FileNotFoundError:
        fix = "no such file; check the path, and run it in the repository's directory"
        raise ConfigError([Problem(str(path), "(file)", str(path), fix)]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(str(path), "(file)", None, f"cannot be read ({error})")]) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError([Problem(str(path), f"line {line}", error.problem, "write valid YAML")]) from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        said = "too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        raise ConfigError([Problem(str(path), "(file)", said, "write valid YAML")]) from None
    try:
        json.dumps(content, default=str, skipkeys=True)
    except (ValueError, RecursionError):
        fix = "an anchor stands within itself; write what it means"
        raise ConfigError([Problem(str(path), "(file)", "a value without an end", fix)]) from None
    if not isinstance(content, dict):
        raise ConfigError([Problem(str(path), "(file)", content, "write a mapping of keys to values")])
    return content


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``: mappings merge key by key, anything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def lay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`merge`, unless ``above`` says with ``inherit`` which blocks are all that it takes from below."""
    kept = above.get("inherit")
    return merge({key: below[key] for key in below if key in kept} if isinstance(kept, list) else below, above)


def laid(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Layers laid over one another, the last one on top."""
    nothing: dict[str, Any] = {}
    return reduce(lay, layers, nothing)


def without_removed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A merged configuration without what ``null`` removes from it: keys of any depth, which then have their defaults.

    Below ``experiments`` only the keys of an experiment: one that is null is left out, which the study still says, and
    in its ``fixed`` and ``grids`` null is a value.
    """
    present = {key: value for key, value in config.items() if value is not None}
    return {key: _experiments(value) if key == "experiments" else _removed(value) for key, value in present.items()}


def _removed(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _removed(each) for key, each in value.items() if each is not None}


def _experiments(blocks: Any) -> Any:
    if not isinstance(blocks, Mapping):
        return blocks
    return {
        name: {key: value for key, value in block.items() if value is not None} if isinstance(block, Mapping) else block
        for name, block in blocks.items()
    }


def origin_of(layers: Layers) -> str:
    """The file in which a study begins: what makes it another study than one that begins elsewhere.

    That is the last file that says what it inherits, or that leaves out every experiment of those beneath it; else the
    first. Overlays of any other kind belong to the study that they are laid over.

    Args:
        layers: (file, content), later ones laid over earlier ones.
    """
    origin, config = "", dict[str, Any]()
    for file, layer in layers:
        before = active_names(config)
        config = lay(config, layer)
        if not origin or isinstance(layer.get("inherit"), list) or (before and not before & active_names(config)):
            origin = file
    return origin


def active_names(config: Mapping[str, Any]) -> set[str]:
    """The experiments of a configuration that are not left out, whatever else is wrong with it."""
    blocks = config.get("experiments")
    return {str(name) for name, block in blocks.items() if block is not None} if isinstance(blocks, Mapping) else set()


def typed(value: object) -> Any:
    """What ``--config key=value`` means: Snakemake hands over the text of nested values, which YAML would read."""
    if isinstance(value, Mapping):
        return {key: typed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [typed(each) for each in value]
    if isinstance(value, str):
        try:
            read = yaml.load(value, Loader=_PlainYaml)
        except yaml.YAMLError:
            return value
        return read if isinstance(read, bool | int | float) or value in ("null", "~") else value
    return value
