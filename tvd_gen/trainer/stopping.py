"""Signals that end a run at the end of a step, and random numbers that a pause leaves alone."""

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
        before = {number: signal.signal(number, self._catch) for number in signals}
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


@contextmanager
def untouched_random_numbers() -> Iterator[None]:
    """Whatever is drawn within, Python, numpy and torch go on as if nothing had been."""
    python, arrays, cpu = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    cuda: Any = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
