"""SIGTERM at random times: to a run's one process, and to one of its two."""

import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from runs import CASES, Child, digest, finish, ranks, write_case

STOPPED, BEFORE_TRAINING, WITH_THE_OTHER = 143, -signal.SIGTERM, -signal.SIGKILL
LIMIT = 60.0


def campaign(
    folder: Path, times: int, two: bool, seed: int = 0, say: Callable[[str], None] = print
) -> dict[str, int]:
    """So many runs, each stopped once, then taken to the end and compared."""
    draw, counts = random.Random(seed), dict.fromkeys(("runs", "saved", "exact"), 0)
    names = [name for name in CASES if not (two and "stream" in name)]  # a stream has one reader
    start = ranks if two else lambda config, run: [Child(config, run)]
    expected: dict[str, tuple[Path, str, float]] = {}
    for name in names:
        config = write_case(folder / name.replace(" ", "-"), name)
        children = [child.start() for child in start(config, config.parent / "whole")]
        until_training(children)
        began = time.monotonic()
        codes = wait_all(children)
        assert codes == [0] * len(codes), codes
        seconds = time.monotonic() - began
        expected[name] = config, digest(config.parent / "whole"), seconds
    for turn in range(times):
        name = names[turn % len(names)]
        config, right, seconds = expected[name]
        run = config.parent / f"run-{turn}"
        children = [child.start() for child in start(config, run)]
        until_training(children)
        time.sleep(draw.uniform(0.0, 0.9) * seconds)
        draw.choice(children).send(signal.SIGTERM)
        codes = wait_all(children)
        counts["runs"] += 1
        counts["saved"] += STOPPED in codes
        if not {*codes} <= {0, STOPPED, BEFORE_TRAINING, WITH_THE_OTHER}:
            say(f"EXIT CODES {codes} {run}")
            continue
        if two:
            codes = wait_all([child.start() for child in ranks(config, run)])
        else:
            finish(config, run)
        if digest(run) == right:
            counts["exact"] += 1
            shutil.rmtree(run)
        else:
            say(f"OTHER BITS {run}")
    return counts


def until_training(children: Sequence[Child]) -> None:
    """Until the trainer is made: what comes before ends at once, and has nothing to lose."""
    run = children[0].run
    while not (run / "checkpoints").exists() and all(child.poll() is None for child in children):
        time.sleep(0.0005)


def wait_all(children: Sequence[Child]) -> list[int]:
    """The exit codes; as torchrun does, the others are ended where one fails."""
    codes: dict[int, int] = {}
    end = time.monotonic() + LIMIT
    while len(codes) < len(children):
        for i, child in enumerate(children):
            if i not in codes and (code := child.poll()) is not None:
                codes[i] = code
        if time.monotonic() > end:
            raise TimeoutError(f"{children[0].run}: hangs")
        if any(code < 0 for code in codes.values()):
            for i, child in enumerate(children):
                if i not in codes:
                    child.send(signal.SIGKILL)
        time.sleep(0.002)
    return [codes[i] for i in range(len(children))]
