"""Malformed configs and data files: the suite's own property tests, many times over."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The examples of one run of the suite, which TVD_FUZZ multiplies.
CONFIGS = ("tests/test_config.py", "mutated or damaged or any_text or any_override", 1200)
DATA = ("tests/test_data_readers.py", "mutated", 800)


def campaign(kind: tuple[str, str, int], examples: int) -> dict[str, int | str]:
    """About so many examples, counted by hypothesis; 0 failures, or pytest's last lines."""
    file, chosen, each = kind
    times = max(1, -(-examples // each))
    environment = {**os.environ, "TVD_FUZZ": str(times)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", file, "-k", chosen]
    command += ["--hypothesis-show-statistics"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    ran = sum(map(int, re.findall(r"(\d+) passing, ", done.stdout)))
    failures = sum(map(int, re.findall(r"(\d+) failing, ", done.stdout)))
    found: dict[str, int | str] = {"examples": ran, "failures": failures}
    if done.returncode:
        found["output"] = done.stdout[-1500:]
        found["failures"] = failures or 1
    return found
