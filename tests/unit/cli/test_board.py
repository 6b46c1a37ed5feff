"""What Snakemake's events become on a terminal and elsewhere."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry
from snakemake_interface_logger_plugins.tests import MockOutputSettings, TestLogHandlerBase
from tests.trees import history

from rewardgrid.cli.board import Board, Job, job_of
from rewardgrid.cli.outlook import Outlook, Progress
from rewardgrid.study.files import write_json, write_text
from rewardgrid.study.forecast import Rest
from rewardgrid.study.history import LiveHistory
from rewardgrid.train.lease import identity
from snakemake_logger_plugin_rewardgrid import LogHandler

STEERING = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e"
NAME = "full_lr1e-5_s42-0123456789"
PLAN = {"train": 3, "evaluate": 3, "table": 1, "all": 1, "total": 8}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job(rule: str, number: int = 0) -> Job:
    name = f"{NAME[:-1]}{number}"
    output = {"train": f"results/cells/{name}/train", "evaluate": f"results/cells/{name}/evaluation/metrics.json"}
    return job_of(rule, {"cell": name}, [output[rule]], [f"logs/{rule}/{name}.log"])


def board() -> Board:
    made = Board()
    made.plan(PLAN)
    return made


# --- the board -----------------------------------------------------------------------------------------


def test_cells_are_done_when_they_are_measured_and_wait_between_their_jobs() -> None:
    made = board()
    assert made.counts() == "3 cells: 3 waiting"
    made.start(1, job("train"))
    made.start(2, job("train", 1))
    assert made.counts() == "3 cells: 2 running, 1 waiting"
    assert made.finish(1) == []
    assert made.counts() == "3 cells: 1 running, 2 waiting"
    made.start(3, job("evaluate"))
    write_json(Path(f"results/cells/{NAME[:-1]}0/evaluation/metrics.json"), {"full": {"reward": 0.5}, "verdict": "ok"})
    assert made.finish(3) == [f"1/3  {NAME[:-1]}0  measured reward 0.500  ok"]
    made.fail(2, job("train", 1))
    assert made.counts() == "3 cells: 1 done, 1 waiting, 1 failed"
    made.start(4, job("train", 1))  # tried again
    assert made.counts() == "3 cells: 1 done, 1 running, 1 waiting"


def test_without_evaluation_a_cell_is_done_when_it_is_trained() -> None:
    made = Board()
    made.plan({"train": 1})
    made.start(1, job("train"))
    assert made.finish(1) == [f"1/1  {NAME[:-1]}0"]
    assert made.counts() == "1 cell: 1 done"


def test_without_cells_jobs_are_counted() -> None:
    made = Board()
    made.plan({"table": 2, "results": 1, "all": 1, "total": 4})
    made.start(1, Job("table", "sweep"))
    assert made.finish(1) == []
    made.start(2, Job("table", "other"))
    assert made.counts() == "1 of 3 jobs done, 1 running"


def test_a_failed_job_has_its_logs_message_and_path() -> None:
    log = Path(f"logs/train/{NAME[:-1]}0.log")
    write_text(log, f"1 cells, 0 already trained\nerror: disk full {STEERING}\n")
    head, path = board().fail(1, job("train"))
    assert head == f"error: train {NAME[:-1]}0: disk full \ufffd]0;title\ufffd\ufffd[2J\ufffd31m\ufffd"
    assert path == f"  log: {log}"


def test_a_log_without_a_message_is_shown_from_its_end() -> None:
    log = Path(f"logs/train/{NAME[:-1]}0.log")
    write_text(log, "".join(f"line {number} {STEERING}\n" for number in range(50)))
    lines = board().fail(1, job("train"))
    assert lines[0].endswith(": the job failed")
    assert [line.split()[1] for line in lines[2:]] == [str(number) for number in range(40, 50)]
    assert all(line.isprintable() for line in lines)
    log.unlink()
    assert board().fail(1, job("train"))[1:] == [f"  log: {log} (not there)"]


def test_running_cells_show_step_reward_and_time_left_within_the_width(tmp_path: Path) -> None:
    made = board()
    made.start(1, job("train"))
    made.start(2, job("evaluate", 1))
    assert made.display(80, 24).plain.splitlines() == [
        "training full_lr1e-5_s42  starts",
        "measuring full_lr1e-5_s42",
        "3 cells: 2 running, 1 waiting",
    ]
    directory = Path(f"results/cells/{NAME[:-1]}0")
    now = time.time()
    beat = {"token": "t", **identity(), "started": now, "beat": now}
    write_json(directory / "lease-1.json", beat | {"step": 40, "max_steps": 100, "reward": 0.5, "left": 187.0})
    LiveHistory(directory / "checkpoints/history.jsonl", history([0.1, 0.9]).to_dict("records")).append()
    assert made.display(80, 24).plain.splitlines()[0] == "training full_lr1e-5_s42  40/100  reward 0.500  3:07 left"
    assert "▁█  40/100" in made.display(120, 24).plain
    long = Job("train", f"lora-{'x' * 90}_s42-0123456789", (directory / "train",))
    made.start(3, long)
    line = made.display(80, 24).plain.splitlines()[2]
    assert len(line) <= 80
    assert "…" in line
    assert line.endswith("x_s42")
    assert len(made.display(80, 4).plain.splitlines()) == 3


def beating(number: int, **progress: float) -> None:
    """The heartbeat of a cell that trains now."""
    now = time.time()
    beat = {"token": "t", **identity(), "started": now, "beat": now}
    write_json(Path(f"results/cells/{job('train', number).subject}/lease-1.json"), beat | progress)


def test_the_time_left_of_the_run_is_said_on_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [job("train", number).subject for number in range(3)]
    made = board()
    made.outlook.rests = {name: Rest(100, 1.0) for name in names}
    made.start(1, job("train"))
    assert made.display(80, 24).plain.splitlines()[-1] == "3 cells: 1 running, 2 waiting"  # nothing tells yet
    # Twice as slow as was told: 200 s each for two that wait, 120 s for this one, one at a time.
    beating(0, step=40, max_steps=100, reward=0.5, speed=0.5, left=120.0)
    assert made.display(80, 24).plain.splitlines()[-1] == "3 cells: 1 running, 2 waiting; about 9 min left"
    made.start(2, job("train", 1))
    beating(1, step=10, max_steps=100, reward=0.5, speed=0.5, left=180.0)
    assert made.display(80, 24).plain.splitlines()[-1] == "3 cells: 2 running, 1 waiting; about 4 min left"
    assert made.display(30, 24).plain.splitlines()[-2:] == ["3 cells: 2 running, 1 waiting", "about 4 min left"]
    # Two at a time, though there is one for a moment between two jobs.
    made.finish(1)
    assert made.display(80, 24).plain.splitlines()[-1].endswith("; about 3 min left")
    later = time.monotonic() + 700
    monkeypatch.setattr("time.monotonic", lambda: later)
    assert made.display(80, 24).plain.splitlines()[-1].endswith("; about 6 min left")


def test_the_time_left_counts_the_measuring_of_cells() -> None:
    found = Outlook(measuring=[30.0, 20.0, 7000.0])  # the last one waited in a queue
    assert found.left({}, 1, 0, 4) == 80
    assert found.left({}, 2, 0, 4) == 40
    assert Outlook().left({}, 0, 3, 3) is None


def test_of_a_run_of_some_cells_those_that_wait_count_as_the_mean_of_the_study() -> None:
    found = Outlook(rests={"a": Rest(100, 1.0), "b": Rest(100, 1.0), "c": Rest(300, 1.0)}, begun={"a"})
    running = {"a": Progress(50, 100, 0.5, 1.0, 50.0)}
    assert found.left(running, 0, 2, 2) == 50 + 200
    assert found.left(running, 0, 1, 1) == 50


def test_a_line_for_a_log_says_what_goes_on_and_which_cell_takes_longest() -> None:
    made = board()
    made.outlook.rests = {job("train", number).subject: Rest(100, 1.0) for number in range(3)}
    for number in range(2):
        made.start(number, job("train", number))
        beating(number, step=40, max_steps=100, reward=0.5, speed=1.0, left=60.0 + number)
    assert made.report() == (
        f"3 cells: 2 running, 1 waiting; about 2 min left; last of those running: {NAME[:-1]}1  40/100  reward 0.500  "
        "1:01 left"
    )


def test_a_failed_job_names_its_cell_once() -> None:
    log = Path(f"logs/train/{NAME[:-1]}0.log")
    write_text(log, f"1 cell, 0 already trained\nerror: {NAME[:-1]}0: stopped by SIGTERM after step 3\n")
    assert board().fail(1, job("train"))[0] == f"error: train {NAME[:-1]}0: stopped by SIGTERM after step 3"


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("returned non-zero exit status 143.", "stopped by SIGTERM"),
        ("died with <Signals.SIGKILL: 9>.", "stopped by SIGKILL"),
        ("returned non-zero exit status 3.", "ended with exit status 3"),
        ("is another thing.", "the job failed"),
    ],
)
def test_a_job_that_left_no_message_says_how_it_ended(end: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = handler()
    base = {"wildcards": {"base": "tiny-0123456789"}, "output": [], "log": ["logs/evaluate/tiny-0123456789.log"]}
    made.emit(info(1, **base, rule_name="evaluate_base"))
    for log, its_end in (("logs/evaluate/other.log", "returned non-zero exit status 7."), (base["log"][0], end)):
        told = f"CalledProcessError in file \"evaluate.smk\", line 3:\nCommand '... > {log} 2>&1' {its_end}"
        made.emit(record(told, logging.ERROR, event=LogEvent.ERROR, exception="CalledProcessError"))
    failed = {"jobid": 1, "rule_name": "evaluate_base", "output": [], "log": base["log"], "rule_msg": None}
    made.emit(record("", logging.ERROR, event=LogEvent.JOB_ERROR, **failed))
    assert capsys.readouterr().err.splitlines()[0] == f"error: evaluate_base tiny-0123456789: {said}"


def test_a_dry_run_is_a_line_of_counts() -> None:
    first, second = board().summary()
    assert first == "Would run 7 jobs: 3 train, 3 evaluate, 1 table."
    assert "--verbose" in second


def test_what_is_ready_is_said_only_when_all_is_done_and_it_is_there() -> None:
    made = Board(ready=["results/RESULTS.md", "results/none.md"])
    write_text("results/RESULTS.md", "x")
    assert made.last() == []  # for example --unlock
    made.plan({"results": 1, "all": 1})
    assert made.last() == []
    made.start(1, Job("results"))
    made.finish(1)
    assert made.last() == ["Ready: results/RESULTS.md"]
    made.wrong = True
    assert made.last() == []
    assert Board(ready=["results/RESULTS.md"], nothing_to_do=True).last() == ["Ready: results/RESULTS.md"]


# --- the logger ----------------------------------------------------------------------------------------


class TestInterface(TestLogHandlerBase):
    """Snakemake's own tests of a logger."""

    __test__ = True

    def get_log_handler_cls(self) -> type[LogHandler]:
        return LogHandler

    def get_log_handler_settings(self) -> Any:
        return None


def handler(**settings: Any) -> LogHandler:
    common = MockOutputSettings()
    vars(common).update({"printshellcmds": False} | settings)
    return LogHandler(common, None)


def record(text: str | None, level: int = logging.INFO, path: str = "snakemake/dag.py", **extra: Any) -> Any:
    made = logging.LogRecord("snakemake", level, path, 1, text, (), None)
    vars(made).update(extra)
    return made


def info(number: int, rule: str = "train", **more: Any) -> Any:
    found = job(rule, number)
    fields = {"jobid": number, "rule_name": rule, "wildcards": {"cell": found.subject}}
    fields |= {"output": [str(path) for path in found.outputs], "log": [str(path) for path in found.logs]}
    return record("", event=LogEvent.JOB_INFO, **fields | more)


def test_snakemake_finds_the_logger_by_the_name_that_the_profile_gives(root: Path) -> None:
    import yaml

    (name,) = yaml.safe_load((root / "profiles/default/config.yaml").read_text())["logger"]
    assert LoggerPluginRegistry().get_plugin(name).log_handler is LogHandler


def test_the_logger_imports_nothing_of_the_library_before_the_snakefile_has(tmp_path: Path) -> None:
    code = """
import logging, sys
from snakemake_interface_logger_plugins.tests import MockOutputSettings
from snakemake_logger_plugin_rewardgrid import LogHandler

made = LogHandler(MockOutputSettings(), None)
made.emit(logging.LogRecord("x", logging.WARNING, "x", 1, "early", (), None))
assert not [name for name in sys.modules if name.split(".")[0] == "rewardgrid"]
import rewardgrid
made.emit(logging.LogRecord("x", logging.WARNING, "x", 1, "late", (), None))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == "warning: early\nwarning: late\n"


def test_snakemakes_own_lines_are_left_out_and_ours_and_unknown_ones_shown(capsys: pytest.CaptureFixture[str]) -> None:
    made = handler()
    for text in ("Building DAG of jobs...", "Select jobs to execute...", "Using shell: /bin/bash", "Elapsed time: 3"):
        made.emit(record(text))
    made.emit(record("Job 7 has been submitted", path="site-packages/snakemake_executor_plugin_slurm/__init__.py"))
    made.emit(record("", event=LogEvent.WORKFLOW_STARTED))
    made.emit(record("debugging", logging.DEBUG))
    assert capsys.readouterr().err == ""
    made.emit(record(f"Study: 3 cells {STEERING}", path="Snakefile", ready=["x"]))
    made.emit(record("Unlocked working directory."))
    made.emit(record("odd thing", logging.WARNING))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Study: 3 cells \ufffd]0;title")
    assert lines[1:] == ["Unlocked working directory.", "warning: odd thing"]
    assert made.board.ready == ["x"]


def test_a_refusal_is_its_message_without_the_place_in_the_snakefile(capsys: pytest.CaptureFixture[str]) -> None:
    made = handler()
    said = "1 problem in the configuration:\n  mine.yaml: titel: read 'x'; unknown key"
    where = '  File "/a b/Snakefile", line 35, in <module>'
    made.emit(record(f'WorkflowError in file "/a b/Snakefile", line 35:\n{said}\n{where}', logging.ERROR))
    made.emit(record(f"WorkflowError:\n{said}", logging.ERROR))
    made.emit(record('TypeError: x\n  File "a.py", line 3, in f\n    x()', logging.ERROR))
    made.close()
    own = 'TypeError: x\n  File "a.py", line 3, in f\n    x()\n'
    assert capsys.readouterr().err == f"{said}\n{said}\n{own}"


def test_elsewhere_than_on_a_terminal_events_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    made = handler()
    write_text(f"logs/train/{NAME[:-1]}1.log", f"error: broken {STEERING}\n")
    made.emit(record("Job stats: ...", event=LogEvent.RUN_INFO, stats=PLAN))
    made.emit(info(0, "evaluate"))
    made.emit(info(1))
    made.emit(record("", event=LogEvent.JOB_FINISHED, job_id=0))
    told = 'RuleException:\nCalledProcessError in file "train.smk", line 3:\nCommand ...'
    made.emit(record(told, logging.ERROR, event=LogEvent.ERROR, exception="RuleException"))
    error = vars(info(1)) | {"event": LogEvent.JOB_ERROR, "rule_msg": None}
    made.emit(
        record("", logging.ERROR, **{key: error[key] for key in ("event", "jobid", "rule_name", "output", "log")})
    )
    made.emit(record("WorkflowError:\nAt least one job did not complete", logging.ERROR, event=LogEvent.ERROR))
    made.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "3 cells: 3 waiting",
        f"1/3  {NAME[:-1]}0",
        f"error: train {NAME[:-1]}1: broken \ufffd]0;title\ufffd\ufffd[2J\ufffd31m\ufffd",
        f"  log: logs/train/{NAME[:-1]}1.log",
        "At least one job did not complete",
    ]


def test_elsewhere_a_line_comes_from_time_to_time_until_all_is_over(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snakemake_logger_plugin_rewardgrid.REPORT_SECONDS", 0.05)
    made = handler()
    made.emit(record("", path="Snakefile", rests={job("train").subject: Rest(100, 1.0)}))
    made.emit(record("", event=LogEvent.RUN_INFO, stats={"train": 1, "total": 1}))
    made.emit(info(0))
    beating(0, step=40, max_steps=100, reward=0.5, speed=1.0, left=60.0)
    time.sleep(0.5)
    made.close()
    lines = capsys.readouterr().err.splitlines()
    assert 3 < len(lines) < 20
    assert lines[-1].startswith("1 cell: 1 running; about 60 s left; last of those running: ")
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("settings", [{"dryrun": True}, {"quiet": {"all"}}, {"verbose": True}])
def test_no_line_comes_where_none_is_wanted(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snakemake_logger_plugin_rewardgrid.REPORT_SECONDS", 0.01)
    made = handler(**settings)
    made.emit(record("", event=LogEvent.RUN_INFO, stats={"train": 1, "total": 1}))
    capsys.readouterr()
    time.sleep(0.2)
    made.close()
    assert capsys.readouterr().err == ""


def test_a_dry_run_goes_to_standard_output_once(capsys: pytest.CaptureFixture[str]) -> None:
    made = handler(dryrun=True, stdout=True)
    for _ in range(2):
        made.emit(record("Job stats: ...", event=LogEvent.RUN_INFO, stats=PLAN))
        made.emit(info(1, input=["x" * 20_000]))
    made.close()
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines() == board().summary()


class Terminal(io.StringIO):
    """What a terminal has been sent."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_running_cells_are_shown_in_place_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    made = handler()
    made.emit(record("", event=LogEvent.RUN_INFO, stats={"train": 1, "total": 1}))
    made.emit(info(1))
    assert made.live is not None
    made.live.refresh()
    made.emit(record("", event=LogEvent.JOB_FINISHED, job_id=1))
    made.close()
    sent = terminal.getvalue()
    assert "training full_lr1e-5_s42  starts" in sent
    assert f"1/1  {NAME[:-1]}1" in sent
    assert sent.index("\x1b[?25l") < sent.index("\x1b[?25h") < sent.index("training")  # the cursor stays
    assert sent.endswith("\x1b[2K")  # nothing of the display is left


@pytest.mark.parametrize("settings", [{"verbose": True}, {"debug_dag": True}])
def test_verbose_gives_snakemakes_own_lines_without_escape_sequences_of_others(
    settings: dict[str, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    made = handler(**settings, nocolor=True)
    fields = {"rule_msg": None, "local": False, "is_checkpoint": False, "input": [STEERING], "benchmark": None}
    fields |= {"reason": "Missing output files", "priority": 0, "threads": 1, "resources": {}}
    made.emit(info(1, **fields))
    made.emit(record("Building DAG of jobs..."))
    text = capsys.readouterr().err
    assert "rule train:\n" in text
    assert "    reason: Missing output files\n" in text
    assert "Building DAG of jobs..." in text
    assert all(line.isprintable() for line in text.split("\n"))


def test_the_display_is_fit_for_a_terminal_whatever_a_job_is_called() -> None:
    made = board()
    made.start(1, Job("train", STEERING))
    with (console := Console(file=io.StringIO(), width=80)).capture() as capture:
        console.print(made.display(80, 24))
    assert all(line.isprintable() for line in capture.get().split("\n"))
