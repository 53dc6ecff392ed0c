"""Disks that fill up at random places: file systems in memory, of random sizes (Linux, as root)."""

import random
import shutil
import subprocess
import tempfile
from pathlib import Path

from runs import CASES, Child, digest, finish, write_case
from tvd_gen.checkpoints import Store

DISK_FULL = 6


def can_mount() -> bool:
    """Whether small file systems can be made here: tried."""
    if not shutil.which("mount"):
        return False
    with tempfile.TemporaryDirectory() as place:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place]
        made = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        if made:
            subprocess.run(["umount", place], check=True)
    return made


def campaign(folder: Path, disks: int, seed: int = 0) -> dict[str, int]:
    """So many disks on which a run stops; then they are enlarged, and the run goes on."""
    draw, name = random.Random(seed), next(iter(CASES))
    config = write_case(folder, name)
    finish(config, folder / "whole")
    right = digest(folder / "whole")
    total = sum(path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file())
    counts = dict.fromkeys(("disks", "full", "said", "last good kept", "exact"), 0)
    turn = 0
    while counts["disks"] < disks:
        turn += 1
        place = folder / f"disk-{turn}"
        place.mkdir()
        size = draw.randrange(total // 10, total)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        subprocess.run(mount, check=True)
        try:
            run = place / "run"
            child = Child(config, run, out=folder / f"disk-{turn}.out").start()
            code = child.wait()
            if code == 0:
                continue  # it did fit
            counts["disks"] += 1
            counts["full"] += code == DISK_FULL
            text = child.output
            counts["said"] += "error: " in text and "Traceback" not in text
            store = Store(run / "checkpoints")
            left = [p for p in run.rglob(".*") if p.name.startswith((".staged", ".trash"))]
            whole = all(_whole(store, step) for step in store.steps())
            counts["last good kept"] += whole and not left
            if code != DISK_FULL or not whole or left:
                print(f"DISK {size}: {code} {text[-300:]} {left}")
            subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)
            finish(config, run, out=folder / f"disk-{turn}.out")
            counts["exact"] += digest(run) == right
        finally:
            subprocess.run(["umount", str(place)], check=True)
    return counts


def _whole(store: Store, step: int) -> bool:
    return bool(store.check(step))
