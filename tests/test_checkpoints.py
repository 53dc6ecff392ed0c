"""A checkpoint is whole or not there, whatever happened on the way."""

import errno
import hashlib
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tvd_gen import checkpoints
from tvd_gen.checkpoints import (
    MANIFEST,
    Store,
    check_room,
    is_disk_full,
    seal,
    staged,
    verify,
)
from tvd_gen.errors import CheckpointError, DiskError

FILES = {"model.safetensors": b"w" * 70_000, "optimizer.pt": b"o" * 999, "nested/a.json": b"{}"}


def save(store, step, files=None, marker=b""):
    with staged(store.path(step)) as folder:
        for name, content in (files or FILES).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content + marker)
        seal(folder, step=step)


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "checkpoints")
    save(made, 2)
    return made


def dies_at(event, action, below=Path("/")):
    """Run `action` in a process of its own that is killed at its nth touch of files below a folder.

    Whether there was an nth.
    """
    child = os.fork()
    if child == 0:
        seen = 0

        def count(name, arguments):
            nonlocal seen
            touches = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir")
            if name in touches and str(arguments[0]).startswith(str(below)):
                seen += 1
                if seen == event:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_kill_at_any_point_of_a_save_leaves_whole_checkpoints(store):
    """One kill in five of the stock trainer's saves leaves a run that cannot go on."""

    def save_and_retain():
        save(store, 4)
        store.retain(1, 4, best=None)

    point = 0
    outcomes = set()
    while dies_at(point := point + 1, save_and_retain):
        for step in store.steps():
            store.check(step)
        newest, _ = store.newest(pytest.fail)
        outcomes.add(newest.name)
        save(store, 2)
        for path in store.root.glob("step-000004"):
            checkpoints.remove(path)
        store.clean()
        assert [path.name for path in store.root.iterdir()] == ["step-000002"]
    assert outcomes == {"step-000002", "step-000004"}
    assert point > 20
    assert store.steps() == [4]


@pytest.mark.parametrize("fault", ["missing", "empty", "truncated", "flipped", "linked"])
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_every_fault_of_a_file_is_found(name, fault, store):
    file = store.path(2) / name
    content = file.read_bytes()
    if fault == "missing":
        file.unlink()
    elif fault == "linked":
        file.rename(store.root / "elsewhere")
        file.symlink_to(store.root / "elsewhere")
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        new = {"empty": b"", "truncated": content[:-1], "flipped": flipped}
        file.write_bytes(new[fault])
    with pytest.raises(CheckpointError, match="step-000002"):
        store.newest(pytest.fail)


def test_bit_flips_at_random_places_are_found(store):
    draw = random.Random(0)
    files = [path for path in store.path(2).rglob("*") if path.is_file()]
    for _ in range(100):
        file = draw.choice(files)
        content = bytearray(file.read_bytes())
        place, bit = draw.randrange(len(content)), 1 << draw.randrange(8)
        content[place] ^= bit
        file.write_bytes(content)
        with pytest.raises(CheckpointError):
            store.check(2)
        content[place] ^= bit
        file.write_bytes(content)
    assert store.check(2)


def test_a_file_that_was_added_is_found(store):
    """transformers takes pytorch_model.bin where it stands."""
    (store.path(2) / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not of this checkpoint"):
        store.check(2)


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/../../b"])
def test_a_manifest_names_no_file_outside(name, store):
    manifest = verify(store.path(2))
    manifest["files"][name] = {"bytes": 1, "sha256": "0"}
    (store.path(2) / MANIFEST).write_text(checkpoints._manifest_text(manifest))
    with pytest.raises(CheckpointError, match="is missing"):
        store.check(2)


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "{}", "null", "[" * 100_000, "\0", "\udcff"),
        *map(
            checkpoints._manifest_text,
            ({"format": 1}, {"format": 1, "files": []}, {"format": 1, "files": {"a": 3}}),
        ),
    ],
)
def test_a_manifest_that_is_none_is_no_traceback(text, store):
    (store.path(2) / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match="is broken"):
        store.check(2)


def test_a_checkpoint_under_another_number_is_found(store):
    """Renamed by hand, the log and the data would go on from another place."""
    store.path(2).rename(store.path(8))
    with pytest.raises(CheckpointError, match="is of step 2"):
        store.check(8)


def test_no_checkpoint_at_all_is_not_the_same_as_none_that_is_whole(tmp_path, store):
    assert Store(tmp_path / "nothing").newest(pytest.fail) is None
    (store.path(2) / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole:\n.*optimizer"):
        store.newest(pytest.fail)


def test_files_reach_the_disk_before_the_name_does(store, monkeypatch):
    """After a loss of power a rename may be there without the content."""
    order = []
    fsync, rename = os.fsync, Path.rename

    def synced(number):
        order.append(("sync", Path(os.readlink(f"/proc/self/fd/{number}")).name))
        fsync(number)

    def renamed(self, target):
        order.append(("rename", Path(target).name))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    save(store, 4)
    at = order.index(("rename", "step-000004"))
    before = {name for what, name in order[:at] if what == "sync"}
    names = {Path(name).name for name in FILES}
    assert before == {*names, MANIFEST, "nested", ".staged-step-000004"}
    assert order[at + 1 :] == [("sync", "checkpoints")]


def test_what_fails_leaves_nothing_behind(store):
    def fail():
        with staged(store.path(4)) as folder:
            (folder / "half").write_bytes(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in store.root.iterdir()] == ["step-000002"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed"),
        RuntimeError(
            "[enforce fail at inline_container.cc:672] . unexpected pos 1251968 vs 1251856"
        ),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_said_with_how_much_is_needed(error, store):
    def fail():
        with staged(store.path(4)) as folder:
            (folder / "half").write_bytes(b"x" * 100_000)
            raise error

    with pytest.raises(DiskError, match=r"needs more than 0\.1 MiB, .* are free"):
        fail()
    assert store.steps() == [2]
    assert not list(store.root.glob(".*"))


def test_other_errors_are_not_called_a_full_disk():
    assert not is_disk_full(PermissionError(errno.EACCES, "Permission denied"))
    assert not is_disk_full(RuntimeError("size mismatch"))


def test_room_is_asked_for_before_anything_is_written(store):
    check_room(store.root, store.size())
    with pytest.raises(DiskError, match=r"needs 1099511627776\.0 MiB"):
        check_room(store.root, 2**60)


def test_the_size_is_that_of_the_newest(store):
    assert store.size() == sum(p.stat().st_size for p in store.path(2).rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [(None, None, [1, 2, 3, 4]), (1, None, [4]), (2, 1, [1, 4]), (1, 2, [2, 4]), (3, 4, [2, 3, 4])],
)
def test_the_newest_and_the_best_stay(limit, best, kept, tmp_path):
    store = Store(tmp_path)
    for step in (1, 2, 3, 4):
        save(store, step)
    store.retain(limit, 4, best)
    assert store.steps() == kept


def test_what_was_just_saved_stays_beside_a_newer_number(store):
    """A run that goes on from an older checkpoint saves under smaller numbers."""
    save(store, 9)
    save(store, 5)
    store.retain(1, 5, best=None)
    assert store.steps() == [5]


def test_checkpoints_after_the_one_that_is_gone_on_from_are_set_aside(store):
    save(store, 4)
    save(store, 6)
    aside = store.set_aside(2)
    assert store.steps() == [2]
    assert [path.name.split("-", 2)[2] for path in aside] == ["step-000004", "step-000006"]
    assert all(path.is_dir() for path in aside)


def test_a_name_that_only_looks_like_a_step_is_none(store):
    (store.root / "step-0000007").mkdir()
    (store.root / "step-000009").write_text("a file")
    assert store.steps() == [2]


def test_a_disk_that_cannot_be_read_is_a_fault_of_the_checkpoint(store, monkeypatch):
    """An older one may lie where the disk is sound."""
    save(store, 4)
    hash_of = checkpoints._sha256

    def broken(file):
        if "step-000004" in str(file):
            raise OSError(errno.EIO, "Input/output error")
        return hash_of(file)

    monkeypatch.setattr(checkpoints, "_sha256", broken)
    said = []
    assert store.newest(said.append)[0] == store.path(2)
    assert "cannot be read: Input/output error" in said[0]
    with pytest.raises(CheckpointError, match="cannot be read: Input/output error"):
        verify(store.path(4))


def test_a_read_only_disk_is_said_in_safetensors_words_too(store):
    def fail():
        with staged(store.path(4)):
            raise RuntimeError("I/O error: Read-only file system (os error 30)")

    with pytest.raises(DiskError, match="cannot be written: Read-only file system"):
        fail()


class Life(RuleBasedStateMachine):
    """Saves, kills, rot and removal in any order."""

    def __init__(self):
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.folder.name) / "c")
        self.step, self.whole, self.best = 0, set(), None

    def teardown(self):
        self.folder.cleanup()

    @rule(limit=st.sampled_from([None, 1, 2, 3]))
    def saves(self, limit):
        self.step += 1
        save(self.store, self.step, {"a": b"123"})
        self.whole.add(self.step)
        self.store.retain(limit, self.step, self.best)
        gone = self.whole - set(self.store.steps())
        assert not gone & {self.step, self.best}
        self.whole -= gone

    @rule(point=st.integers(1, 25))
    def is_killed_in_a_save(self, point):
        self.step += 1
        dies_at(point, lambda: save(self.store, self.step, {"a": b"123"}))
        if self.store.path(self.step).exists():
            self.whole.add(self.step)

    @precondition(lambda self: self.whole)
    @rule()
    def marks_the_best(self):
        self.best = max(self.whole)

    @precondition(lambda self: self.whole)
    @rule(data=st.data())
    def rots(self, data):
        step = data.draw(st.sampled_from(sorted(self.whole)))
        (self.store.path(step) / "a").write_bytes(b"12x")
        self.whole.discard(step)
        self.best = None if self.best == step else self.best

    @rule()
    def starts_again(self):
        """From the newest whole one: the run's step goes back to it."""
        self.store.clean()
        if self.whole:
            self.step = max(self.whole)
            self.store.set_aside(self.step)
            assert self.store.steps()[-1] == self.step
        assert not self.store.root.exists() or not list(self.store.root.glob(".*"))

    @invariant()
    def the_newest_whole_one_is_found(self):
        said = []
        if self.whole:
            manifest = self.store.newest(said.append)[1]
            assert manifest["step"] == max(self.whole)
            assert len(said) == sum(step > max(self.whole) for step in self.store.steps())
        elif self.store.steps():
            with pytest.raises(CheckpointError):
                self.store.newest(said.append)
        else:
            assert self.store.newest(said.append) is None


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)


def test_the_manifest_holds_the_hashes(store):
    manifest = verify(store.path(2))
    for name, content in FILES.items():
        expected = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert manifest["files"][name] == expected
