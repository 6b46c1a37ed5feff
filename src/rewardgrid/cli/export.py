"""A trained cell as others load it: a model or an adapter, its tokenizer and a card; on a hub, if asked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rewardgrid.base.hub import check_repository
from rewardgrid.base.load import Base, load_base
from rewardgrid.cli.run import say
from rewardgrid.study.cell import Cell, read_cell
from rewardgrid.study.errors import UserError
from rewardgrid.study.files import read_json, write_json, write_text
from rewardgrid.study.layout import measured

BASE = "base"
"""Where a base lies beside an adapter; on a hub it is a repository of its own, with this at the end of its name."""
EXPORT = "export.json"
"""Which files an export consists of: what --force may replace."""
MEASURED = {
    "reward": "reward",
    "happy": '"happy" per completion',
    "kl_exact": "KL to the base, nats per token",
    "completion_length": "tokens of a completion",
    "ended": "share of completions that end by themselves",
    "unique": "unique first sentences",
}
"""Figures of the card, and what they are called there."""
NONE = "–"


def export_model(
    cell_directory: Path,
    base_directory: Path | None,
    mode: str,
    out: Path,
    adapter: bool = False,
    force: bool = False,
    push: str | None = None,
) -> None:
    """Write a trained cell as an ordinary Hugging Face model with its adapters merged in, or as a PEFT adapter.

    Args:
        base_directory: where its base lies, by default beside the cells.
        mode: which adapters of a routing cell stay: ``retain_only`` leaves the forget adapter out for good.
        adapter: write the adapter by itself, and its base beside it.
        force: replace an export, here and on the hub.
        push: the repository of a hub, OWNER/NAME, to upload it to.

    Raises:
        UserError: the cell is not trained, has no such adapters, the base is another one, no repository has this name,
            or something is there already.
    """
    spec = cell_directory / "spec.json"
    if not spec.is_file():
        raise UserError(f"{cell_directory}: no cell (it has no spec.json); give the directory of a trained cell")
    if push is not None:
        check_repository(push)
    cell = read_cell(spec.read_text(encoding="utf-8", errors="replace"), str(spec))
    if mode != "both" and not cell.is_routing:
        raise UserError(f"{spec}: method: read {cell.method!r}; --mode {mode} needs a routing cell, leave it out")
    if adapter and (cell.method == "full" or (cell.is_routing and mode == "both")):
        fix = "give --mode retain_only or forget_only too" if cell.is_routing else "leave --adapter out"
        raise UserError(f"{spec}: method: read {cell.method!r}, which has no single adapter; {fix}")
    if out.resolve().is_relative_to(cell_directory.resolve()):
        raise UserError(f"--out: read {out}, which lies in the cell itself; name a directory elsewhere")
    if out.exists() or out.is_symlink():
        _check_replaceable(out, force)
    if not (cell_directory / "train/status.json").exists():
        raise UserError(f"{cell_directory}: not trained to its end; train the cell, then export it")
    if not (cell_directory / "train/weights").exists():
        raise UserError(
            f"{cell_directory}: has no weights: it was restored from an archive, which holds none; "
            "delete this directory, train the cell again, and export it then"
        )
    base_directory = base_directory or cell_directory.parent.parent / "base" / cell.base_id
    if not base_directory.is_dir():
        raise UserError(f"{base_directory}: no such directory of a base; name one with --base")
    base = load_base(base_directory)
    own = f"{base.name}-{base.provenance.get('recipe_hash') or ''}"
    if own != cell.base_id:
        raise UserError(f"--base: read {base_directory}, which is {own}, but the cell started from {cell.base_id}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"))
    except OSError as error:
        raise UserError(f"--out: cannot write {out} ({error.strerror}); name another directory") from None
    try:
        weights = cell_directory / "train" / "weights"
        (_write_adapter if adapter else _write_model)(temporary, weights, cell, base, mode, out)
        card_of = _Card(cell, base, mode, adapter, _metrics(cell_directory), _metrics(base_directory))
        write_text(temporary / "README.md", card_of(str(out)))
        write_json(temporary / EXPORT, _files(temporary))
        if out.exists():
            shutil.rmtree(out)
        temporary.chmod(0o755)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    say(f"{out}: {cell.name}, {mode.replace('_', ' ')}")
    if push:
        _push(out, push, card_of, force)


def _check_replaceable(out: Path, force: bool) -> None:
    """Nothing is replaced unasked, and nothing but an export ever."""
    if not force:
        raise UserError(f"{out}: exists already; name a directory that does not, or give --force to replace it")
    if out.is_symlink() or not (out / EXPORT).is_file():
        raise UserError(f"{out}: exists already and is no export, which --force would replace; name another directory")
    found = read_json(out / EXPORT)
    written = found if isinstance(found, list) else []
    if others := [name for name in _files(out) if name != EXPORT and name not in written]:
        raise UserError(f"{out}: holds {others[0]}, which no export wrote; move it, or name another directory")


def _files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


def _write_model(out: Path, weights: Path, cell: Cell, base: Base, mode: str, _: Path) -> None:
    from rewardgrid.lm.foreign import Foreign
    from rewardgrid.lm.hf.layout import to_hf
    from rewardgrid.train.weights import load_policy, save_model

    shape, policy = load_policy(weights, cell, base, mode)
    save_model(out, base, policy if isinstance(shape, Foreign) else to_hf(shape, policy))
    _settle(out, base, cell)


def _write_adapter(out: Path, weights: Path, cell: Cell, base: Base, mode: str, final: Path) -> None:
    from rewardgrid.train.routing import active_adapters, adapters_of
    from rewardgrid.train.weights import ADAPTER_FILE, adapter_directory

    adapters = adapters_of(cell)
    (own,) = [each for each in adapters if not cell.is_routing or each.name in active_adapters(mode)]
    source = adapter_directory(weights, adapters, own)
    shutil.copyfile(source / ADAPTER_FILE, out / ADAPTER_FILE)
    _copy_base(out / BASE, base)
    _settle(out / BASE, base, cell)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        if (out / BASE / name).is_file():
            shutil.copyfile(out / BASE / name, out / name)
    config = read_json(source / "adapter_config.json")
    write_json(out / "adapter_config.json", config | {"base_model_name_or_path": str((final / BASE).resolve())})
    write_text(out / BASE / "README.md", _front(base, {}) + f"# {base.name}\n\nThe base of an adapter beside it.\n")


def _copy_base(out: Path, base: Base) -> None:
    """The base as it is, in any number of files."""
    from rewardgrid.base.model_files import kept_files

    out.mkdir()
    for path in kept_files(base.model_dir):
        shutil.copyfile(path, out / path.name)


def _settle(directory: Path, base: Base, cell: Cell) -> None:
    """Let the tokenizer encode a prompt as the cell was given it, and generation draw as the cell is measured."""
    from rewardgrid.lm.hf.config import generation_config, plain_tokenizer

    plain_tokenizer(directory)
    write_json(directory / "generation_config.json", generation_config(base.vocabulary.eos, cell.max_new_tokens))


def _metrics(directory: Path) -> dict[str, Any]:
    path = directory / "evaluation" / "metrics.json"
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    if path.is_file() and not measured(path):
        raise UserError(f"{path}: damaged, or of another version; delete it, and have it measured again")
    return found


# --- the card ------------------------------------------------------------------------------------------


class _Card:
    """The model card: what it is, what was measured, how it was trained, how it is loaded."""

    def __init__(
        self,
        cell: Cell,
        base: Base,
        mode: str,
        adapter: bool,
        metrics: Mapping[str, Any],
        reference: Mapping[str, Any],
    ) -> None:
        self.cell, self.base, self.mode, self.adapter = cell, base, mode, adapter
        self.metrics, self.reference = metrics, reference

    def __call__(self, place: str) -> str:
        """Markdown; ``place`` is where the model is loaded from."""
        library = {"library_name": "peft" if self.adapter else "transformers"}
        parts = [f"# {self.cell.name}", self._what(), "## What was measured", self._measured()]
        parts += ["## How it was trained", self._settings(), "## How to load it", self._loading(place)]
        return _front(self.base, library) + "\n\n".join(parts) + "\n"

    def _what(self) -> str:
        cell = self.cell
        how = {"full": "all weights", "lora": f"a LoRA adapter of rank {cell.rank}", "routing": "two LoRA adapters"}
        which = {"both": "", "retain_only": ", of which the retain adapter alone is here"}
        which["forget_only"] = ", of which the forget adapter alone is here"
        merged = "" if self.adapter or cell.method == "full" else " It is merged into the base."
        return (
            f"The language model {self.base.name}, trained by GRPO for the reward `{cell.reward}` "
            f"({how[cell.method]}{which[self.mode]}), with rewardgrid.{merged}"
        )

    def _measured(self) -> str:
        if not self.metrics:
            return "Nothing: the cell has not been evaluated."
        if self.metrics["state"] != "done":
            return f"Nothing: training ended as {self.metrics['state']}."
        own, base = self._figures(self.metrics), self._figures(self.reference)
        rows = [
            (label, *(_shown(figures.get(key), figures.get(f"{key}_se")) for figures in (own, base)))
            for key, label in MEASURED.items()
        ]
        lines = ["| | this model | its base |", "|---|--:|--:|"]
        lines += [f"| {' | '.join(row)} |" for row in rows if row[1] != NONE]
        own = self.metrics["modes"].get(self.mode, {})
        judged = self.metrics if self.mode == "both" or "verdict" not in own else own
        reasons = f" ({', '.join(judged['reasons'])})" if judged["reasons"] else ""
        verdict = f"Verdict: **{judged['verdict']}**{reasons}: whether it still tells stories as its base does."
        if self.mode != "both" and judged is self.metrics:
            verdict = f"Of both adapters together: {verdict[0].lower()}{verdict[1:]}"
        return "\n".join(lines) + f"\n\n{verdict}"

    def _figures(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Of the full protocol, the cell's own reward among them."""
        if not metrics:
            return {}
        if metrics["state"] == "base":
            full, paid = metrics["full"], metrics["rewards"].get(self.cell.reward)
            figures = {key: value for key, value in full.items() if not key.startswith("reward")} | {"reward": paid}
        else:
            figures = dict(metrics["full"] if self.mode == "both" else metrics["modes"].get(self.mode, {}))
        if self.mode == "both":
            figures["unique"] = metrics["published"].get("unique_first_sentences")
        return figures

    def _settings(self) -> str:
        left_out = {"base_recipe", "own", "results_version"}
        said = self.cell.model_dump(mode="json", exclude=left_out, exclude_none=True)
        code = [f"`{each.name}`: {each.file}, SHA-256 `{each.sha256[:12]}`" for each in self.cell.own if each.file]
        rows = [f"| `{key}` | {value} |" for key, value in said.items()]
        return "\n".join(["| setting | value |", "|---|---|", *rows, *(["", *code] if code else [])])

    def _loading(self, place: str) -> str:
        what, library = (
            ("AutoPeftModelForCausalLM", "peft") if self.adapter else ("AutoModelForCausalLM", "transformers")
        )
        return f"""```python
from transformers import PreTrainedTokenizerFast
from {library} import {what}

tokenizer = PreTrainedTokenizerFast.from_pretrained({place!r})
model = {what}.from_pretrained({place!r})
prompt = tokenizer({self.base.eval_prompts().text[0]!r}, return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**prompt)[0], skip_special_tokens=True))
```

The tokenizer adds no special tokens, and generation draws at temperature 1 without truncation, as the model was
measured."""


def _front(base: Base, more: Mapping[str, Any]) -> str:
    """What a hub reads of a card."""
    source = base.provenance.get("facts", {}).get("source", {}).get("model", {})
    known = {"license": base.provenance.get("facts", {}).get("license")}
    known |= {"base_model": source.get("repository") if isinstance(source, dict) else None}
    values = {**{key: value for key, value in known.items() if value}, **more}
    values |= {"pipeline_tag": "text-generation", "tags": ["grpo", "rewardgrid"]}
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n\n"


def _shown(value: float | None, error: float | None = None) -> str:
    if value is None:
        return NONE
    return f"{value:.3g}" if error is None else f"{value:.3f} ± {error:.3f}"


# --- a hub ---------------------------------------------------------------------------------------------


def _push(out: Path, repository: str, card_of: _Card, force: bool) -> None:
    """Upload an export; of an adapter the base too, which its configuration then names."""
    from rewardgrid.base.hub import upload

    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "copy"
        shutil.copytree(out, copy, ignore=shutil.ignore_patterns(EXPORT))
        write_text(copy / "README.md", card_of(repository))
        if card_of.adapter:
            beside = f"{repository}-{BASE}"
            upload(copy / BASE, beside, force)
            say(f"{beside}: uploaded")
            shutil.rmtree(copy / BASE)
            path = copy / "adapter_config.json"
            write_json(path, read_json(path) | {"base_model_name_or_path": beside})
        upload(copy, repository, force)
    say(f"{repository}: uploaded")
