"""Folders that exist only when they are whole, and checkpoints that are such folders.

A folder is written beside its place under a name that starts with a dot, every file is hashed into
a manifest and forced to the disk, and one rename puts it there. So a run that was killed at any
moment finds each checkpoint whole or not at all, and a file that was lost or altered since is
found before it is loaded.

    with staged(Path("checkpoints/step-000120")) as folder:
        save_everything_into(folder)
        seal(folder, step=120)
"""

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvd_gen.errors import CheckpointError, DiskError
from tvd_gen.strict_json import to_json

MANIFEST = "manifest.json"
FORMAT = 1
_STEP = re.compile(r"step-(\d{6,})")
_STAGED, _TRASH = ".staged-", ".trash-"

# The disk is full, or the user's share of it, or a file may not be so large.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch's writer says where in its own source it failed, and often nothing else.
_FULL_IN_WORDS = ("No space left", "os error 28", "Disk quota exceeded", "inline_container.cc")


# One folder ------------------------------------------------------------------------------------


def staging(final: Path) -> Path:
    """Where `staged` fills the folder: other processes write their files there too."""
    return final.with_name(f"{_STAGED}{final.name}")


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `final` by one rename where nothing was raised.

    What stood at `final` before is replaced. Where something was raised nothing is left behind; a
    full or read-only disk is a DiskError, which says how much is needed.
    """
    folder = staging(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    remove(folder)
    try:
        folder.mkdir()
        yield folder
        publish(folder, final)
    except BaseException as error:
        size = sum(file.stat().st_size for file in _files(folder)) if folder.exists() else 0
        remove(folder)
        if isinstance(error, Exception):
            if is_disk_full(error):
                raise disk_full(final, at_least=size) from error
            if number := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors' way
                reason = os.strerror(int(number[1]))
                raise DiskError(f"{final}: cannot be written: {reason}") from error
        raise


def publish(folder: Path, final: Path) -> None:
    """Force everything in `folder` to the disk, then rename it to `final`."""
    for file in _files(folder):
        _sync(file)
    for directory in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        _sync(directory)
    remove(final)
    folder.rename(final)
    _sync(final.parent)


def remove(folder: Path) -> None:
    """Remove a folder; a kill on the way leaves a name that nobody takes for the folder."""
    if folder.exists():
        trash = folder.with_name(f"{_TRASH}{folder.name}-{time.time_ns()}")
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def seal(folder: Path, **facts: Any) -> None:
    """Write the manifest: the facts, and size and SHA-256 of every file. The last file to write."""
    files = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in _files(folder)
    }
    text = _manifest_text({"format": FORMAT, **facts, "files": files})
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _manifest_text(facts: dict[str, Any]) -> str:
    """JSON whose last field is the SHA-256 of the rest."""
    digest = hashlib.sha256(to_json(facts).encode()).hexdigest()
    return to_json({**facts, "sha256": digest}, indent=1) + "\n"


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose files are exactly those that were sealed.

    Raises CheckpointError that names the first file that is missing, altered, unreadable or not of
    it.
    """
    try:
        return _verified(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from error


def _verified(folder: Path) -> dict[str, Any]:
    manifest = _read_manifest(folder)
    sealed: dict[str, Any] = manifest["files"]
    there = {file.relative_to(folder).as_posix(): file for file in _files(folder)}
    there.pop(MANIFEST)
    for name in sealed.keys() - there.keys():
        raise CheckpointError(f"{folder}: {name} is missing")
    for name in there.keys() - sealed.keys():
        raise CheckpointError(f"{folder}: {name} is not of this checkpoint")
    for name, file in there.items():
        if file.is_symlink():
            raise CheckpointError(f"{folder}: {name} is a link")
        size, wanted = file.stat().st_size, sealed[name]["bytes"]
        if size != wanted:
            raise CheckpointError(f"{folder}: {name} has {size} bytes, not {wanted}")
        if _sha256(file) != sealed[name]["sha256"]:
            raise CheckpointError(f"{folder}: {name} has been altered (SHA-256)")
    return manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if file.is_symlink() or not file.is_file():
        raise CheckpointError(f"{folder}: has no {MANIFEST}; it was not written by tvd-gen")
    try:
        text = file.read_text(encoding="utf-8")
        manifest: dict[str, Any] = json.loads(text)
        del manifest["sha256"]
        sound = manifest["format"] == FORMAT and text == _manifest_text(manifest)
        sound = sound and all(
            {"bytes", "sha256"} == each.keys() for each in manifest["files"].values()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise CheckpointError(f"{folder}: {MANIFEST} is broken")
    return manifest


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a directory
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        # Some network file systems cannot sync a directory.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)


# The disk --------------------------------------------------------------------------------------


def is_disk_full(error: BaseException | None) -> bool:
    """Whether this came of a full disk; torch and safetensors have exceptions of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(words in str(error) for words in _FULL_IN_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_full(place: Path, at_least: int) -> DiskError:
    """The DiskError for a folder that did not fit; bytes."""
    free = shutil.disk_usage(place.parent).free
    return DiskError(
        f"{place}: the disk is full: needs more than {_mib(at_least)}, {_mib(free)} are free; "
        "nothing is lost that was saved before: make room and run the same command"
    )


def check_room(place: Path, needed: int) -> None:
    """Raise DiskError where fewer than `needed` bytes are free for `place`."""
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DiskError(
            f"{place}: a checkpoint needs {_mib(needed)}, {_mib(free)} are free; "
            "nothing is lost that was saved before: make room and run the same command"
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


# The checkpoints of a run ----------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """A run's checkpoints: root/step-000120, the number being the global step."""

    root: Path

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.root / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """The steps of all checkpoints, whole or not, in ascending order."""
        if not self.root.is_dir():
            return []
        found = (_STEP.fullmatch(path.name) for path in self.root.iterdir())
        steps = (int(match[1]) for match in found if match)
        return sorted(step for step in steps if self.path(step).is_dir())

    def newest(self, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole checkpoint and its manifest; None where there is none of any kind.

        Those that are passed over are told to `say`. Raises CheckpointError where all are broken: a
        run never starts afresh in silence.
        """
        faults = []
        for step in reversed(self.steps()):
            try:
                manifest = self.check(step)
            except CheckpointError as error:
                faults.append(str(error))
                continue
            for fault in faults:
                say(f"passed over: {fault}")
            return self.path(step), manifest
        if faults:
            raise CheckpointError(
                "\n".join(["no checkpoint is whole:", *faults, "start anew in another folder"])
            )
        return None

    def check(self, step: int) -> dict[str, Any]:
        """The manifest of a step's checkpoint; CheckpointError where it is not whole."""
        manifest = verify(self.path(step))
        if manifest.get("step") != step:
            raise CheckpointError(f"{self.path(step)}: is of step {manifest.get('step')}")
        return manifest

    def size(self) -> int:
        """The bytes of the newest checkpoint, 0 where there is none."""
        steps = self.steps()
        files = _files(self.path(steps[-1])) if steps else []
        return sum(file.stat().st_size for file in files)

    def set_aside(self, step: int) -> list[Path]:
        """Rename the checkpoints after a step, broken or left behind by a run that goes on from
        there, so that none is taken for its own; their new paths."""
        later = []
        for each in self.steps():
            if each > step:
                path = self.path(each)
                later.append(path.rename(path.with_name(f"aside-{time.time_ns()}-{path.name}")))
        return later

    def retain(self, limit: int | None, saved: int, best: int | None) -> None:
        """Keep the newest `limit` checkpoints (all for None), counting the one that was just
        `saved` and the best one, which stay whatever the limit."""
        if limit is None:
            return
        steps = self.steps()
        keep = {step for step in (saved, best) if step in steps}
        for step in reversed(steps):
            if len(keep) < limit:
                keep.add(step)
        for step in steps:
            if step not in keep:
                remove(self.path(step))

    def clean(self) -> None:
        """Remove what a killed run left half written or half removed."""
        if self.root.is_dir():
            for path in self.root.iterdir():
                if path.name.startswith((_STAGED, _TRASH)):
                    with suppress(OSError):
                        shutil.rmtree(path)
