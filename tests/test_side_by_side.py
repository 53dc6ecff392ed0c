"""Runs side by side: all are done, none outlives its campaign, a death is told."""

import multiprocessing
import operator
import os
import time

import pytest

from side_by_side import ProcessDied, side_by_side


def test_each_is_done_once_by_no_more_processes_than_asked_for():
    done = dict(side_by_side(operator.neg, range(7), jobs=2))
    assert done == {item: -item for item in range(7)}
    assert not multiprocessing.active_children()
    assert not [*side_by_side(operator.neg, [], jobs=2)]


def test_a_campaign_that_is_stopped_leaves_no_process_behind():
    runs = side_by_side(time.sleep, [0, 600, 600, 600], jobs=2)
    next(runs)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    began = time.monotonic()
    runs.close()  # what a signal does, too: an exception at the yield or in the wait
    assert time.monotonic() - began < 60
    assert not any(worker.is_alive() for worker in workers)


def test_a_fault_is_raised_here_and_ends_the_others():
    with pytest.raises(ValueError, match="non-negative"):
        [*side_by_side(time.sleep, [-1, 600, 600], jobs=2)]
    assert not multiprocessing.active_children()


def test_a_process_that_dies_is_told_and_one_job_needs_none():
    with pytest.raises(ProcessDied, match="exit code 7; the same command goes on"):
        [*side_by_side(os._exit, [7], jobs=2)]
    assert [*side_by_side(lambda _: os.getpid(), "a", jobs=1)] == [("a", os.getpid())]
