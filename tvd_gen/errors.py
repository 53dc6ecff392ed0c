"""The faults that a user can mend. The library raises them; the command line prints one and exits
with its code."""


class TvdGenError(Exception):
    """A user's fault, said in full by `str(error)`; `exit_code` is what the command line
    returns."""

    exit_code = 1


class ConfigError(TvdGenError):
    """A config, an option or a run folder is not what it should be."""

    exit_code = 2


class ModelError(ConfigError):
    """A model or tokenizer cannot be found, fetched or used for the task."""


class DataError(TvdGenError):
    """Rows that cannot be used."""

    exit_code = 3


class CheckpointError(TvdGenError):
    """A checkpoint is missing, broken or of another run."""

    exit_code = 4


class NonFiniteError(TvdGenError):
    """A loss, gradient or weight is nan or infinite."""

    exit_code = 5


class DiskError(TvdGenError):
    """The disk is full or cannot be written."""

    exit_code = 6


class Stopped(TvdGenError):
    """A signal ended the run, after it was saved; `exit_code` is the shell's for that signal."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message, exit_code)
        self.message, self.exit_code = message, exit_code

    def __str__(self) -> str:
        return self.message
