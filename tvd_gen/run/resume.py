"""What a run folder may go on with: the lock, the state it is in, and what has changed since."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from filelock import FileLock, Timeout
from transformers import PreTrainedTokenizerBase

from tvd_gen.config import RunConfig, load_config
from tvd_gen.data import DataReport
from tvd_gen.errors import ConfigError, DiskError
from tvd_gen.run.folder import RunFolder, disk_faults
from tvd_gen.trainer import may_change

# The lock, and what a kill has left half written.
_OURS = re.compile(r"\.lock|\..+\.part|\.staged-model|\.trash-.+")
State = Literal["new", "started", "finished"]


def state_of(folder: RunFolder) -> State:
    """Whether a run was never started here, was started, or has its model.

    Raises ConfigError for a file, and for a folder that holds something else.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise ConfigError(f"{folder.path}: is a file; choose another --output")
    if folder.model.exists() and folder.config.exists():
        return "finished"
    if folder.config.exists():
        return "started"
    names = [path.name for path in folder.path.iterdir()] if folder.path.is_dir() else []
    others = [name for name in names if not _OURS.fullmatch(name)]
    if others:
        raise ConfigError(f"{folder.path}: holds no run, but {others[0]}; choose another --output")
    return "new"


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Make the folder and hold it for this process alone; ConfigError where another one does.

    The system lets go of it when the process ends, however it ends.
    """
    with disk_faults(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with disk_faults(folder.path), FileLock(folder.lock, timeout=0):
            yield
    except Timeout:
        raise ConfigError(
            f"{folder.path}: another process trains in it; wait for it, or choose another --output"
        ) from None


def check_writable(folder: RunFolder) -> None:
    """Raise DiskError where the folder could not be made: before the model is loaded."""
    there = next(
        path for path in (folder.path.absolute(), *folder.path.absolute().parents) if path.exists()
    )
    if not os.access(there, os.W_OK):
        raise DiskError(f"{folder.path}: cannot be written: no permission in {there}")


def check_processes(config: RunConfig) -> None:
    """Raise ConfigError where a launcher has started another number of processes than asked for.

    `accelerate launch --cpu --num_processes 2` starts one, and says nothing.
    """
    asked, started = config.training.num_processes, int(os.environ.get("WORLD_SIZE", "1"))
    if asked is not None and asked != started:
        raise ConfigError(
            f"training.num_processes: {asked} asked for, {started} started; start with "
            f"torchrun --nproc_per_node {asked} -m tvd_gen train ..."
        )


def check_config(folder: RunFolder, config: RunConfig, allow_change: bool) -> None:
    """Raise ConfigError, field by field, where the config is not the one the run was started with.

    allow_change lets those fields differ that change no weight.
    """
    then, now = _leaves(load_config(folder.config)), _leaves(config)
    names = [
        name
        for name in sorted({*then, *now})
        # Where the files lie is nothing; what is in them, check_data looks at.
        if then.get(name) != now.get(name) and not name.startswith("data.files.")
    ]
    free = {name for name in names if _may_change(name, config)}
    refused = [name for name in names if not (allow_change and name in free)]
    if not refused:
        return
    lines = [f"{folder.path}: the run was started with another config"]
    for name in refused:
        remark = " (may change: --allow-change)" if name in free else ""
        was, is_now = (_shown(values.get(name)) for values in (then, now))
        lines.append(f"{name}: was {was}, now {is_now}{remark}")
    if not free.issuperset(refused):
        lines.append("set it back, or start another run: --output")
    raise ConfigError("\n".join(lines))


def _may_change(name: str, config: RunConfig) -> bool:
    """Whether a field, as a dotted path, changes no weight."""
    best = config.training.arguments.get("metric_for_best_model") is not None
    section, _, field = name.partition(".")
    if section == "training":
        return field in ("max_skipped_steps", "num_processes") or may_change(field, best=best)
    return section == "name" or (section in ("generation", "evaluation") and not best)


def _leaves(config: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Mapping) and value:
            for key, each in value.items():
                walk(each, f"{path}.{key}" if path else str(key))
        else:
            found[path] = value

    walk(config.model_dump(mode="json", exclude_none=True), "")
    return found


def _shown(value: Any) -> str:
    return "not given" if value is None else json.dumps(value)


def check_data(folder: RunFolder, report: DataReport) -> None:
    """Raise ConfigError where what the run trains and is validated on has changed since."""
    if not folder.data.exists():
        return
    try:
        then = json.loads(folder.data.read_text(encoding="utf-8"))["splits"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder.data}: is broken; remove it, the checkpoints know") from error
    now, changed = report.as_dict()["splits"], []
    for split in ("train", "validation"):
        was, is_now = (_hashes(each.get(split)) for each in (then, now))
        for name in sorted({*was, *is_now}):
            if was.get(name) != is_now.get(name):
                hashes = " now ".join(str(each.get(name))[:12] for each in (was, is_now))
                changed.append(f"data, {split}: {name}: SHA-256 was {hashes}")
    if changed:
        lines = [f"{folder.path}: the data are not those that the run was started with", *changed]
        raise ConfigError("\n".join([*lines, "put them back, or start another run: --output"]))


def _hashes(split: Mapping[str, Any] | None) -> dict[str, str]:
    """Place and file name, without its folder -> SHA-256: a stream's rows come in that order."""
    files = split["files"] if split else []
    return {f"{n}. {Path(file['name']).name}": file["sha256"] for n, file in enumerate(files, 1)}


def facts(report: DataReport, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What of the data and the tokenizer must be the same, for the checkpoints: a stream's rows
    can only be known by their files."""
    splits = report.as_dict()["splits"]
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    text = b"\0".join(name.encode() + content for name, content in files.items())
    return {
        **{f"files of {split}": _hashes(splits.get(split)) for split in ("train", "validation")},
        "tokenizer": hashlib.sha256(text).hexdigest(),
    }
