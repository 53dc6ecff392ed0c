"""What several processes of one run must do alike."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import Trainer

from tvd_gen.errors import CheckpointError, TvdGenError

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

T = TypeVar("T")


class RanksMixin(_Base):
    """Decisions that all processes take together, or they would wait for each other for ever."""

    def _agree(self, *mine: bool) -> list[bool]:
        """Which of these is true on any process."""
        if self.args.world_size == 1:
            return [*mine]
        flags = torch.tensor([float(each) for each in mine], device=self.args.device)
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        return [bool(each) for each in flags.tolist()]

    def _from_first(self, ask: Callable[[], T]) -> T:
        """What the first process finds, or raises, on all of them."""
        if self.args.world_size == 1:
            return ask()
        found: list[Any] = [None, None]
        if self.args.process_index == 0:
            try:
                found[0] = ask()
            except TvdGenError as error:
                found[1] = error
            except Exception as error:  # or the others would wait for ever
                found[1] = CheckpointError(f"{type(error).__name__}: {error}")
        broadcast_object_list(found)
        if found[1] is not None:
            raise found[1]
        value: T = found[0]
        return value

    def _from_all(self, mine: T) -> list[T]:
        """What each process says."""
        said: list[T] = gather_object([mine]) if self.args.world_size > 1 else [mine]
        return said
