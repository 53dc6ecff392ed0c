"""The run folder: where the stages meet, and how its files are written."""

import errno
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvd_gen.errors import ConfigError, DiskError


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

    def check_new(self) -> None:
        """Raise ConfigError where a run would write over another one."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path}: is a file; choose another --output")
        if self.path.is_dir() and any(self.path.iterdir()):
            raise ConfigError(
                f"{self.path}: holds a run already; choose another --output, or remove the folder"
            )

    def check_trained(self) -> None:
        """Raise ConfigError where there is no finished model."""
        if not self.path.is_dir():
            raise ConfigError(f"{self.path}: no such run folder; tvd-gen train makes one")
        for part in (self.config, self.model):
            if not part.exists():
                raise ConfigError(f"{self.path}: has no {part.name}; was the training finished?")


def strict(value: Any) -> Any:
    """The value with null for what JSON has no number for (nan, inf)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: strict(each) for key, each in value.items()}
    return [strict(each) for each in value] if isinstance(value, (list, tuple)) else value


def json_line(value: Any) -> str:
    """One strict JSON text without a line break."""
    return json.dumps(strict(value), ensure_ascii=False, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """A readable, strict JSON file, whole or not at all."""
    write_text(
        path, json.dumps(strict(value), ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    )


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """A JSON-lines file, whole or not at all."""
    write_text(path, "".join(f"{json_line(row)}\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """The file by one rename, so that a reader or a kill never finds half of it."""
    staged = path.with_name(f".{path.name}.part")
    with disk_faults(path):
        staged.write_text(text, encoding="utf-8", newline="\n")
        staged.replace(path)


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """A full or read-only disk as a DiskError that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise DiskError(f"{path}: cannot be written: {error.strerror}") from error
        raise
