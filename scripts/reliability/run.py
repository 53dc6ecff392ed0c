"""The reliability campaign, one command: kill it anywhere, fill its disk, spoil its files.

    python scripts/reliability/run.py            # the published figures; a quarter of an hour
    python scripts/reliability/run.py --quick    # a few of each, in two minutes; 1 if one fails
    python scripts/reliability/run.py --only kills controls

Every run is a real `tvd-gen train` in a process of its own, compared bit for bit (weights,
optimizer, log and evaluations but for times) with the run that nothing has stopped.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

# What a child needs is imported here once, and forked.
import batches
import corruption
import disks
import fuzz
import kills
import overhead
import pairs
import stops
import tvd_gen.run  # noqa: F401  # before the forks, once for all children

FULL = {"kills": 200, "stops": 40, "corruption": 500, "disks": 50, "configs": 10_000}
FULL |= {"data": 5_000, "controls": 20, "overhead": 9}
QUICK = {"kills": 10, "stops": 4, "corruption": 50, "disks": 3, "configs": 1_200, "data": 800}
QUICK |= {"controls": 6, "overhead": 3}
NAMES = ("kills", "controls", "stops", "two ranks", "corruption", "disks", "batches", "configs")
NAMES += ("pairs", "data", "overhead")


def measure(name: str, sizes: Mapping[str, int], folder: Path, seed: int) -> dict[str, Any]:
    """One part of the campaign: its counts, and `failed`."""
    if name == "kills":
        found: dict[str, Any] = kills.campaign(folder, sizes["kills"], seed)
        return found | {"failed": found["same"] < found["runs"]}
    if name == "controls":
        found = kills.controls(folder, sizes["controls"], seed)
        few = {"stock_saving": 0.0, "no_data_skip": 0.5, "no_random_state": 0.5}
        failed = any(wrong < max(1, few[name] * runs) for name, (wrong, runs) in found.items())
        return found | {"failed": failed}
    if name in ("stops", "two ranks"):
        found = stops.campaign(folder, sizes["stops"] // 2, name == "two ranks", seed)
        few = (
            found["runs"] >= 10 and found["saved"] < found["runs"] / 2
        )  # not of two: they may miss
        return found | {"failed": found["exact"] < found["runs"] or few}
    if name == "corruption":
        found = corruption.campaign(folder, sizes["corruption"], seed)
        return found | {"failed": found["found"] < found["cases"] or not found["exact"]}
    if name == "disks":
        if not disks.can_mount():
            return {"skipped": "needs root on Linux", "failed": False}
        found = disks.campaign(folder, sizes["disks"], seed)
        return found | {"failed": len({*found.values()}) > 1}
    if name == "batches":
        found = batches.campaign(folder)
        return found | {
            "failed": any(each["loss"] > 1e-5 or each["weight"] > 1e-5 for each in found.values())
        }
    if name == "pairs":
        found = pairs.campaign(folder)
        return found | {"failed": not all(found.values())}
    if name == "overhead":
        return overhead.campaign(folder, sizes["overhead"]) | {"failed": False}
    found = fuzz.campaign(fuzz.CONFIGS if name == "configs" else fuzz.DATA, sizes[name])
    return found | {"failed": bool(found["failures"])}


def main() -> None:
    """Print a line for each part; exit with 1 where one has failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    logging.disable()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, seed {given.seed}")
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.only:
            began = time.monotonic()
            folder = Path(scratch) / name.replace(" ", "-")
            results[name] = measure(name, QUICK if given.quick else FULL, folder, given.seed)
            seconds = time.monotonic() - began
            print(f"{name}: {results[name]} ({seconds:.0f} s)", flush=True)
            if given.json:
                given.json.write_text(json.dumps(results, indent=1))
    sys.exit(any(each["failed"] for each in results.values()))


if __name__ == "__main__":
    main()
