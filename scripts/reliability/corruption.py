"""Every file of a real checkpoint missing, empty, cut and with flipped bits: none is loaded."""

import random
import signal
import time
from pathlib import Path

from runs import CASES, Child, digest, finish, write_case
from tvd_gen.checkpoints import Store
from tvd_gen.errors import CheckpointError


def campaign(folder: Path, cases: int, seed: int = 0) -> dict[str, int]:
    """So many faults in the newest checkpoint of a killed run, an older one standing by."""
    draw, name = random.Random(seed), next(iter(CASES))
    config = write_case(folder, name)
    finish(config, folder / "whole")
    run = folder / "run"
    child = Child(config, run).start()
    store = Store(run / "checkpoints")
    while len(store.steps()) < 3:
        time.sleep(0.001)
    child.send(signal.SIGKILL)
    child.wait()
    store.clean()
    older, newest = store.steps()[-2:]
    files = sorted(path for path in store.path(newest).rglob("*") if path.is_file())
    counts = {"files": len(files), "cases": 0, "found": 0, "loaded in silence": 0, "exact": 0}
    for case in range(cases):
        file = files[case % len(files)]
        content = file.read_bytes()
        kind = spoil(file, content, draw)
        said: list[str] = []
        try:
            found = store.newest(said.append)
            passed = found is not None and found[0] == store.path(older)
            named = any(f"step-{newest:06d}" in line for line in said)
        except CheckpointError:
            passed = named = False
        counts["cases"] += 1
        counts["found"] += passed and named
        counts["loaded in silence"] += not passed
        if not (passed and named):
            print(f"NOT FOUND {file.name} {kind}")
        if case == cases - 1:  # one of them taken to its end, by the command
            finish(config, run)
            counts["exact"] = int(digest(run) == digest(folder / "whole"))
        else:
            file.write_bytes(content)
    return counts


def spoil(file: Path, content: bytes, draw: random.Random) -> str:
    """One fault of the file."""
    kind = draw.choice(["missing", "empty", "cut", "flip", "flip", "flip", "swap"])
    if kind == "missing":
        file.unlink()
        return kind
    place = draw.randrange(len(content))
    flipped = bytes([content[place] ^ (1 << draw.randrange(8))])
    other = bytes([content[place] ^ draw.randrange(1, 256)])
    new = {
        "empty": b"",
        "cut": content[:place],
        "flip": content[:place] + flipped + content[place + 1 :],
        "swap": content[:place] + other + content[place + 1 :],
    }
    file.write_bytes(new[kind])
    return f"{kind} at {place}"
