"""Which of several processes this one is."""

import os


def is_first_process() -> bool:
    """Whether this is the process that speaks and writes, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"
