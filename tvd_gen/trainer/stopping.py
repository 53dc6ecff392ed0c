"""Signals that end a run at the end of a step, and random numbers that go on after a pause."""

import os
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy
import torch


class StopSignals:
    """Remembers the first signal; a second one acts at once, as if none were caught."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    @contextmanager
    def caught(self, signals: Sequence[signal.Signals]) -> Iterator[None]:
        """Catch them within; afterwards the handlers are what they were."""
        self.received = None
        if threading.current_thread() is not threading.main_thread():
            yield  # Python lets the main thread alone set handlers
            return
        # nohup, and a shell's &, have some ignored: that stays.
        heard = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._catch) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def random_numbers() -> dict[str, Any]:
    """The state of Python's, numpy's and torch's generators, as plain values and tensors."""
    legacy: Any = numpy.random.get_state()  # a tuple, by default
    name, key, *rest = legacy
    return {
        "python": random.getstate(),
        "numpy": (str(name), key.tolist(), *rest),
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_numbers(state: dict[str, Any]) -> None:
    """Put back what `random_numbers` gave."""
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def untouched_random_numbers() -> Iterator[None]:
    """Whatever is drawn within, Python, numpy and torch go on as if nothing had been."""
    state = random_numbers()
    try:
        yield
    finally:
        set_random_numbers(state)
