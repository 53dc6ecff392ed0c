"""Two processes on the same global batch are one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = str(Path(__file__).parent / "two_ranks.py")


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _torchrun():
    # Not port 0: the ranks would wait on different stores for ever.
    where = ["--master_addr=127.0.0.1", f"--master_port={_free_port()}"]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *where]


def _run(launcher, family, folder, *numbers):
    folder.mkdir()
    command = [*launcher, PROGRAM, family, str(folder), *map(str, numbers)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=one_thread)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(("rows", "accumulate"), [(8, 1), (4, 2)])
@pytest.mark.parametrize("family", ["gpt2", "bart"])
def test_two_ranks_equal_one(family, rows, accumulate, tmp_path):
    """Targets weighed by rank, or rows that fill up the last batch counted twice, would differ."""
    one = _run([sys.executable], family, tmp_path / "one", 16, 1)
    two = _run(_torchrun(), family, tmp_path / "two", rows, accumulate)
    assert (one["ranks"], two["ranks"]) == (1, 2)
    for left, right in zip(one["steps"], two["steps"], strict=True):
        assert left == pytest.approx(right, rel=1e-5)
    assert one["eval"] == pytest.approx(two["eval"], rel=1e-5)
