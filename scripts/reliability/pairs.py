"""Two processes of one run: a nan on one of them alone, and going on with another number."""

import os
from pathlib import Path

from torch import Tensor

from runs import CASES, Child, digest, ranks, write_case
from stops import wait_all
from tvd_gen import Seq2SeqObjectiveTrainer
from tvd_gen.checkpoints import Store

NAN, OTHER_RUN = 5, 4


def nan_on_the_second() -> None:
    """The loss of the second process is nan in the seventh step."""
    step = Seq2SeqObjectiveTrainer.compute_loss

    def broken(self: Seq2SeqObjectiveTrainer, *args: object, **kwargs: object) -> Tensor:
        loss: Tensor = step(self, *args, **kwargs)
        second = os.environ["RANK"] == "1" and self.state.global_step == 6
        return loss * float("nan") if second and self.is_in_train else loss

    Seq2SeqObjectiveTrainer.compute_loss = broken  # type: ignore[method-assign]  # in a child alone


def campaign(folder: Path) -> dict[str, int]:
    """1 for each that is as it should be. All stop before the update and say the second's rows; the
    run goes on to the same bits; with one process it is refused; a step may be left out."""
    name = next(name for name in CASES if "accumulation" in name)
    config = write_case(folder, name)
    both(ranks(config, folder / "whole"), [0, 0])
    run = folder / "run"
    children = ranks(config, run)
    for child in children:
        child.prepare = nan_on_the_second
    found = {"stopped": both(children, [NAN, NAN])}
    text = children[0].output
    found["named"] = "step 7: the loss is nan (rows:" in text and "Traceback" not in text
    found["kept"] = Store(run / "checkpoints").steps() == [2, 4, 6]
    found["one refused"] = Child(config, run).start().wait() == OTHER_RUN
    found["exact"] = both(ranks(config, run), [0, 0]) and digest(run) == digest(folder / "whole")
    children = ranks(config, folder / "skips")
    for child in children:
        child.prepare, child.overrides = nan_on_the_second, ["training.max_skipped_steps=1"]
    found["left out"] = both(children, [0, 0])
    log = (folder / "skips" / "log.jsonl").read_text()
    found["counted"] = '"skipped_steps": 1' in log
    return {key: int(value) for key, value in found.items()}


def both(children: list[Child], codes: list[int]) -> bool:
    """Whether all end with these codes."""
    ended = wait_all([child.start() for child in children])
    if ended != codes:
        print(f"{children[0].run}: {ended}, not {codes}: {children[0].output[-500:]}")
    return ended == codes
