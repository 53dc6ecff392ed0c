"""Two processes on the same global batch are one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from two_ranks import CASES, result

PROGRAM = str(Path(__file__).parent / "two_ranks.py")


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _torchrun():
    # Not port 0: the ranks would wait on different stores for ever.
    where = ["--master_addr=127.0.0.1", f"--master_port={_free_port()}"]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *where]


def test_two_ranks_equal_one(tmp_path):
    """Targets weighed by rank, rows that fill up the last batch counted twice, or a quantile of
    one rank's sequences would differ. One launch for all cases: it takes most of the time."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*_torchrun(), PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=150,
        env=one_thread,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    for case, two in zip(CASES, results, strict=True):
        one = result(case, tmp_path / "one", 1)
        assert (one["ranks"], two["ranks"]) == (1, 2)
        for left, right in zip(one["steps"], two["steps"], strict=True):
            assert left == pytest.approx(right, rel=1e-5), case
        assert one["eval"] == pytest.approx(two["eval"], rel=1e-5), case
