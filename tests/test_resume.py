"""The same command on a run's folder: it goes on, it says that it is done, or what has changed."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from test_checkpoints import dies_at
from tiny import QUIET, config

from tvd_gen.checkpoints import Store
from tvd_gen.errors import CheckpointError, ConfigError, DataError, DiskError, NonFiniteError
from tvd_gen.run import evaluate, plan, train, training
from tvd_gen.run.folder import RunFolder
from tvd_gen.run.resume import locked, state_of

STEPS = {
    "max_steps": 9,
    "per_device_train_batch_size": 8,
    "logging_steps": 2,
    "save_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "learning_rate": 1e-2,
}


def killed_at(step, made, run, monkeypatch):
    """A run that ends in the middle, as far as its folder can tell."""

    def stop(self, args, state, control, **_):
        if state.global_step == step:
            raise KeyboardInterrupt

    stopping = type("Stopping", (training.Reporter,), {"on_step_begin": stop})
    with monkeypatch.context() as patch:
        patch.setattr(training, "Reporter", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(made, run, **QUIET)


@pytest.fixture
def stopped(tmp_path, files, monkeypatch):
    """A config, and a run of it that was killed at step 5, after the checkpoint of step 3."""
    made = config(tmp_path, files, training=STEPS)
    killed_at(5, made, tmp_path / "run", monkeypatch)
    assert Store(tmp_path / "run" / "checkpoints").steps() == [3]
    return made, tmp_path / "run"


def said(config, run, **options):
    lines = []
    train(config, run, say=lines.append, progress=lambda *_: None, **options)
    return lines


def log(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    timed = ("runtime", "per_second")
    return [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in rows]


def weights(run):
    return (run / "model" / "model.safetensors").read_bytes()


def test_the_same_command_goes_on_and_ends_as_if_nothing_had_been(stopped, tmp_path):
    made, run = stopped
    assert "going on from step 3 of 9" in said(made, run)
    train(made, tmp_path / "whole", **QUIET)
    assert weights(run) == weights(tmp_path / "whole")
    assert log(run) == log(tmp_path / "whole")
    assert evaluate(run, **QUIET) == evaluate(tmp_path / "whole", **QUIET)


def test_a_finished_run_says_so_and_is_left_alone(stopped):
    made, run = stopped
    train(made, run, **QUIET)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    assert said(made, run) == [f"{run}: the run is finished; nothing to do"]
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    assert {p: t for p, t in after.items() if p != run} == {
        p: t for p, t in before.items() if p != run
    }


def test_a_run_without_a_checkpoint_says_that_it_starts_anew(stopped):
    made, run = stopped
    for path in (run / "checkpoints").iterdir():
        path.rename(run.parent / path.name)
    assert any("no checkpoint yet; the run starts from its beginning" in x for x in said(made, run))


def test_a_run_whose_checkpoints_are_all_broken_does_not_start_anew(stopped):
    """In silence, days of training would be done again."""
    made, run = stopped
    (run / "checkpoints" / "step-000003" / "scheduler.pt").unlink()
    with pytest.raises(CheckpointError, match=r"scheduler\.pt is missing"):
        train(made, run, **QUIET)
    assert (run / "log.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {**STEPS, "learning_rate": 0.1}}, "training.learning_rate: was 0.01, now"),
        ({"objective": {"gamma": 0.5}}, "objective.gamma: was 0.02, now 0.5"),
        ({"data": {"max_target_tokens": 9}}, "data.max_target_tokens: was 12, now 9"),
    ],
)
def test_another_config_is_refused_field_by_field(changes, message, stopped, tmp_path, files):
    _, run = stopped
    other = config(tmp_path, files, **({"training": STEPS} | changes))
    for allow in (False, True):
        with pytest.raises(ConfigError, match=message) as caught:
            train(other, run, allow_change=allow, **QUIET)
        assert "start another run" in str(caught.value)


def test_fields_that_change_no_weight_may_change_when_asked(stopped, tmp_path, files):
    made, run = stopped
    other = config(tmp_path, files, training=STEPS | {"save_steps": 2}, generation={"num_beams": 2})
    with pytest.raises(ConfigError, match=r"training\.save_steps: .*\(may change: --allow-change"):
        train(other, run, **QUIET)
    train(other, run, allow_change=True, **QUIET)
    assert "save_steps: 2" in (run / "config.yaml").read_text()
    train(made, tmp_path / "whole", **QUIET)
    assert weights(run) == weights(tmp_path / "whole")


def test_what_chooses_the_best_model_may_not_change(tmp_path, files, monkeypatch):
    best = STEPS | {"load_best_model_at_end": True}
    killed_at(5, config(tmp_path, files, training=best), tmp_path / "run", monkeypatch)
    other = config(tmp_path, files, training=best, generation={"num_beams": 2})
    with pytest.raises(ConfigError, match=r"generation\.num_beams: was 1, now 2\nset it back"):
        train(other, tmp_path / "run", allow_change=True, **QUIET)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_changed_data_are_refused(split, stopped, files):
    """The stock trainer takes them, and the run is another one."""
    made, run = stopped
    file = Path(files[split])
    file.write_text(file.read_text().replace("red", "rot", 1))
    with pytest.raises(ConfigError, match=rf"data, {split}: .*{split}\.jsonl: SHA-256 was \w+ now"):
        train(made, run, **QUIET)


def test_files_in_another_order_are_other_data(tmp_path, files, monkeypatch):
    """A stream reads them in turn; and two files of one name, in two folders, are two files."""
    parts = []
    for part, lines in enumerate((slice(0, 20), slice(20, None))):
        (tmp_path / f"part{part}").mkdir()
        parts.append(tmp_path / f"part{part}" / "train.jsonl")
        text = Path(files["train"]).read_text().splitlines(keepends=True)
        parts[-1].write_text("".join(text[lines]))
    names = [str(part) for part in parts]
    streams = {"files": files | {"train": names}, "streaming": True}
    killed_at(
        5, config(tmp_path, files, training=STEPS, data=streams), tmp_path / "run", monkeypatch
    )
    streams["files"] = files | {"train": names[::-1]}
    other = config(tmp_path, files, training=STEPS, data=streams)
    with pytest.raises(ConfigError, match=r"data, train: 1\. train\.jsonl: SHA-256 was \w+ now"):
        train(other, tmp_path / "run", **QUIET)


def test_a_test_file_may_change(stopped, files):
    made, run = stopped
    file = Path(files["test"])
    file.write_text(file.read_text().replace("red", "rot", 1))
    train(made, run, **QUIET)


def hold(run, held, done):
    with locked(RunFolder(run)):
        held.set()
        done.wait(30)


def test_two_runs_in_one_folder_are_refused(stopped):
    """They would write one log and each other's checkpoints."""
    made, run = stopped
    fork = multiprocessing.get_context("fork")
    held, done = fork.Event(), fork.Event()
    other = fork.Process(target=hold, args=(run, held, done))
    other.start()
    assert held.wait(30)
    with pytest.raises(ConfigError, match="another process trains in it"):
        train(made, run, **QUIET)
    os.kill(other.pid, 9)  # the system lets go of a dead process's lock
    other.join()
    train(made, run, **QUIET)


def test_a_moved_run_goes_on_and_keeps_its_best(tmp_path, files, monkeypatch):
    """transformers keeps the best checkpoint's old path, and drops it."""
    best = {"load_best_model_at_end": True, "save_total_limit": 1}
    made = config(tmp_path, files, training=STEPS | best)
    killed_at(5, made, tmp_path / "run", monkeypatch)
    (tmp_path / "run").rename(tmp_path / "moved")
    train(made, tmp_path / "moved", **QUIET)
    train(made, tmp_path / "whole", **QUIET)
    assert weights(tmp_path / "moved") == weights(tmp_path / "whole")


def test_a_stream_goes_on_past_its_first_epoch(tmp_path, files, monkeypatch):
    """The stock trainer reads the stream from its start again, and says nothing."""
    steps = STEPS | {"max_steps": 14, "save_steps": 8, "eval_strategy": "no"}
    made = config(tmp_path, files, training=steps, data={"streaming": True, "shuffle_buffer": 16})

    killed_at(10, made, tmp_path / "run", monkeypatch)
    train(made, tmp_path / "run", **QUIET)
    train(made, tmp_path / "whole", **QUIET)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert log(tmp_path / "run") == log(tmp_path / "whole")


def test_the_rows_of_a_broken_step_are_named_by_file_and_line(tmp_path, files, monkeypatch):
    made = config(tmp_path, files, training=STEPS)
    step = training.Seq2SeqObjectiveTrainer.compute_loss

    def broken(self, *args, **kwargs):
        return step(self, *args, **kwargs) * (float("nan") if self.state.global_step == 4 else 1)

    monkeypatch.setattr(training.Seq2SeqObjectiveTrainer, "compute_loss", broken)
    with pytest.raises(NonFiniteError, match=r"step 5: the loss is nan \(rows: .*train\.jsonl:\d+"):
        train(made, tmp_path / "run", **QUIET)
    assert Store(tmp_path / "run" / "checkpoints").steps() == [3]
    monkeypatch.undo()
    train(made, tmp_path / "run", **QUIET)


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(stopped, monkeypatch):
    made, run = stopped
    write = torch.save

    def full(value, file, *args, **kwargs):
        if "step-000006" in str(file) and str(file).endswith("optimizer.pt"):
            Path(file).write_bytes(b"x" * 100)
            raise OSError(28, "No space left on device")
        write(value, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DiskError, match=r"step-000006: the disk is full: needs more than"):
        train(made, run, **QUIET)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000003"]
    monkeypatch.undo()
    train(made, run, **QUIET)


def test_a_model_that_was_half_saved_is_saved_again(stopped, monkeypatch):
    """model/ is what says that a run is finished."""
    made, run = stopped
    save = training.save

    def half(model, tokenizer, folder):
        save(model, tokenizer, folder)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training, "save", half)
    with pytest.raises(DiskError):
        train(made, run, **QUIET)
    assert not (run / "model").exists()
    monkeypatch.undo()
    started = time.monotonic()
    assert "going on from step 9 of 9" in said(made, run)
    assert time.monotonic() - started < 30
    assert (run / "model").exists()


def test_a_launcher_that_starts_fewer_processes_is_found_out(tmp_path, files, monkeypatch):
    """The global batch would be half of what was meant."""
    made = config(tmp_path, files, training=STEPS | {"num_processes": 2})
    with pytest.raises(ConfigError, match="2 asked for, 1 started; start with torchrun"):
        train(made, tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_told_before_the_model_is_loaded(
    tmp_path,
    files,
    monkeypatch,
):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    monkeypatch.setattr(training, "prepare", None)
    with pytest.raises(DiskError, match="cannot be written: no permission in"):
        train(config(tmp_path, files), tmp_path / "a" / "run", **QUIET)


@pytest.mark.parametrize("event", range(1, 40, 2))
def test_a_kill_while_the_folder_is_made_leaves_a_folder_to_start_in(event, tmp_path, files):
    """Found by the campaign: a folder with checkpoints/ and no config.yaml was taken for no run."""
    made, run = config(tmp_path, files, training=STEPS | {"max_steps": 1}), tmp_path / "run"
    prepared = training.prepare(made, say=lambda *_: None, progress=lambda *_: None)

    def start():
        with locked(RunFolder(run)):
            training._train(RunFolder(run), prepared, "new", **QUIET)

    dies_at(event, start, below=run)
    assert state_of(RunFolder(run)) in ("new", "started")
    if event > 30:
        train(made, run, **QUIET)
        assert state_of(RunFolder(run)) == "finished"


def test_a_worker_that_dies_is_one_line_and_the_run_goes_on(stopped, monkeypatch):
    made, run = stopped
    made = made.model_copy(
        update={"training": made.training.model_copy(update={"dataloader_num_workers": 1})}
    )
    collate = training.Collator.__call__

    def die(self, features):
        if torch.utils.data.get_worker_info():
            os._exit(1)
        return collate(self, features)

    with monkeypatch.context() as patch:
        patch.setattr(training.Collator, "__call__", die)
        with pytest.raises(DataError, match=r"a worker .* has died"):
            train(made, run, allow_change=True, **QUIET)
    train(made, run, allow_change=True, **QUIET)
    assert (run / "model").exists()


def test_a_run_that_fails_removes_nothing_that_is_not_its_own(tmp_path, files):
    """--output may be a folder with a user's hidden files: a home, a repository."""
    run = tmp_path / "run"
    (run / ".git").mkdir(parents=True)
    (run / ".git" / "HEAD").write_text("precious")
    with pytest.raises(ConfigError, match=r"holds no run, but \.git"):
        train(config(tmp_path, files), run, **QUIET)
    none = STEPS | {"per_device_train_batch_size": 64, "dataloader_drop_last": True}
    folder = RunFolder(tmp_path / "other")
    with pytest.raises(ConfigError, match="no step was made"):
        train(config(tmp_path, files, training=none), folder.path, **QUIET)
    assert not folder.path.exists()
    folder.path.mkdir()
    (folder.path / "mine").write_text("precious")
    folder.config.write_text("")
    folder.discard()
    assert [path.name for path in folder.path.iterdir()] == ["mine"]


def test_files_may_lie_elsewhere(stopped, tmp_path, files):
    _, run = stopped
    (tmp_path / "moved").mkdir()
    moved = {
        split: str(Path(path).rename(tmp_path / "moved" / Path(path).name))
        for split, path in files.items()
    }
    train(config(tmp_path, moved, training=STEPS), run, **QUIET)
    assert (run / "model").exists()


@pytest.mark.parametrize("streaming", [False, True])
def test_data_are_checked_without_data_json_too(streaming, tmp_path, files, monkeypatch):
    made = config(tmp_path, files, training=STEPS, data={"streaming": streaming})
    killed_at(5, made, tmp_path / "run", monkeypatch)
    (tmp_path / "run" / "data.json").unlink()
    lines = Path(files["train"]).read_text().splitlines()
    Path(files["train"]).write_text("\n".join(reversed(lines)) + "\n")
    with pytest.raises(CheckpointError, match="files of train: was"):
        train(made, tmp_path / "run", **QUIET)


def test_a_broken_data_json_is_one_line(stopped):
    made, run = stopped
    (run / "data.json").write_text('{"splits": {"tr')
    with pytest.raises(ConfigError, match=r"data\.json: is broken"):
        train(made, run, **QUIET)


def test_another_tokenizer_is_refused(tmp_path, files, monkeypatch):
    """The same texts are other rows then."""
    train(config(tmp_path, files), tmp_path / "base", **QUIET)
    base = tmp_path / "base" / "model"
    made = config(tmp_path, files, training=STEPS, model={"pretrained": str(base)})
    killed_at(5, made, tmp_path / "run", monkeypatch)
    file = base / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    ids = tokenizer["model"]["vocab"]
    ids["r"], ids["s"] = ids["s"], ids["r"]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="tokenizer: was"):
        train(made, tmp_path / "run", **QUIET)


def test_a_run_goes_on_without_its_best_checkpoint_when_asked(tmp_path, files):
    fast = STEPS | {"learning_rate": 3.0}  # so that the best is not the last
    best = fast | {"load_best_model_at_end": True}
    run = tmp_path / "run"
    train(config(tmp_path, files, training=best), run, **QUIET)
    (run / "model").rename(tmp_path / "model")  # as if the last save had been killed
    state = run / "checkpoints" / "step-000009" / "trainer_state.json"
    lost = json.loads(state.read_text())["best_global_step"]
    store = Store(run / "checkpoints")
    assert lost < 9
    (store.path(lost) / "model.safetensors").unlink()
    message = r"missing; put it back, or keep the last weights: load_best_model_at_end=false"
    with pytest.raises(CheckpointError, match=message):
        train(config(tmp_path, files, training=best), run, **QUIET)
    last = fast | {"load_best_model_at_end": False, "metric_for_best_model": "nll"}
    train(config(tmp_path, files, training=last), run, allow_change=True, **QUIET)
    assert (run / "model").exists()


def test_max_skipped_steps_may_change(stopped, tmp_path, files):
    """It is the way on after exit 5."""
    _, run = stopped
    other = config(tmp_path, files, training=STEPS | {"max_skipped_steps": 3})
    train(other, run, allow_change=True, **QUIET)


def test_plan_predicts_what_the_run_takes_on_the_disk(tmp_path, files):
    """A disk that fills up after days is found out before."""
    wide = {"d_model": 128, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "model_type": "bart"}
    wide |= {"encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 64}
    wide |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = {"architecture": wide, "tokenizer": {"type": "bpe", "vocab_size": 300}}
    training = STEPS | {"max_steps": 4, "save_steps": 1, "save_total_limit": 2}
    made = config(tmp_path, files, model=model, training=training)
    disk = plan(made, **QUIET).disk_mib
    train(made, tmp_path / "run", **QUIET)
    files_of = (path for path in (tmp_path / "run").rglob("*") if path.is_file())
    taken = sum(path.stat().st_size for path in files_of) / 2**20
    assert disk["checkpoints_kept"] == 2
    # One more is there while the third is being saved.
    assert disk["needed"] - disk["one_checkpoint"] == pytest.approx(taken, rel=0.05)


def test_plan_counts_the_epochs_that_are_asked_for_in_steps(tmp_path, files):
    """40 rows are 5 steps of 8: 12 steps are 3 epochs, whatever num_train_epochs says."""
    training = STEPS | {"max_steps": 12, "save_strategy": "epoch", "eval_strategy": "epoch"}
    training |= {"num_train_epochs": 50}
    made = config(tmp_path, files, training=training)
    assert plan(made, **QUIET).disk_mib["checkpoints_kept"] == 3


def test_plan_counts_an_evaluation_as_a_checkpoint_where_the_best_is_kept(tmp_path, files):
    training = STEPS | {"max_steps": 12, "save_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    training |= {"load_best_model_at_end": True, "save_total_limit": None}
    made = config(tmp_path, files, training=training)
    assert plan(made, **QUIET).disk_mib["checkpoints_kept"] == 6


def test_a_run_that_was_started_meanwhile_is_not_written_over(tmp_path, files, monkeypatch):
    """Two commands at once: both find the folder free, and load for a while."""
    made, prepare = config(tmp_path, files, training=STEPS), training.prepare

    def slow(*args, **kwargs):
        found = prepare(*args, **kwargs)
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").write_text("the other's")
        return found

    monkeypatch.setattr(training, "prepare", slow)
    with pytest.raises(ConfigError, match="another run was started in it meanwhile"):
        train(made, tmp_path / "run", **QUIET)
    assert (tmp_path / "run" / "config.yaml").read_text() == "the other's"
