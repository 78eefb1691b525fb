"""Stopping on a signal: after the batch at hand, or within it where it takes long. What was done is kept.

Lightning's prediction loop ignores SIGTERM, and on SIGUSR1 under SLURM it would write a checkpoint that a later run
loads over its weights. So the handlers are ours.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Optional

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PATIENCE_SECONDS = 10.0
"""How long a signal waits for the batch at hand; SLURM kills 30 seconds after it asks."""


class Stopped(BaseException):
    """The process was asked to stop. No error: nothing that handles errors should take it for one."""

    def __init__(self, signum: int, *, at_once: bool = False) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.at_once = at_once
        """Whether it was asked twice, and not even what is in memory is to be written."""


class StopSignals:
    """As long as it lasts, SIGTERM, SIGINT and SIGUSR1 raise `Stopped`: at once, or between two batches of a model.

    A second SIGINT raises it at once in any case. Outside of the main thread, where no handler can be set, it does
    nothing.
    """

    def __init__(self) -> None:
        self.received: Optional[int] = None
        self._since = 0.0
        self._waits_for_batch = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}
            self.install()
        return self

    def __exit__(self, kind: Optional[type], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def install(self) -> None:
        """Set the handlers, also over those that somebody else has set in between."""
        if self._before:
            for signum in SIGNALS:
                signal.signal(signum, self._handle)

    def wait_for_batch(self, waits: bool) -> None:
        """Say whether a signal is to wait for `check`."""
        self._waits_for_batch = waits

    def check(self, patience: float = 0.0) -> None:
        """Raise `Stopped` if a signal has come, at least `patience` seconds ago."""
        if self.received is not None and time.monotonic() - self._since >= patience:
            raise Stopped(self.received)

    def _handle(self, signum: int, frame: Optional[FrameType]) -> None:
        again = signum == signal.SIGINT and self.received is not None
        if self.received is None:
            self.received, self._since = signum, time.monotonic()
        if again or not self._waits_for_batch:
            raise Stopped(self.received, at_once=again)


class StopBetweenBatches(L.Callback):
    """Lets a signal wait until the batch at hand is done; the last of a Trainer's callbacks, so that it is kept too.

    A batch that takes more than `PATIENCE_SECONDS` longer is broken off, and computed anew when the run is resumed.
    Processes that Lightning has started stop as well: SIGTERM and SIGUSR1 are passed on to them, SIGINT comes to them
    from the terminal, and when the process that started them has died they stop by themselves.
    """

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals
        self._parent: Optional[int] = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals back from Lightning."""
        if is_child(trainer):
            self._parent = os.getppid()
        self._signals.wait_for_batch(True)
        self._signals.install()

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop here, if there is a reason to."""
        if self._parent is not None and os.getppid() != self._parent:
            raise Stopped(signal.SIGTERM)
        self._signals.check()

    def within_batch(self, num_tokens: int) -> None:
        """Break the batch off if a signal has waited too long; one of `EntropyModule.listeners`.

        Args:
            num_tokens: Not used.
        """
        self._signals.check(PATIENCE_SECONDS)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on signals act at once."""
        self._signals.wait_for_batch(False)
        self._signals.check()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """From here on signals act at once."""
        self._signals.wait_for_batch(False)


def is_child(trainer: L.Trainer) -> bool:
    """Whether Lightning started this process as a copy of the one that the user started."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and trainer.local_rank > 0


def children(trainer: L.Trainer) -> list[Any]:
    """Return the processes that Lightning has started from this one."""
    return list(getattr(trainer.strategy.launcher, "procs", ()))


def pass_on(signum: int, processes: list[Any]) -> None:
    """Send a signal on to processes that Lightning has started; what the terminal sends to all is not sent twice."""
    for process in processes:
        if signum != signal.SIGINT:
            process.send_signal(signal.SIGTERM)  # which skips those that have ended
