"""A study: one configuration of everything, read from YAML files and checked in one go."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from rewardgrid.study.bases import Recipe, StorytellerRecipe, model_config, recipe_hash
from rewardgrid.study.cell import REWARDS, Cell, Count, Seed, Share, Strict, unknown_code
from rewardgrid.study.errors import ConfigError, Problem, did_you_mean
from rewardgrid.study.files import JSON_BYTES, object_in, read_bounded
from rewardgrid.study.layers import Layers, active_names, laid, origin_of, read_yaml, typed, without_removed
from rewardgrid.study.layout import Layout
from rewardgrid.study.own import Code, OwnFunction, OwnReward, code_of
from rewardgrid.study.problems import NAMED, fixes
from rewardgrid.study.sampling import Sample
from rewardgrid.study.thresholds import Thresholds

FindingName = Literal[
    "best_tradeoff",
    "penalty_effect",
    "stories_by_penalty",
    "scale_effect",
    "beta_order",
    "published_signals",
    "smallest_passing",
    "lr_ratio_to_full",
    "slower_than_baseline",
    "slower_when_scaled",
    "baseline_climb",
    "hack_removed",
    "stories",
    "windows",
    "collapse",
    "asymmetric_table",
]
FigureName = Literal["learning_curves", "reward_kl", "verdict_map", "routing_curves"]
Block = Literal[
    "bases", "storyteller", "rewards", "detectors", "defaults", "evaluation", "recording", "published", "experiments"
]
"""What a file may take from those that it is laid over: all but what is a study's own, its title and its results."""

Name = Annotated[str, Field(pattern=NAMED, max_length=100)]
"""A name that is part of paths and of Snakemake targets."""

TARGETS = (
    *("all", "base", "bases", "evaluate", "evaluate_base", "figures", "findings", "index", "make_storyteller"),
    *(
        "page",
        "publish",
        "published",
        "results",
        "results_partial",
        "sift",
        "stories",
        "storyteller",
        "study",
        "table",
        "teacher",
    ),
    *("tell", "train"),
)
"""What the workflow's rules are called, which are targets too: no experiment can have such a name."""


def _plain_path(path: str) -> str:
    """A path that means the same to Snakemake, the shell and Python."""
    if (
        os.path.normpath(path) != path
        or path in (".", "..")
        or re.search(r"^[-~/]/?$|^[-~]|^//|[\x00-\x1f{}<>$*?\[\]]", path)
    ):
        raise ValueError(
            "write a plain path such as results or /scratch/me/out: without ./ // and / at its end, without ~ $ * ? "
            "[] {} <>, and not beginning with -"
        )
    return path


OTHERS_SAY = {
    name: own
    for own, names in {
        "lr": "learning_rate peak_lr",
        "beta": "kl_coef kl_coefficient kl_penalty kl_weight",
        "max_steps": "steps num_steps train_steps",
        "max_new_tokens": "max_completion_length max_tokens",
        "batch_size": "per_device_train_batch_size train_batch_size",
        "num_generations": "group_size num_samples",
        "max_grad_norm": "grad_clip gradient_clipping",
        "rank": "lora_rank lora_r",
        "adapter_alpha": "lora_alpha alpha",
        "reward": "reward_function reward_func",
        "base": "model base_model",
        "precision": "dtype torch_dtype",
    }.items()
    for name in names.split()
}
"""Names that other libraries have for fields of a cell."""

_FILLED_IN = "remove it: it is filled in by rewardgrid"
_AUTOMATIC = ("base_recipe", "own", "results_version")
"""Fields of a spec that nobody writes by hand."""

WRITABLE = tuple(sorted(set(Cell.model_fields) - set(_AUTOMATIC)))
"""Fields of a spec that `defaults`, `fixed` and `grids` may set."""


class Experiment(Strict):
    """One table of RESULTS.md: a set of cells and how to show them."""

    title: str = Field(description="heading of its section")
    question: str = Field(default="", description="what it asks, in a sentence or two")
    fixed: dict[str, Any] = Field(default_factory=dict, description="values that all its cells share")
    grids: list[dict[str, Any]] = Field(
        default=[{}],
        min_length=1,
        description="each a product of lists; the experiment is their union. May be left out beside a sample",
    )
    sample: Sample | None = Field(
        default=None, description="points drawn from ranges; every cell of the grids is trained at each of them"
    )
    columns: list[str] = Field(
        default_factory=list, description="columns of the per-cell table: spec fields and metrics"
    )
    by: list[str] = Field(
        default_factory=list, description="spec fields that make a configuration; means are over its seeds"
    )
    findings: list[FindingName] = Field(
        default_factory=list, description="what to compute from its table; the first is its answer on the first page"
    )
    figures: list[FigureName] = Field(default_factory=list, description="pictures beside its table")

    @model_validator(mode="after")
    def _has_cells(self) -> Self:
        conflicts = []
        if self.sample is None and "grids" not in self.model_fields_set:
            conflicts.append(("grids", "missing; write this key, or sample"))
        for key in self.sample.ranges if self.sample else ():
            if any(key in grid for grid in self.grids):
                conflicts.append(("sample", f"{key} stands in grids too; write it in one of the two"))
        if conflicts:
            raise PydanticCustomError("conflict", "no cells", {"conflicts": conflicts})
        return self


MOST_CELLS = 100_000
"""Of an experiment: all are made and checked before anything runs."""
LEAST_SAMPLES = 20
"""Of an evaluation: with fewer, no error bar means anything."""


class Evaluation(Strict):
    """How a finished cell is measured (SEMANTICS: evaluation)."""

    samples: Annotated[int, Field(strict=True, ge=LEAST_SAMPLES)] = Field(
        default=256, description="completions for every figure with an error bar"
    )
    published_samples: Annotated[int, Field(strict=True, ge=2)] = Field(
        default=20, description="completions of the published protocol"
    )
    published_prompts: Count = Field(
        default=5,
        description="evaluation prompts of the published protocol (the first without a full stop), each for as many of "
        "its completions",
    )
    published_top_k: Count = Field(default=50, description="top-k of the published protocol and of the verdict")
    seed: Seed = Field(default=99, description="seed of the evaluation's draws")
    base_draws: Annotated[int, Field(strict=True, ge=0)] = Field(
        default=20, description="further draws of the base's own samples, each judged like a cell: false alarms"
    )
    thresholds: Thresholds = Field(default_factory=Thresholds, description="when a cell counts as degenerate")
    hack_onset: Share = Field(
        default=0.25,
        description="a cell begins to hack when, over 10 steps, its share of hacked completions exceeds the base's by "
        "so much",
    )

    metrics: dict[Name, OwnFunction] = Field(
        default_factory=dict, description="further figures of the full protocol, as columns own_NAME of tables"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the metrics where there are none: what was measured before there were any stays measured."""
        found: dict[str, Any] = dump(self)
        return found if self.metrics else {key: value for key, value in found.items() if key != "metrics"}

    @model_validator(mode="after")
    def _equal_shares(self) -> Self:
        if self.published_samples % self.published_prompts:
            fix = f"write a number that divides published_samples ({self.published_samples})"
            raise PydanticCustomError(
                "conflict", "prompts of different weight", {"conflicts": [("published_prompts", fix)]}
            )
        return self


class BaseEvaluation(Evaluation):
    """How a base is measured: as cells are, and by the code of one's own that its cells use."""

    own: tuple[Code, ...] = ()

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without either where there is none: a base that was measured before there were any stays measured."""
        found: dict[str, Any] = dump(self)
        absent = {key for key in ("metrics", "own") if not getattr(self, key)}
        return {key: value for key, value in found.items() if key not in absent}


class Recording(Strict):
    """What training writes and how often; changes no result."""

    rollouts_every: Count = Field(default=50, description="steps between recorded rollouts")
    checkpoint_every: Count = Field(default=100, description="steps between checkpoints")


class Study(Strict):
    """The whole configuration."""

    inherit: tuple[Block, ...] | None = Field(
        default=None,
        exclude=True,
        description="blocks that this file takes from those that it is laid over (config/config.yaml, files before it "
        "after --configfile); [bases] makes a study that stands alone (default: everything)",
    )
    origin: str = Field(
        default="", description="the file in which the study begins; filled in by rewardgrid, not written by hand"
    )
    results: Annotated[str, AfterValidator(_plain_path)] = Field(
        default="results", description="directory for everything that is made"
    )
    title: str = Field(default="rewardgrid", description="title of RESULTS.md")
    bases: dict[Name, Recipe] = Field(min_length=1, description="language models that cells can start from")
    storyteller: StorytellerRecipe = Field(
        default_factory=StorytellerRecipe, description="how `snakemake storyteller` makes that base anew"
    )
    rewards: dict[Name, OwnReward] = Field(
        default_factory=dict, description="rewards of one's own, which `reward` and `base_reward` may name"
    )
    detectors: dict[Name, OwnFunction] = Field(
        default_factory=dict, description="detectors of one's own, which `detector` may name"
    )
    defaults: dict[str, Any] = Field(
        default_factory=dict, description="values of every cell unless an experiment says otherwise"
    )
    evaluation: Evaluation = Field(default_factory=Evaluation, description="how a finished cell is measured")
    recording: Recording = Field(
        default_factory=Recording, description="what training writes and how often; changes no result"
    )
    published: str | None = Field(
        default=None, description="directory of the published figures to compare with (default: with none)"
    )
    experiments: dict[Name, Experiment | None] = Field(
        min_length=1, description="the tables of RESULTS.md; null leaves one out"
    )

    _layers: Layers = PrivateAttr(default=(("configuration", {}),))

    @model_validator(mode="after")
    def _own_names(self) -> Self:
        """Names of one's own are nobody else's, and sums are of rewards that there are."""
        conflicts = [
            ("rewards", f"{name}: rewardgrid has a reward of this name; choose another")
            for name in self.rewards
            if name in REWARDS
        ]
        conflicts += [
            ("detectors", f"{name}: there is a reward of this name; choose another")
            for name in self.detectors
            if name in (*self.rewards, *REWARDS)
        ]
        simple = {*REWARDS, *(name for name, own in self.rewards.items() if own.python is not None)}
        for name, own in self.rewards.items():
            for part in own.sum:
                if part not in simple:
                    hint = did_you_mean(part, simple)
                    fix = f"{name}.sum: no such reward as {part!r} (or it is a sum itself);{hint}".removesuffix(";")
                    conflicts.append(("rewards", fix))
        if conflicts:
            raise PydanticCustomError("conflict", "names", {"conflicts": conflicts})
        return self

    def problem(self, location: Sequence[str | int], read: object, fix: str) -> Problem:
        """Something wrong at a place of this study, in the file that says so (if it was read from files)."""
        return _problem(self._layers, location, read, fix)

    @property
    def layout(self) -> Layout:
        """Where this study's files lie."""
        return Layout(Path(self.results))

    @cached_property
    def active(self) -> dict[str, Experiment]:
        """The experiments that are not left out, in order."""
        return {name: experiment for name, experiment in self.experiments.items() if experiment is not None}

    @cached_property
    def grid(self) -> dict[str, tuple[Cell, ...]]:
        """The cells of each experiment, in the order of its grids."""
        hashes = {name: recipe_hash(recipe) for name, recipe in self.bases.items()}
        return {
            name: tuple(
                Cell(
                    **values
                    | {
                        "base_recipe": hashes[values.get("base", _default("base"))],
                        "own": own_of(values, self.rewards, self.detectors),
                    }
                )
                for _, values in expand(experiment, self.defaults)
            )
            for name, experiment in self.active.items()
        }

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """Every unique cell by name."""
        return {cell.name: cell for cells in self.grid.values() for cell in cells}

    def longest_completion(self, base_id: str) -> int:
        """How long a base's own stories are when it is measured, in tokens: as long as those of its cells."""
        return max(cell.max_new_tokens for cell in self.cells.values() if cell.base_id == base_id)

    def base_evaluation(self, base_id: str) -> BaseEvaluation:
        """How a base is measured: its cells' rewards and detectors of one's own are asked about its stories too."""
        own = {code.name: code for cell in self.cells.values() if cell.base_id == base_id for code in cell.own}
        return BaseEvaluation(**dict(self.evaluation), own=tuple(own[name] for name in sorted(own)))

    @cached_property
    def base_recipes(self) -> dict[str, tuple[str, Recipe]]:
        """The bases that the cells use: directory name -> (name, recipe)."""
        return {cell.base_id: (cell.base, self.bases[cell.base]) for cell in self.cells.values()}


_OWN_KEYS = ("reward", "base_reward", "detector")
"""The fields of a cell that may name code of one's own."""


def own_of(
    values: Mapping[str, Any], rewards: Mapping[str, OwnReward | None], detectors: Mapping[str, OwnFunction | None]
) -> tuple[Code, ...]:
    """The code of one's own that a cell with these values uses: nothing where all is rewardgrid's."""
    named = [values.get(key) for key in _OWN_KEYS]
    known = {**rewards, **detectors}
    used: dict[str, Code] = {}
    for name in named:
        if isinstance(name, str) and (own := known.get(name)) is not None:
            parts = own.sum if isinstance(own, OwnReward) else ()
            for each in (name, *parts):
                if (definition := known.get(each)) is not None:
                    used[each] = code_of(each, definition)
    return tuple(used[name] for name in sorted(used))


def _default(key: str) -> Any:
    return Cell.model_fields[key].default


def expand(experiment: Experiment, defaults: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The (grid number, values) of each of an experiment's cells: the product of each grid's lists, at every point."""
    drawn = experiment.sample.points if experiment.sample else [{}]
    for number, grid in enumerate(experiment.grids):
        axes = [value if isinstance(value, list) else [value] for value in grid.values()]
        for sampled in drawn:
            for point in itertools.product(*axes):
                yield number, {**defaults, **experiment.fixed, **sampled, **dict(zip(grid, point, strict=True))}


# --- reading -------------------------------------------------------------------------------------------


def load_study(
    files: Sequence[Path | str], config: Mapping[str, Any] | None = None, over: Mapping[str, Any] | None = None
) -> Study:
    """Read and check a configuration.

    Args:
        files: YAML files, later ones laid over earlier ones.
        config: the merged values, if that has been done; the files then only serve to tell where a wrong value stands.
            Without files, those of a module's configuration.
        over: what Snakemake's ``--config`` lays over the files.

    Raises:
        ConfigError: every problem of the configuration, each with file, key, what was read and what to write.
    """
    layers = [(str(path), read_yaml(path)) for path in files]
    origin = {"origin": origin_of([(_here(file), layer) for file, layer in layers])} if layers else {}
    by_hand = [Problem(file, "origin", layer["origin"], _FILLED_IN) for file, layer in layers if layer.get("origin")]
    by_hand += [
        Problem(file, f"{'.'.join(place)}.sha256", each["sha256"], _FILLED_IN)
        for file, layer in layers
        for place, each in _own_blocks(layer)
        if each.get("sha256")
    ]
    # Laid on top, but not the last one, which is blamed for what is said nowhere.
    on_top = typed(over or {}) if config is None else dict(config)
    if config is None:
        config = laid([*(layer for _, layer in layers), on_top])
    layers = [("--config" if files else "config", on_top), *layers]
    config = without_removed(config) | origin
    broken = [
        _problem(layers, place, read, "write whole letters: this is half of one") for place, read in _half(config)
    ]
    problems = {str(problem): problem for problem in broken or (*by_hand, *_problems(config, layers))}
    if problems:
        raise ConfigError(list(problems.values()))
    study = Study.model_validate(config)
    problems_of_places = list(_place_problems(study, layers))
    if problems_of_places:
        raise ConfigError(problems_of_places)
    study._layers = tuple(layers)
    return study


def _own_blocks(layer: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Where a file defines code of one's own, and how."""
    for place in (("rewards",), ("detectors",), ("evaluation", "metrics")):
        block: Any = layer
        for key in place:
            block = block.get(key) if isinstance(block, Mapping) else None
        for name, each in block.items() if isinstance(block, Mapping) else ():
            if isinstance(each, Mapping):
                yield (*place, str(name)), each


def _here(file: str) -> str:
    """A file as seen from here, by whatever links it was named."""
    return os.path.relpath(os.path.realpath(file))


def _half(value: object, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Texts and keys with halves of surrogate pairs, which no file can hold, and where they stand."""
    if isinstance(value, str):
        if not value.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in value):
            yield place, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _half(key, place)
            yield from _half(each, (*place, key))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _half(each, (*place, number))


def sound_part(files: Sequence[Path | str], error: ConfigError) -> Study | None:
    """The study without the experiments in which something is wrong, if without them nothing is."""
    wrong = {re.split(r"[.[]", problem.key)[1] for problem in error.problems if problem.key.startswith("experiments.")}
    if not wrong:
        return None
    try:
        config = laid(read_yaml(path) for path in files)
        experiments = {name: each for name, each in config["experiments"].items() if name not in wrong}
        return load_study(files, config | {"experiments": experiments})
    except ConfigError:
        return None


def _problems(config: Mapping[str, Any], layers: Layers) -> Iterator[Problem]:
    """Everything wrong with a configuration: its own blocks, then the cells of all sound experiments."""
    try:
        Study.model_validate(config)
    except ValidationError as error:
        for location, read, fix in fixes(Study, error):
            place = _place(location)
            if place[0] == "experiments" and place[2:] == ("title",) and read is None:  # a new one, or a slip
                others = [name for name in active_names(config) if name != place[1]]
                fix = f"{fix} of a new experiment;{did_you_mean(str(place[1]), others)}".removesuffix(";")
            yield _problem(layers, place, read, fix)
    experiments = config.get("experiments")
    for name in experiments if isinstance(experiments, Mapping) else ():
        if name in TARGETS:
            yield _problem(layers, ("experiments", name), name, "is a target of the workflow; choose another name")
    defaults = config.get("defaults", {})
    yield from _cell_problems(
        _sound(config.get("bases"), Recipe),
        {str(key): value for key, value in defaults.items()} if isinstance(defaults, Mapping) else {},
        _sound(config.get("experiments"), Experiment | None),
        (_sound(config.get("rewards"), OwnReward), _sound(config.get("detectors"), OwnFunction)),
        layers,
    )


def _place_problems(study: Study, layers: Layers) -> Iterator[Problem]:
    """What is wrong with a sound configuration at this place: of the results directory, and of its prompts' number."""
    if not study.active:
        yield _problem(layers, ("experiments",), dict(study.experiments), "leaves every experiment out; write one")
        return
    for place in (Path(study.results), *Path(study.results).parents):
        try:
            wrong = "is no directory" if place.exists() and not place.is_dir() else ""
        except OSError as error:
            wrong = f"can be none ({error.strerror})"
        if wrong:
            yield _problem(layers, ("results",), study.results, f"{place} {wrong}; name another one")
            return
    held = study_held(study)
    if held is not None:
        fix = (
            f"holds the results of another study ({held}); write a directory of its own, such as "
            f"{own_results(study)}, or, if this is that study in another file, delete {study.layout.study}"
        )
        yield _problem(layers, ("results",), study.results, fix)
    needed = study.evaluation.samples
    for name, recipe in study.base_recipes.values():
        if recipe.kind != "packaged" and recipe.eval_prompts < needed:
            fix = f"write at least {needed}, which evaluation.samples needs"
            yield _problem(layers, ("bases", name, "eval_prompts"), recipe.eval_prompts, fix)


def study_held(study: Study) -> str | None:
    """Which other study has its files in this one's results directory; None if none has.

    A study is known by the file in which it begins. Where that was not recorded, a study that shares no experiment with
    this one is another.
    """
    try:
        found = object_in(read_bounded(study.layout.study, JSON_BYTES))
    except OSError:
        return None
    if found is None:
        return None
    if study.origin and (origin := found.get("origin")):
        return str(origin) if origin != study.origin else None
    others = active_names(found)
    return f"of {', '.join(sorted(others))}" if others and not others & set(study.active) else None


def own_results(study: Study) -> str:
    """A results directory that nobody has, called after the file in which the study begins."""
    file = Path(study.origin or "mine")
    name = file.parent.name if file.stem == "study" and file.parent.name else file.stem
    numbered = (f"results/{name}-{number}" if number > 1 else f"results/{name}" for number in itertools.count(1))
    return next(path for path in numbered if not Path(path).exists())


def _sound(block: object, kind: Any) -> dict[str, Any]:
    """The entries of a block of the configuration, None in place of those that are not valid."""
    adapter = TypeAdapter(kind)
    entries: dict[str, Any] = {}
    for name, value in block.items() if isinstance(block, Mapping) else ():
        try:
            entries[str(name)] = adapter.validate_python(value)
        except ValidationError:
            entries[str(name)] = None
    return entries


def _place(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """A location without what pydantic adds to it: the kind of a base or teacher, the mark of a key."""
    if (location[:1] == ("bases",) or location[:2] == ("storyteller", "teacher")) and len(location) > 3:
        location = location[:2] + location[3:]
    return location[:-1] if location[-1] == "[key]" else location


def _problem(layers: Layers, location: Sequence[str | int], read: object, fix: str) -> Problem:
    """Name the last file that has this value at this place, or else its nearest enclosing block."""
    best, depth = layers[-1][0], 0
    for file, layer in layers:
        reached, node = 0, layer
        for part in location:
            try:
                node = node[part]  # type: ignore[index]
            except (KeyError, IndexError, TypeError):
                break
            reached += 1
        reached += reached == len(location) and node == read
        if reached and reached >= depth:
            best, depth = file, reached
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    return Problem(best, key, read, fix)


def _cell_problems(
    bases: Mapping[str, Recipe | None],
    defaults: Mapping[str, Any],
    experiments: Mapping[str, Experiment | None],
    own: tuple[Mapping[str, OwnReward | None], Mapping[str, OwnFunction | None]],
    layers: Layers,
) -> Iterator[Problem]:
    """Check every cell of every grid; each problem is placed at the value that caused it."""
    contexts = {name: _context(model_config(recipe)) for name, recipe in bases.items() if recipe}
    for key in sorted(set(defaults) - set(WRITABLE)):
        yield _problem(layers, ("defaults", key), defaults[key], _unknown(key))
    for name, experiment in experiments.items():
        if experiment is None:
            continue
        place = ("experiments", name)
        for key in sorted(set(experiment.by) - set(WRITABLE)):
            yield _problem(
                layers, (*place, "by"), key, f"write fields of a cell;{did_you_mean(key, WRITABLE)}".removesuffix(";")
            )
        for number, grid in enumerate(experiment.grids):
            for key in (key for key, value in grid.items() if value == []):
                yield _problem(layers, (*place, "grids", number, key), [], "write at least one value")
        size = _size(experiment)
        if size > MOST_CELLS:
            fix = f"makes {size:,} cells; write lists that make at most {MOST_CELLS:,}, or several studies"
            yield _problem(layers, (*place, "grids"), f"{len(experiment.grids)} grids", fix)
            continue
        unknown = list(_unknown_keys(experiment))
        for where_read, read in unknown:
            yield _problem(layers, (*place, *where_read), read, _unknown(str(where_read[-1])))
        seen: dict[str, int] = {}
        for number, values in expand(experiment, defaults):
            cell, found = _check(values, bases, contexts, *own)
            for key, read, fix in found:
                if key in experiment.grids[number]:
                    where: tuple[str | int, ...] = (*place, "grids", number, key)
                elif experiment.sample and key in experiment.sample.ranges:
                    where = (*place, "sample", "ranges", key)
                elif key in experiment.fixed:
                    where = (*place, "fixed", key)
                else:
                    where = ("defaults", key) if key in defaults else (*place, "grids", number, key)
                yield _problem(layers, where, read, fix)
            if unknown:
                continue  # what they would be is not known
            if cell and cell.name in seen:
                fix = f"gives the same cell twice (also in grids[{seen[cell.name]}]); remove one of them"
                yield _problem(layers, (*place, "grids", number), cell.name, fix)
            elif cell:
                seen[cell.name] = number


def _size(experiment: Experiment) -> int:
    """How many cells an experiment has."""
    axes = [[len(value) for value in grid.values() if isinstance(value, list)] for grid in experiment.grids]
    return sum(map(math.prod, axes)) * (experiment.sample.n if experiment.sample else 1)


def _unknown_keys(experiment: Experiment) -> Iterator[tuple[tuple[str | int, ...], object]]:
    """Where an experiment sets what no cell has, and to what."""
    blocks: list[tuple[tuple[str | int, ...], Mapping[str, Any]]] = [(("fixed",), experiment.fixed)]
    blocks += [(("grids", number), grid) for number, grid in enumerate(experiment.grids)]
    if experiment.sample:
        ranges = {key: each.model_dump(exclude_none=True) for key, each in experiment.sample.ranges.items()}
        blocks.append((("sample", "ranges"), ranges))
    return (((*where, key), block[key]) for where, block in blocks for key in block if key not in WRITABLE)


def _check(
    values: Mapping[str, Any],
    bases: Mapping[str, Recipe | None],
    contexts: Mapping[str, float],
    rewards: Mapping[str, OwnReward | None],
    detectors: Mapping[str, OwnFunction | None],
) -> tuple[Cell | None, list[tuple[str, object, str]]]:
    """The cell with these values, if they make one, and what is wrong as (key, value read, what to write).

    Args:
        contexts: the longest sequence of each base's model.
    """
    found: list[tuple[str, object, str]] = []
    base = values.get("base", _default("base"))
    recipe = bases.get(base) if isinstance(base, str) else None
    if isinstance(base, str) and bases and base not in bases:
        found.append(("base", base, f"write one of {', '.join(bases)};{did_you_mean(base, bases)}"))
    own = own_of(values, rewards, detectors)
    defined = {**rewards, **detectors}
    if any(name in defined and defined[name] is None for key in _OWN_KEYS if isinstance(name := values.get(key), str)):
        return None, found  # what is wrong with it is said where it is defined
    found += [(key, values[key], fix) for key, fix in unknown_code(values, [code.name for code in own])]
    try:
        cell = Cell(**{key: value for key, value in values.items() if key in WRITABLE}, own=own)
    except ValidationError as error:
        of_cell = [(str(place[0]), read, _within(place[1:], fix)) for place, read, fix in fixes(Cell, error)]
        # Told once, not for each kind of name.
        unnamed = {key: read for key, read, _ in of_cell if key in _OWN_KEYS and not isinstance(read, str)}
        found += [(key, read, "write the name of one, as a text") for key, read in unnamed.items()]
        return None, [*found, *(wrong for wrong in of_cell if wrong[0] not in unnamed)]
    if recipe and cell.prompt_tokens != recipe.prompt_tokens:
        fix = f"write {recipe.prompt_tokens}, the length of the prompts of base {base}, or change it there"
        found.append(("prompt_tokens", cell.prompt_tokens, fix))
    needed = cell.prompt_length + cell.max_new_tokens
    context = contexts.get(cell.base, math.inf)
    if needed > context:
        fix = (
            f"prompt and completion need {needed} tokens, but the context of base {base} is "
            f"{context}; write at most {context - cell.prompt_length}"
        )
        found.append(("max_new_tokens", cell.max_new_tokens, fix))
    return cell, found


def _context(config: Mapping[str, Any]) -> float:
    """The longest sequence of a model; whether it is one at all is said where the model is looked at."""
    found = config.get("max_position_embeddings")
    return found if type(found) is int and found > 0 else math.inf


def _within(place: Sequence[str | int], fix: str) -> str:
    """What to write, of a key within the value of a field."""
    return f"{'.'.join(map(str, place))}: {fix}" if place else fix


def _unknown(key: str) -> str:
    if key in _AUTOMATIC:
        return _FILLED_IN
    return f"unknown key;{did_you_mean(key, WRITABLE, OTHERS_SAY) or ' known: ' + ', '.join(WRITABLE)}"
