"""docs/first_study.md, done word for word in a fresh checkout, with a tiny Qwen2 as the model of one's own."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from rewardgrid.study.files import read_json

BOX = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WHERE = re.compile(r"# (studies/\S+)\n")


def fresh_checkout(root: Path, directory: Path) -> None:
    """What git knows of, and the environment that the tests run in under the name that the guide has for it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, directory / name)
    programs = {"python": "", "snakemake": "-m snakemake "}
    for program, words in programs.items():
        path = directory / ".venv/bin" / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {words}"$@"\n')
        path.chmod(0o755)


def make_qwen2(directory: Path, text: str) -> None:
    """A Qwen2 of random weights as transformers writes it; its byte-level tokenizer knows the words of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(directory)
    set_seed(0)
    config = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=tokenizer.token_to_id("<|endoftext|>"),
        bos_token_id=None,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    Qwen2ForCausalLM(config).save_pretrained(directory)


@dataclass
class Done:
    """The checkout after the guide, and what each of its boxes of commands has said."""

    directory: Path
    said: list[str]


@pytest.fixture(scope="module")
def done(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Every box of the guide in its order: files are written, commands run."""
    directory = tmp_path_factory.mktemp("first") / "a checkout"
    fresh_checkout(root, directory)
    guide = (root / "docs/first_study.md").read_text(encoding="utf-8")
    make_qwen2(directory / "models/mine", guide)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SNAKEMAKE")}
    environment |= {"PATH": os.defpath, "PYTHONPATH": str(directory / "src")}
    said = []
    for language, text in BOX.findall(guide):
        if language == "sh":
            run = subprocess.run(
                ["sh", "-e", "-c", text],
                cwd=directory,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert run.returncode == 0, f"{text}\n{run.stdout}"
            said.append(run.stdout)
        else:
            where = WHERE.match(text)
            assert where, f"a box that says of no file where it goes:\n{text}"
            (directory / where[1]).write_text(text)
    return Done(directory, said)


def test_the_guide_ends_with_a_report_that_has_the_figures_of_the_reward(done: Done) -> None:
    results = done.directory / "results/questions"
    report = (results / "RESULTS.md").read_text(encoding="utf-8")
    assert report.startswith("# Stories that ask\n")
    assert "2 cells: 2 done" in report
    assert "ublished study" not in report
    rewards = runpy.run_path(str(done.directory / "studies/questions/rewards.py"))
    table = pd.read_parquet(results / "tables/questions.parquet").set_index("reward")
    assert set(table.index) == {"asks", "asks_in_fives"}
    for reward, row in table.iterrows():
        samples = pd.read_parquet(results / "cells" / row["cell"] / "evaluation/samples.parquet")
        full = samples[samples["protocol"] == "full"]
        texts = full["completion"].tolist()
        asks, distinct = (sum(rewards[name](texts)) / 20 for name in ("asks", "distinct"))
        assert row["own_asks"] == pytest.approx(asks)
        assert row["own_distinct"] == pytest.approx(distinct)
        if reward == "asks":
            assert full["reward"].tolist() == pytest.approx(rewards["asks"](texts), abs=1e-6)
        line = (
            rf"^\| {reward.replace('_', '.?_')} \| 42 \| {row['final_reward']:.3f} \| {asks:.3f} \| {distinct:.3f} \|"
        )
        assert re.search(line, report, re.MULTILINE)
    (packed,) = re.findall(r'id="data-overview">([^<]*)<', (results / "report.html").read_text(encoding="utf-8"))
    overview = json.loads(gzip.decompress(base64.b64decode(packed)))
    shown = {cell["name"]: cell["row"]["own_asks"] for cell in overview["cells"]}
    assert shown == pytest.approx(table.set_index("cell")["own_asks"].to_dict(), rel=1e-3)


def test_the_guides_model_and_prompts_are_those_that_were_used(done: Done) -> None:
    (base,) = (done.directory / "results/questions/base").glob("mine-*")
    assert read_json(base / "model/config.json")["model_type"] == "qwen2"
    for name in ("prompts", "eval_prompts"):
        lines = (done.directory / f"studies/questions/{name}.txt").read_text().splitlines()
        used = pd.read_parquet(base / f"{'train_' * (name == 'prompts')}{name}.parquet")["text"]
        assert len(lines) == len(used) == 20
        assert all(any(line.startswith(text) for line in lines) for text in used)


def test_the_guides_commands_say_what_the_guide_says(done: Done) -> None:
    new, prompts, check, run, vary = done.said
    assert new.startswith("studies/questions/study.yaml\n")
    assert prompts == ""
    assert check.endswith("studies/questions/study.yaml: 1 experiment, 2 cells, no problems\n")
    assert "Ready: results/questions/RESULTS.md" in run
    assert "2 cells: 2 done" in run
    # Another reward: the base is asked about it too, and its cells are measured beside that.
    assert {"2 train", "3 evaluate", "1 evaluate_base"} <= set(re.split(r"[:,] ?", vary.replace("jobs: ", ",")))
    assert "3 cells (1 done, 2 waiting)." in vary
