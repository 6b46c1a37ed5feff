"""Snakemake's lines as rewardgrid shows them: progress of cells, what went wrong, and last what is ready.

Snakemake finds loggers by the name of their package; ``profiles/default`` asks for this one. On a terminal the running
cells are shown in place; elsewhere there is a line for each event, and one every minute on what goes on. ``--verbose``
gives Snakemake's own lines, and its log file below ``.snakemake/log`` always has them.

Snakemake loads this before it reads the Snakefile, which decides where the library comes from: the checkout that it
lies in, whatever else is installed. So nothing of the library is imported here before the Snakefile has done so.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import yaml
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase, OutputSettingsLoggerInterface

if TYPE_CHECKING:
    from rich.live import Live

    from rewardgrid.cli.board import Board

REFRESH_SECONDS = 2.0
REPORT_SECONDS = 60.0
"""Between lines on what goes on, where it cannot be shown in place."""
NOISE = (
    "Assuming unrestricted shared filesystem",
    "Building DAG of jobs",
    "Complete log(s):",
    "Conda environments: ignored",
    "Elapsed time:",
    "Exiting because a job execution failed",
    "Reasons:",
    "Rules with provenance triggered jobs:",
    "Select jobs to execute",
    "Shutting down, this might take some time",
    "Singularity containers: ignored",
    "Some jobs were triggered by provenance information",
    "This was a dry-run",
    "Using profile",
    "Using shell:",
    "Using workflow specific profile",
    "Waiting for more resources",
)
"""How lines of Snakemake begin that say nothing of the study."""
PLACES = re.compile(r'^WorkflowError(?: in file "[^"\n]*", line \d+)?:\n|(?:\n  File "[^"\n]*", line \d+, in \S+)+\s*$')
"""What Snakemake says of where a refusal was raised, which is in the Snakefile and never the user's to mend."""
TOLD_BY_ITS_LOG = "CalledProcessError in file"
"""In what Snakemake says of a shell command that failed, besides its job's error."""


@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):
    """There are none. But they are made before Snakemake opens the files after ``--configfile``, of which it says
    nothing but a traceback where one cannot be read, and it takes a target there for one."""

    def __post_init__(self) -> None:
        for word in _after_configfile(sys.argv):
            if wrong := _wrong_with(Path(word)):
                sys.exit(f"error: --configfile: read {word!r}; {wrong}")


def _wrong_with(path: Path) -> str:
    """What is wrong with a file that is said to be a configuration; nothing if all is well."""
    try:
        if path.is_fifo():
            return "no ordinary file"
        content = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return "no such file; all words after --configfile are files, so a target stands before it"
    except (OSError, UnicodeDecodeError) as error:
        return f"cannot be read as text ({error})"
    except yaml.MarkedYAMLError as error:
        return f"line {error.problem_mark.line + 1 if error.problem_mark else '?'} is no YAML: {error.problem}"
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return "no YAML: " + " ".join(str(error).split())[:200]
    return "" if isinstance(content, dict) else "write a mapping of keys to values"


def _after_configfile(words: Sequence[str]) -> Iterator[str]:
    """The words of a command that Snakemake takes for configuration files."""
    taken = False
    for word in words:
        option, given, value = word.partition("=")
        if word.startswith("-"):
            taken = option in ("--configfile", "--configfiles")
            if taken and given:
                yield value
        elif taken:
            yield word


class LogHandler(LogHandlerBase):
    """Hears every record of Snakemake's logger, in a thread of its own."""

    def __post_init__(self) -> None:
        from rich.console import Console

        settings = self.common_settings
        stream = sys.stdout if settings.stdout else sys.stderr
        self.heard: list[logging.LogRecord] = []
        self.begun: Board | None = None
        self.console = Console(
            file=stream, highlight=False, emoji=False, markup=False, no_color=settings.nocolor or None, soft_wrap=True
        )
        self.live: Live | None = None
        self.reporting: threading.Thread | None = None
        self.over = threading.Event()
        self.own = _own_lines(settings, stream) if settings.verbose or settings.debug_dag else None

    def emit(self, record: logging.LogRecord) -> None:
        """Say what is to be said of a record."""
        self.heard.append(record)
        if "rewardgrid" in sys.modules:
            self._catch_up()

    def close(self) -> None:
        """All is over: take the display away, and say what is ready."""
        if not self.over.is_set():
            self.over.set()
            self._catch_up()
            if self.live:
                self.live.stop()
            if not self.own and not self.common_settings.dryrun:
                self._say(self.board.last(), "bold green")
        super().close()

    @property
    def board(self) -> Board:
        """The board, made when it is first wanted."""
        if self.begun is None:
            from rewardgrid.cli.board import Board

            self.begun = Board()
        return self.begun

    def _catch_up(self) -> None:
        """Hear what has been kept until the library could be imported, and what has come since."""
        while self.heard:
            record = self.heard.pop(0)
            try:
                if self.own:
                    self.own.handle(record)
                else:
                    self._hear(record, getattr(record, "event", None))
            except Exception:  # as logging has it: what cannot be shown stops nothing
                self.handleError(record)

    def _hear(self, record: logging.LogRecord, event: str | None) -> None:
        from rewardgrid.cli.board import job_of

        said = vars(record)
        dry = self.common_settings.dryrun
        if event == LogEvent.RUN_INFO:
            first = not self.board.planned
            self.board.plan(said.get("stats") or {})
            if dry:
                self._say(self.board.summary() if first else [])
            else:
                self._say([self.board.counts()] if not self._show() else [])
                self._report()
        elif event == LogEvent.JOB_INFO and not dry:
            job = job_of(said["rule_name"], said["wildcards"] or {}, said["output"], said["log"])
            self.board.start(said["jobid"], job)
        elif event == LogEvent.JOB_FINISHED:
            self._say(self.board.finish(said["job_id"]))
        elif event == LogEvent.JOB_ERROR:
            begun = self.board.running.get(said["jobid"])
            job = begun or job_of(said["rule_name"], {}, said["output"], said["log"])
            self._say(self.board.fail(said["jobid"], job, said.get("rule_msg") or ""), "red")
        elif event == LogEvent.SHELLCMD:  # passed on only if asked for
            self._say([said.get("cmd") or said.get("shellcmd") or ""], "dim")
        elif event in (None, LogEvent.ERROR, LogEvent.GROUP_ERROR):
            if TOLD_BY_ITS_LOG in record.getMessage():
                self.board.endings.append(record.getMessage())
            self._tell(record, record.getMessage())
        self.board.ready = said.get("ready", self.board.ready)
        self.board.outlook.rests = said.get("rests", self.board.outlook.rests)

    def _tell(self, record: logging.LogRecord, text: str) -> None:
        self.board.nothing_to_do |= text.startswith("Nothing to be done")
        if record.levelno < logging.INFO or text.startswith(NOISE) or TOLD_BY_ITS_LOG in text or not text.strip():
            return
        if record.levelno >= logging.ERROR:
            self.board.wrong = True
            self._say([PLACES.sub("", text).strip()], "red")
        elif record.levelno >= logging.WARNING:
            self._say([f"warning: {text.strip()}"], "yellow")
        elif "snakemake_executor_plugin" not in record.pathname:
            self._say([text.strip()])

    def _say(self, lines: list[str], style: str = "") -> None:
        from rich.text import Text

        from rewardgrid.study.text import printable_lines

        for line in lines:
            self.console.print(Text(printable_lines(line), style=style))

    def _show(self) -> bool:
        """Begin to show what goes on, where that can be done in place."""
        from rich.live import Live

        console = self.console
        if self.live or not console.is_terminal or console.is_dumb_terminal or self.common_settings.quiet:
            return self.live is not None
        self.live = Live(
            get_renderable=lambda: self.board.display(console.width, console.height),
            console=console,
            refresh_per_second=1 / REFRESH_SECONDS,
            transient=True,
        )
        self.live.start()
        console.show_cursor(True)  # a Snakemake that is killed leaves the terminal as it was
        return True

    def _report(self) -> None:
        """Begin to say from time to time what goes on, where it is not shown in place."""
        if not self.live and not self.reporting and not self.common_settings.quiet:
            self.reporting = threading.Thread(target=self._go_on_reporting, daemon=True)
            self.reporting.start()

    def _go_on_reporting(self) -> None:
        while not self.over.wait(REPORT_SECONDS):
            self.acquire()
            try:
                self._say([self.board.report()])
            except Exception:  # as above
                self.handleError(logging.makeLogRecord({}))
            finally:
                self.release()

    @property
    def writes_to_stream(self) -> bool:
        """In place of Snakemake's own lines."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """No."""
        return False

    @property
    def has_filter(self) -> bool:
        """No: ``--quiet`` and ``--printshellcmds`` mean what they mean elsewhere."""
        return False

    @property
    def has_formatter(self) -> bool:
        """Yes."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """No."""
        return False


def _own_lines(settings: OutputSettingsLoggerInterface, stream: TextIO) -> logging.Handler:
    """Snakemake's own handler; it quotes logs, which may hold anything."""
    from snakemake.logging import ColorizingTextHandler, DefaultFormatter

    class Printable(DefaultFormatter):
        def format(self, record: logging.LogRecord) -> str:
            from rewardgrid.study.text import printable_lines

            return printable_lines(super().format(record) or "", most=10**6)

    formatter = Printable(settings.quiet, settings.show_failed_logs)
    return ColorizingTextHandler(nocolor=settings.nocolor, stream=stream, formatter=formatter)
