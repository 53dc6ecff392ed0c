"""The run folder: where the stages meet, and how its files are written."""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvd_gen.errors import ConfigError, DiskError
from tvd_gen.strict_json import to_json


@dataclass(frozen=True)
class RunFolder:
    """runs/NAME/: config.yaml, data.json, log.jsonl, checkpoints/, model/; then predictions.jsonl,
    metrics.json."""

    path: Path

    config = property(lambda self: self.path / "config.yaml")
    data = property(lambda self: self.path / "data.json")
    log = property(lambda self: self.path / "log.jsonl")
    checkpoints = property(lambda self: self.path / "checkpoints")
    model = property(lambda self: self.path / "model")
    predictions = property(lambda self: self.path / "predictions.jsonl")
    metrics = property(lambda self: self.path / "metrics.json")
    evaluation = property(lambda self: self.path / "evaluation.json")
    lock = property(lambda self: self.path / ".lock")

    def discard(self) -> None:
        """Remove what a run in which no step was made has written, and the folder if nothing else
        is in it: the next try must find it free."""
        if not self.path.is_dir():
            return
        for file in (self.config, self.data, self.log, self.lock):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.path):
            with suppress(OSError):  # it holds something else
                folder.rmdir()

    def check_trained(self) -> None:
        """Raise ConfigError where there is no finished model."""
        if not self.path.is_dir():
            raise ConfigError(f"{self.path}: no such run folder; tvd-gen train makes one")
        for part in (self.config, self.model):
            if not part.exists():
                raise ConfigError(
                    f"{self.path}: has no {part.name}: the training is not finished; the same "
                    "tvd-gen train command goes on with it"
                )


def write_json(path: Path, value: Any) -> None:
    """A readable, strict JSON file, whole or not at all."""
    write_text(path, to_json(value, indent=2) + "\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """A JSON-lines file, whole or not at all."""
    write_text(path, "".join(f"{to_json(row)}\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """The file by one rename, so that a reader or a kill never finds half of it."""
    staged = path.with_name(f".{path.name}.part")
    with disk_faults(path):
        staged.write_text(text, encoding="utf-8", newline="\n")
        staged.replace(path)


_UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EEXIST, errno.ELOOP, errno.EIO),
)


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """A full or read-only disk as a DiskError that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno in _UNWRITABLE:
            raise DiskError(f"{path}: cannot be written: {error.strerror}") from error
        raise
