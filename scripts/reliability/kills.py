"""Runs that are killed by SIGKILL at random moments, half of the time within a save."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from runs import CASES, Child, digest, finish, write_case
from tvd_gen.checkpoints import Store
from tvd_gen.trainer import ExactMixin


def campaign(folder: Path, kills: int, seed: int = 0, say: Callable[[str], None] = print) -> dict:
    """Until so many kills: 1 to 4 of them in a run, then on to the end, then compare."""
    counts = dict.fromkeys(("kills", "in save", "runs", "lost", "same"), 0)
    draw = random.Random(seed)
    expected: dict[str, tuple[Path, str, float]] = {}
    for name in CASES:
        config = write_case(folder / name.replace(" ", "-"), name)
        started = time.monotonic()
        finish(config, config.parent / "whole")
        seconds = time.monotonic() - started
        expected[name] = config, digest(config.parent / "whole"), seconds
        say(f"{name}: {seconds:.1f} s, {expected[name][1][:12]}")
    while counts["kills"] < kills:
        name = draw.choice(list(CASES))
        config, right, seconds = expected[name]
        run = config.parent / f"run-{counts['runs']}"
        counts["runs"] += 1
        for _ in range(draw.randint(1, 4)):
            child = Child(config, run).start()
            in_save = kill(child, draw, seconds)
            counts["kills"] += in_save is not None
            counts["in save"] += bool(in_save)
        try:
            finish(config, run)
            same = digest(run) == right
        except RuntimeError as error:
            say(f"LOST {error}")
            counts["lost"] += 1
            continue
        counts["same"] += same
        if same:
            shutil.rmtree(run)
        else:
            say(f"OTHER BITS {run}")
        if counts["runs"] % 20 == 0:
            say(str(counts))
    return counts


def kill(
    child: Child, draw: random.Random, seconds: float, always_in_save: bool = False
) -> bool | None:
    """Kill at a random time, or at a random moment of a save; whether it was within one, None where
    the child was done before."""
    wait = draw.uniform(0, seconds)
    aimed = always_in_save or draw.random() < 0.5
    end = time.monotonic() + wait
    while time.monotonic() < end or (aimed and not child.saving):
        time.sleep(0.0005)
        if time.monotonic() > end + 3:
            break
    if aimed:
        time.sleep(draw.uniform(0, 0.03))
    if not child.send(signal.SIGKILL):
        return None
    child.wait()
    return child.saving


# Negative controls: what must be found -----------------------------------------------------------


def stock_saving() -> None:
    """transformers' own way to save and to find the newest checkpoint."""

    def find(self: Any, asked: Any) -> str | None:
        return get_last_checkpoint(self.args.output_dir) if asked else None

    def save(self: Any, model: Any, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        torch.save(self.progress(), folder / self._progress_name)

    def steps(self: Any) -> list[int]:
        folders = self.root.glob("checkpoint-*") if self.root.is_dir() else ()
        return sorted(int(path.name.split("-")[1]) for path in folders)

    ExactMixin._save_checkpoint = save  # type: ignore[method-assign]  # in a child alone
    ExactMixin._find = find  # type: ignore[method-assign]  # in a child alone
    Store.steps = steps  # type: ignore[method-assign]  # in a child alone


def no_data_skip() -> None:
    """A resumed run reads its data from the start of the epoch."""
    transformers.trainer.skip_first_batches = lambda loader, count: loader


def no_random_state() -> None:
    """A resumed run draws other random numbers."""
    Trainer._load_rng_state = lambda self, checkpoint: None  # type: ignore[method-assign]  # in a child alone


def controls(folder: Path, kills: int, seed: int = 0) -> dict[str, tuple[int, int]]:
    """Each with the thing switched off: how many runs end lost or with other bits, of how many."""
    found = {}
    for prepare in (stock_saving, no_data_skip, no_random_state):
        draw, wrong, done = random.Random(seed), 0, 0
        name = next(iter(CASES))
        config = write_case(folder / prepare.__name__, name)
        started = time.monotonic()
        finish(config, config.parent / "whole")
        seconds = time.monotonic() - started
        right = digest(config.parent / "whole")
        for done in range(1, kills + 1):
            run = config.parent / f"run-{done}"
            child = Child(config, run, prepare).start()
            while child.poll() is None and not [*(run / "checkpoints").glob("[sc]*-*")]:
                time.sleep(0.0005)
            kill(child, draw, seconds / 4, always_in_save=prepare is stock_saving)
            try:
                finish(config, run, prepare=prepare)
                wrong += _digest(run, prepare) != right
            except RuntimeError:
                wrong += 1
        found[prepare.__name__] = wrong, done
    return found


def _digest(run: Path, prepare: Callable[[], None]) -> str:
    if prepare is stock_saving:
        last = max((run / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
        last.rename(run / "checkpoints" / f"step-{int(last.name[11:]):06d}")
    return digest(run)
