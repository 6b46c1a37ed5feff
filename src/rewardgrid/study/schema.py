"""The JSON schema of the configuration, so that editors complete its keys and explain them."""

from __future__ import annotations

import json
from typing import Any

from rewardgrid.study.cell import Cell
from rewardgrid.study.study import WRITABLE, Study


def configuration_schema() -> dict[str, Any]:
    """Schema of one configuration file.

    Files are laid over one another, so no single one has to be complete: nothing is required. Keys of cells
    are typed wherever they may stand: one value in ``defaults`` and ``fixed``, one or a list in ``grids``, a list or a
    range in ``ranges``.
    """
    schema = Study.model_json_schema()
    fields = Cell.model_json_schema()["properties"]
    value = {key: {k: v for k, v in fields[key].items() if k != "title"} for key in WRITABLE}
    axis = {
        key: {
            "anyOf": [_bare(field), {"type": "array", "items": _bare(field), "minItems": 1}],
            "description": field.get("description", ""),
        }
        for key, field in value.items()
    }
    drawn = {
        key: {
            "anyOf": [{"type": "array", "items": _bare(field), "minItems": 1}, {"$ref": "#/$defs/Range"}],
            "description": field.get("description", ""),
        }
        for key, field in value.items()
    }
    schema["$defs"] |= {"Values": _block(value), "Grid": _block(axis), "Ranges": _block(drawn)}
    experiment = schema["$defs"]["Experiment"]["properties"]
    for block, key in ((schema["properties"], "defaults"), (experiment, "fixed")):
        block[key] = {"$ref": "#/$defs/Values", "description": block[key]["description"]}
    ranges = schema["$defs"]["Sample"]["properties"]
    ranges["ranges"] = {"$ref": "#/$defs/Ranges", "description": ranges["ranges"]["description"]}
    experiment["grids"]["items"] = {"$ref": "#/$defs/Grid"}
    del schema["properties"]["origin"]  # which nobody writes
    # What null removes: whole blocks, and what has a name in them.
    metrics = schema["$defs"]["Evaluation"]["properties"]["metrics"]
    for block in (*(schema["properties"][key] for key in ("bases", "rewards", "detectors")), metrics):
        block["patternProperties"] = {name: _or_null(each) for name, each in block["patternProperties"].items()}
    schema["properties"] = {key: _or_null(field) for key, field in schema["properties"].items()}
    for part in (schema, *schema["$defs"].values()):
        part.pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [field, {"type": "null"}]}


def _bare(field: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in field.items() if key not in ("description", "default")}


def _block(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def schema_text() -> str:
    """What ``config/schema.json`` holds."""
    return json.dumps(configuration_schema(), indent=2, sort_keys=True) + "\n"
