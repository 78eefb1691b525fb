"""What a run says: on the terminal, and, with times and more, in its `run.log`."""

from __future__ import annotations

import logging
import logging.handlers
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_entropy.errors import ReportedError, RunIncompleteError, add_note

LOGGERS = ("llm_entropy", "lightning", "lightning.pytorch", "lightning.fabric", "py.warnings")
"""Whose messages belong to a run. On the terminal are those of the first alone."""
FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
EXPECTED_WARNINGS = (
    r".*does not have many workers.*",
    r"Couldn't infer the batch indices.*",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"The `srun` command is available on your system but is not used",
)
"""What Lightning warns of although it is meant so: batches are quickly made and carry their own ids; what it does
itself that torch deprecates; and what a run checks better, that as many processes were started as were asked for."""


class RunLog:
    """Keeps messages until the run has a folder, and writes them there from then on."""

    def __init__(self, quiet: bool) -> None:
        self.terminal = logging.StreamHandler(sys.stderr)
        self.terminal.setLevel(logging.WARNING if quiet else logging.INFO)
        self.terminal.addFilter(_OnceIfWarning())
        self.handler = logging.handlers.MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
        self.handler.addFilter(_is_no_tip)
        self.handler.addFilter(_OnceIfWarning())

    def show_warnings_only(self) -> None:
        """Leave the rest to the log; for processes other than the first."""
        self.terminal.setLevel(logging.WARNING)

    def open(self, path: Path) -> None:
        """Write what was said so far, and all that follows, to a file."""
        target = _LogFile(path)
        target.setFormatter(logging.Formatter(FORMAT))
        self.handler.setTarget(target)
        self.handler.flushLevel = logging.NOTSET  # from now on every message goes through at once
        self.handler.flush()

    def keep(self, error: Exception) -> None:
        """Write down the traceback of an error; where it is a fault of the program, the error says where that lies."""
        logging.getLogger(LOGGERS[0]).debug("the run stopped: %s", type(error).__name__, exc_info=error)
        if isinstance(self.handler.target, _LogFile) and not isinstance(error, (ReportedError, RunIncompleteError)):
            add_note(error, f"the traceback is in {self.handler.target.path}; please report it with that file")

    def close(self) -> None:
        """Close the file, if there is one."""
        target = self.handler.target
        self.handler.close()
        if target is not None:
            target.close()


class _LogFile(logging.FileHandler):
    """A log that is left as it is when the disk is full: the run itself says so, once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.path = path

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, the name is logging's
        """Leave the message out."""


def _is_no_tip(record: logging.LogRecord) -> bool:
    """Leave out Lightning's recommendations of further products."""
    return "Tip: For seamless" not in record.getMessage()


class _OnceIfWarning(logging.Filter):
    """Lets a warning through once: what is said of one model need not be said of the next in the same words."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a message is written."""
        if record.levelno != logging.WARNING:
            return True
        message = record.getMessage()
        is_new = message not in self._seen
        self._seen.add(message)
        return is_new


@contextmanager
def run_log(*, quiet: bool) -> Iterator[RunLog]:
    """Show messages on the terminal and keep them for `run.log` as long as the context lasts.

    Args:
        quiet: Whether only warnings and errors are shown.
    """
    log = RunLog(quiet)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers = [log.handler]
        logger.propagate = False
        logger.setLevel(logging.INFO)
    loggers[0].addHandler(log.terminal)
    loggers[0].setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            for message in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield log
    except Exception as error:
        log.keep(error)
        raise
    finally:
        logging.captureWarnings(False)
        for logger, handlers, level, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        log.close()
