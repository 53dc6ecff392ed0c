"""Runs side by side, in processes that take one after the other."""

import gc
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from typing import Any, TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


class ProcessDied(Exception):
    """A process ended without an answer: killed, or out of memory."""


def side_by_side(
    do: Callable[[Item], Done], items: Iterable[Item], jobs: int
) -> Iterator[tuple[Item, Done]]:
    """Each item with do(item), as they are finished; one job works in this process.

    Raises what `do` raises, and ProcessDied. The others are then ended by SIGTERM, on which a
    training run saves what it has; so they are where this is closed, as contextlib.closing does
    whatever happens to its caller.
    """
    if jobs == 1:
        yield from ((item, do(item)) for item in items)
        return
    context, waiting = multiprocessing.get_context("spawn"), [*items]
    processes, asked = {}, {}
    try:
        for item in waiting[:jobs]:
            ours, theirs = context.Pipe()
            processes[ours] = context.Process(target=_work, args=(do, theirs))
            processes[ours].start()
            theirs.close()  # so that its death is the pipe's end
            ours.send(item)
            asked[ours] = item
        del waiting[:jobs]
        while asked:
            for pipe in connection.wait([*asked]):
                done = _received(pipe, processes[pipe])
                item = asked.pop(pipe)
                if waiting:
                    asked[pipe] = waiting.pop(0)
                    pipe.send(asked[pipe])
                yield item, done
    finally:
        for pipe, process in processes.items():
            process.terminate()
            pipe.close()
        for process in processes.values():
            process.join()


def _work(do: Callable[[Any], Any], pipe: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the SIGTERM that follows is heard
    gc.freeze()  # accelerate collects garbage after each training: 0.3 s with all modules in it
    try:
        while True:
            item = pipe.recv()
            try:
                answer = do(item), None
            except Exception as fault:
                fault.add_note(traceback.format_exc())
                answer = None, fault
            pipe.send(answer)
    except (EOFError, OSError):
        return  # nobody asks any more


def _received(pipe: Any, process: Any) -> Any:
    try:
        done, fault = pipe.recv()
    except (EOFError, OSError):
        process.join()
        told = f"a process ended with exit code {process.exitcode}; the same command goes on"
        raise ProcessDied(told) from None
    if fault:
        raise fault
    return done
