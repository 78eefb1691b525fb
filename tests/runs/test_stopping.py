"""Signals: when they act."""

import os
import signal

import pytest

from llm_entropy.runs.stopping import SIGNALS, StopBetweenBatches, Stopped, StopSignals


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_acts_at_once_where_no_batch_is_at_hand(signum: signal.Signals):
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignals(), pytest.raises(Stopped, match=signum.name) as caught:
        os.kill(os.getpid(), signum)
    assert caught.value.signum == signum
    assert not caught.value.at_once
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_waits_for_the_batch_at_hand(signum: signal.Signals):
    with StopSignals() as signals:
        signals.wait_for_batch(True)
        os.kill(os.getpid(), signum)
        with pytest.raises(Stopped):
            signals.check()


def test_a_batch_is_broken_off_where_a_signal_has_waited_too_long(monkeypatch: pytest.MonkeyPatch):
    with StopSignals() as signals:
        stopping = StopBetweenBatches(signals)
        signals.wait_for_batch(True)
        stopping.within_batch(0)
        os.kill(os.getpid(), signal.SIGTERM)
        stopping.within_batch(5)
        monkeypatch.setattr("llm_entropy.runs.stopping.PATIENCE_SECONDS", 0.0)
        with pytest.raises(Stopped, match="SIGTERM") as caught:
            stopping.within_batch(9)
        assert not caught.value.at_once, "the batches before it are kept"


def test_a_second_interrupt_does_not_wait():
    with StopSignals() as signals:
        signals.wait_for_batch(True)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped) as caught:
            os.kill(os.getpid(), signal.SIGINT)
        assert caught.value.at_once


def test_a_second_terminate_waits_as_the_first_one_does():
    with StopSignals() as signals:
        signals.wait_for_batch(True)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            signals.check()


def test_handlers_that_somebody_else_has_set_are_replaced():
    with StopSignals() as signals:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signals.install()
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGUSR1)


def test_nothing_that_handles_errors_takes_a_stop_for_one():
    assert not issubclass(Stopped, Exception)
