"""A run that was stopped and resumed ends with the bits of the run that was not.

The law is also run where it must fail: with the data, the random numbers, or the running sums left
where they were.
"""

import contextlib
import copy
import math
import os
import pickle
import random
import signal

import pytest
import torch
from datasets import Dataset
from families import SPECIAL, arguments, tiny_model
from families import rows as pairs
from transformers import (
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
)

from tvd_gen import ObjectiveTrainer, Seq2SeqObjectiveTrainer, TaiLr
from tvd_gen.checkpoints import MANIFEST, Store, seal, staged, verify
from tvd_gen.data import Collator
from tvd_gen.errors import CheckpointError, NonFiniteError, Stopped
from tvd_gen.objectives import LossTruncation
from tvd_gen.schedules import Linear
from tvd_gen.trainer import ExactMixin, exact, identity


@pytest.fixture(autouse=True)
def interruptible():
    """Where the suite runs in the background, the shell has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


DROPOUT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "resid_pdrop": 0.2}


def data(encoder_decoder=False, count=37, seed=0):
    encoded = pairs(encoder_decoder, count, seed)
    for i, row in enumerate(encoded):
        row |= {"length": max(map(len, row.values())), "row": i}
    return Dataset.from_list(encoded)


def stream(count=37):
    return data(count=count).to_iterable_dataset().shuffle(seed=3, buffer_size=8)


class StopAt(TrainerCallback):
    """What a kill does, at the begin of a step, without the price of a process."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer_for(folder, *callbacks, process=0, family="gpt2", **changes):
    """A trainer whose own random numbers hang on `process`; a resumed one must not hang on them."""
    options = {"objective": TaiLr(0.02, 0.2)}
    names = ("objective", "schedules", "max_tokens", "max_skipped_steps", "train_dataset")
    names += ("weights_from", "weights_every", "weights_decay")
    options |= {name: changes.pop(name) for name in names if name in changes}
    settings = {
        "per_device_train_batch_size": 4,
        "max_steps": 13,
        "learning_rate": 1e-2,
        "optim": "adamw_torch",
        "logging_steps": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        "max_grad_norm": 1.0,
        "remove_unused_columns": False,
    }
    torch.manual_seed(100)
    gpt2 = GPT2Config(**SPECIAL, **DROPOUT)
    made = GPT2LMHeadModel(gpt2) if family == "gpt2" else tiny_model(family)
    if wrap := changes.pop("wrap", None):
        made = wrap(made)
    if process:  # another process: other weights, where they are trained, and other random numbers
        torch.manual_seed(process)
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.data.normal_()
        random.seed(process)
    encoder_decoder = made.config.is_encoder_decoder
    cls = Seq2SeqObjectiveTrainer if encoder_decoder else ObjectiveTrainer
    return cls(
        made,
        arguments(folder, **(settings | changes)),
        data_collator=Collator(0, encoder_decoder),
        eval_dataset=data(encoder_decoder, 9, seed=1),
        callbacks=[*callbacks],
        **({"train_dataset": data(encoder_decoder)} | options),
    )


def end(trainer):
    """Everything that must be equal: weights, optimizer, log and evaluations but for times."""
    timed = ("runtime", "per_second", "train_loss", "total_flos")
    log = [
        {name: value for name, value in row.items() if not any(word in name for word in timed)}
        for row in trainer.state.log_history
        if "train_loss" not in row
    ]
    optimizer = trainer.optimizer.state_dict()["state"]
    return {
        "weights": {name: value.clone() for name, value in trainer.model.state_dict().items()},
        "optimizer": {i: dict(values) for i, values in optimizer.items()},
        "log": log,
        "steps": trainer.state.global_step,
        "best": trainer.state.best_metric,
    }


def differences(left, right):
    found = [name for name in ("log", "steps", "best") if left[name] != right[name]]
    for name, value in left["weights"].items():
        found += [name] * (not torch.equal(value, right["weights"][name]))
    for i, values in left["optimizer"].items():
        for name, value in values.items():
            found += [f"{i}.{name}"] * (not torch.equal(value, right["optimizer"][i][name]))
    return found


def stopped_and_resumed(folder, stops, callbacks=tuple, **case):
    """The trainer of the last of several processes, each of which is stopped at a step."""
    for turn, stop in enumerate([*stops, None]):
        resume = bool(Store(folder).steps())
        mine = [*callbacks(), *([StopAt(stop)] if stop is not None else [])]
        trainer = trainer_for(folder, *mine, process=turn if resume else 0, **copy.copy(case))
        try:
            trainer.train(resume_from_checkpoint=resume)
        except KeyboardInterrupt:
            continue
    return trainer


def lora(rank=4, dropout=0.1, scale=1.0):
    from peft import LoraConfig, get_peft_model

    def wrap(model):
        torch.manual_seed(5)
        with torch.no_grad():
            model.transformer.wte.weight.mul_(scale)
        settings = LoraConfig(r=rank, target_modules=["c_attn", "c_proj"], lora_dropout=dropout)
        return get_peft_model(model, settings)

    return wrap


def test_a_model_that_was_saved_is_the_same_model(tmp_path):
    """A new model's config is completed by save_pretrained: a trainer that was interrupted and
    goes on in one process must find its own checkpoint."""
    model = tiny_model("gpt2")
    before = identity.of_model(model)
    model.save_pretrained(tmp_path)
    assert identity.of_model(model) == before
    assert identity.of_model(model.bfloat16()) != before


EPOCHS = {"max_steps": -1, "num_train_epochs": 3}
BEST = {
    "load_best_model_at_end": True,
    "metric_for_best_model": "nll",
    "greater_is_better": False,
    "save_total_limit": 1,
}
CASES = {
    "dropout and accumulation": {"gradient_accumulation_steps": 3},
    "a scheduled gamma": {"schedules": {"gamma": Linear(0.0, 0.8)}},
    "an encoder-decoder in batches of tokens": {"family": "bart", "max_tokens": 60},
    "rows grouped by length": {"train_sampling_strategy": "group_by_length", "max_steps": 24},
    "an evaluation each epoch": {"eval_strategy": "epoch", "save_steps": 5, **EPOCHS},
    "a checkpoint each epoch": {"eval_strategy": "epoch", "save_strategy": "epoch", **EPOCHS},
    "evaluations between checkpoints": {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 4},
    "an evaluation before the first step": {
        "eval_on_start": True,
        "eval_strategy": "steps",
        "eval_steps": 5,
    },
    "the best of epochs": {"eval_strategy": "epoch", "save_strategy": "epoch", **EPOCHS, **BEST},
    "a sampler on the global random numbers": {
        "accelerator_config": {"use_seedable_sampler": False},
        "max_steps": 24,
    },
    "bfloat16": {"bf16": True},
    "two workers": {"dataloader_num_workers": 2, "max_steps": 7},
    "a stream past its first epoch": {"train_dataset": stream, "max_steps": 16},
    "a stream with a short last step": {
        "train_dataset": stream,
        "max_steps": 14,
        "gradient_accumulation_steps": 3,
    },
    "noise on the embeddings": {"neftune_noise_alpha": 5.0},
    "an adapter": {"wrap": lora()},
}


def opened(case):
    made = case.get("train_dataset")
    return {**case, "train_dataset": made()} if callable(made) else case


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_ends_with_the_same_bits(name, tmp_path):
    whole = trainer_for(tmp_path / "whole", **opened(CASES[name]))
    whole.train()
    expected = end(whole)
    assert len(expected["log"]) >= 2
    for stops in ((3, 8), (5,), (11,), (15, 21)):
        if stops[-1] >= expected["steps"]:
            continue
        folder = tmp_path / "-".join(map(str, stops))
        resumed = stopped_and_resumed(folder, stops, **opened(CASES[name]))
        assert differences(expected, end(resumed)) == [], stops


def test_early_stopping_keeps_its_patience(tmp_path):
    """The stock trainer starts to count again, and trains on."""
    case = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 40, **BEST}
    case |= {"learning_rate": 0.3, "save_total_limit": None}

    def patience():
        return [EarlyStoppingCallback(3)]

    whole = trainer_for(tmp_path / "whole", *patience(), **case)
    whole.train()
    expected = end(whole)
    last = expected["steps"]
    assert 6 < last < 40
    for stops in ((last - 1,), (last - 3, last - 1)):
        folder = tmp_path / "-".join(map(str, stops))
        resumed = stopped_and_resumed(folder, stops, patience, **case)
        assert differences(expected, end(resumed)) == [], stops
    again = trainer_for(tmp_path / "whole", *patience(), process=9, **case)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == last, "it had stopped at its last checkpoint"


def test_a_signal_in_the_last_evaluation_of_an_early_stop(tmp_path):
    """The resumed run must find out that it is over before it makes a step more."""
    case = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 4, "max_steps": 40, **BEST}
    case |= {"learning_rate": 0.3, "save_total_limit": None}
    whole = trainer_for(tmp_path / "whole", EarlyStoppingCallback(3), **case)
    whole.train()
    last = whole.state.global_step
    assert last < 40
    stopped = trainer_for(
        tmp_path / "run", EarlyStoppingCallback(3), Send(signal.SIGTERM, last, "evaluation"), **case
    )
    with pytest.raises(Stopped):
        stopped.train()
    resumed = trainer_for(tmp_path / "run", EarlyStoppingCallback(3), process=2, **case)
    resumed.train(resume_from_checkpoint=True)
    assert differences(end(whole), end(resumed)) == []


def test_the_best_model_is_kept_where_not_every_evaluation_is_saved(tmp_path):
    """Stock loads an older checkpoint, or none, where the best step is not one of save_steps."""
    weights = {}

    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_):
            weights[state.global_step] = copy.deepcopy(model.state_dict())
            if state.global_step == 7:
                for parameter in model.parameters():
                    parameter.data *= 5

    case = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 4, "max_steps": 8, **BEST}
    trainer = trainer_for(tmp_path, Spoil(), learning_rate=1e-3, **case)
    trainer.train()
    assert trainer.state.best_global_step == 6
    assert Store(tmp_path).steps() == [6, 8]
    torch.testing.assert_close(trainer.model.state_dict(), weights[6], rtol=0, atol=0)


def skip_nothing(monkeypatch):
    monkeypatch.setattr("transformers.trainer.skip_first_batches", lambda loader, count: loader)


def keep_random_numbers(monkeypatch):
    monkeypatch.setattr(Trainer, "_load_rng_state", lambda self, checkpoint: None)


def forget_sums(monkeypatch):
    monkeypatch.setattr(ExactMixin, "load_progress", lambda self, progress: None)


def forget_optimizer(monkeypatch):
    monkeypatch.setattr(Trainer, "_load_optimizer_and_scheduler", lambda self, checkpoint: None)


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (skip_nothing, "wte"),
        (keep_random_numbers, "wte"),
        (forget_sums, "log"),
        (forget_optimizer, "wte"),
    ],
)
def test_the_comparison_finds_what_was_not_restored(spoil, found, tmp_path, monkeypatch):
    """A comparison that cannot fail proves nothing."""
    whole = trainer_for(tmp_path / "whole")
    whole.train()
    spoil(monkeypatch)
    resumed = stopped_and_resumed(tmp_path / "run", (5,))
    assert any(found in each for each in differences(end(whole), end(resumed)))


def test_evaluations_take_no_random_numbers_of_training(tmp_path):
    """How often a run looks at itself must not change what it finds."""
    ends = []
    for name, settings in {"a": {}, "b": {"eval_strategy": "steps", "eval_steps": 1}}.items():
        trainer = trainer_for(tmp_path / name, **settings)
        trainer.train()
        ends.append(end(trainer)["weights"])
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


# What is refused ---------------------------------------------------------------------------------


def without_dropout(model):
    model.config.resid_pdrop = 0.0
    return model


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"rank": 8}, "adapters: was"),
        ({"dropout": 0.0}, "adapters: was"),
        ({"scale": 0.5}, "frozen parameters: was"),
    ],
)
def test_another_adapter_or_base_is_not_resumed(other, message, tmp_path):
    """An adapter's checkpoint holds no base."""
    with pytest.raises(KeyboardInterrupt):
        trainer_for(tmp_path, StopAt(5), wrap=lora()).train()
    with pytest.raises(CheckpointError, match=message):
        trainer_for(tmp_path, wrap=lora(**other)).train(resume_from_checkpoint=True)


def test_a_function_as_a_schedule_can_be_resumed(tmp_path):
    """Its address is another in each process."""
    case = {"schedules": {"gamma": lambda progress: progress / 2}}
    with pytest.raises(KeyboardInterrupt):
        trainer_for(tmp_path, StopAt(5), **case).train()
    case = {"schedules": {"gamma": lambda progress: progress / 2}}
    trainer_for(tmp_path, **case).train(resume_from_checkpoint=True)


def test_an_argument_that_a_newer_version_brings_is_no_difference(interrupted):
    folder = Store(interrupted).path(6)
    facts = verify(folder)
    del facts["identity"]["args.adam_beta1"]
    (folder / MANIFEST).unlink()
    versions = facts["versions"] | {"transformers": "5.22.0"}
    seal(folder, step=6, identity=facts["identity"], versions=versions)
    said = []
    trainer = trainer_for(interrupted)
    trainer.say = said.append
    trainer.train(resume_from_checkpoint=True)
    assert "made with transformers 5.22.0" in said[0]


def test_the_only_whole_checkpoint_is_not_evicted_by_a_broken_one(interrupted):
    """The broken one has the larger number."""
    (Store(interrupted).path(6) / "optimizer.pt").write_bytes(b"")
    trainer = trainer_for(interrupted, Send(signal.SIGTERM, 4, "begin"), save_total_limit=1)
    with pytest.raises(Stopped, match="stopped at step 5"):
        trainer.train(resume_from_checkpoint=True)
    assert Store(interrupted).steps() == [5]
    assert Store(interrupted).newest(pytest.fail)
    assert len([*interrupted.glob("aside-*-step-000006")]) == 1


def test_another_trainers_checkpoints_are_not_mixed_with_ours(tmp_path):
    """The stock trainer removes those that are not the best."""
    (tmp_path / "checkpoint-100").mkdir()
    with pytest.raises(CheckpointError, match="another trainer's checkpoints"):
        trainer_for(tmp_path).train()


def test_weights_that_are_not_finite_are_not_saved_by_the_mixin_alone(tmp_path):
    class Alone(ExactMixin, Trainer):
        pass

    class Spoil(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **_):
            if state.global_step == 3:
                model.transformer.wte.weight.data[3] = math.nan

    model = GPT2LMHeadModel(GPT2Config(**SPECIAL, **DROPOUT))
    settings = arguments(
        tmp_path, max_steps=6, save_strategy="steps", save_steps=2, remove_unused_columns=False
    )
    trainer = Alone(
        model, settings, train_dataset=data(), data_collator=Collator(0), callbacks=[Spoil()]
    )
    with pytest.raises(NonFiniteError, match=r"step 4: .*wte.* is not finite"):
        trainer.train()
    assert Store(tmp_path).steps() == [2]


@pytest.fixture
def interrupted(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer_for(tmp_path, StopAt(7)).train()
    assert Store(tmp_path).steps() == [2, 4, 6]
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.5}, "args.learning_rate: was 0.01, now 0.5"),
        ({"per_device_train_batch_size": 2}, "args.per_device_train_batch_size: was 4, now 2"),
        ({"gradient_accumulation_steps": 2}, "args.gradient_accumulation_steps: was 1, now 2"),
        ({"max_steps": 20}, "args.max_steps: was 13, now 20"),
        ({"seed": 1}, "args.seed: was 42, now 1"),
        ({"objective": TaiLr(0.5)}, "objective: was TaiLr"),
        ({"train_dataset": data(seed=1)}, "content of train_dataset: was"),
        ({"wrap": without_dropout}, "model.resid_pdrop: was 0.2, now 0"),
        ({"train_dataset": data(count=36)}, "rows of train_dataset: was 37, now 36"),
        ({"schedules": {"gamma": Linear(0.0, 0.8)}}, "schedules: was"),
    ],
)
def test_a_run_with_other_settings_is_not_resumed(changes, message, interrupted):
    """The stock trainer ignores another learning rate and takes other data without a word."""
    with pytest.raises(CheckpointError, match=message):
        trainer_for(interrupted, **changes).train(resume_from_checkpoint=True)


def test_settings_that_change_no_weight_may_differ(interrupted):
    changes = {"save_steps": 3, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 5}
    trainer = trainer_for(interrupted, **changes)
    trainer.train(resume_from_checkpoint=True)
    history = trainer.state.log_history
    assert [row["step"] for row in history if "loss" in row] == [3, 6, *range(7, 14)]
    assert [row["step"] for row in history if "eval_loss" in row] == [10, 13]
    assert Store(interrupted).steps() == [2, 4, 6, 9, 12, 13]


def test_what_chooses_the_best_model_may_not_differ(tmp_path):
    """Another rhythm of evaluations is another best model, or another end."""
    best = {"eval_strategy": "steps", "eval_steps": 2, **BEST}
    with pytest.raises(KeyboardInterrupt):
        trainer_for(tmp_path, StopAt(7), **best).train()
    with pytest.raises(CheckpointError, match=r"args\.eval_steps: was 2, now 1"):
        trainer_for(tmp_path, **best | {"eval_steps": 1}).train(resume_from_checkpoint=True)


def test_a_new_run_does_not_mix_with_an_old_one(interrupted):
    with pytest.raises(CheckpointError, match="holds checkpoints of an earlier run"):
        trainer_for(interrupted).train()


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint to go on from"):
        trainer_for(tmp_path).train(resume_from_checkpoint=True)


def test_a_stock_checkpoint_is_not_taken(tmp_path):
    """It has no hashes: a flipped bit in it would be loaded in silence."""
    (tmp_path / "stock" / "checkpoint-2").mkdir(parents=True)
    trainer = trainer_for(tmp_path / "run")
    with pytest.raises(CheckpointError, match="not written by tvd-gen"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "stock" / "checkpoint-2"))


def test_another_model_is_not_filled_with_the_weights(interrupted):
    trainer = trainer_for(interrupted)
    trainer.model.extra = torch.nn.Linear(1, 1, bias=False)
    with pytest.raises(CheckpointError, match="parameters: was"):
        trainer.train(resume_from_checkpoint=True)
    trainer.identity = lambda: Store(interrupted).check(6)["identity"]
    with pytest.raises(CheckpointError, match=r"of another model: extra\.weight"):
        trainer.train(resume_from_checkpoint=True)


def test_the_newest_whole_checkpoint_is_taken_and_the_broken_ones_named(interrupted):
    whole = trainer_for(interrupted.parent / "whole")
    whole.train()
    path = Store(interrupted).path(6) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (Store(interrupted).path(4) / "optimizer.pt").unlink()
    said = []
    trainer = trainer_for(interrupted, process=3)
    trainer.say = said.append
    trainer.train(resume_from_checkpoint=True)
    assert "step-000006: model.safetensors has been altered" in said[0]
    assert "step-000004: optimizer.pt is missing" in said[1]
    assert differences(end(whole), end(trainer)) == []
    assert Store(interrupted).check(6), "made again on the way"


class Payload:
    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


@pytest.mark.parametrize(
    "file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "progress_0.pt", "model.safetensors"]
)
@pytest.mark.parametrize("form", ["zip", "pickle"])
def test_a_hostile_checkpoint_runs_nothing(file, form, interrupted):
    """Whoever can write a checkpoint can hash it too."""
    folder = Store(interrupted).path(6)
    facts = verify(folder)
    sentinel = interrupted / "executed"
    if form == "zip":
        torch.save(Payload(sentinel), folder / file)
    else:
        (folder / file).write_bytes(pickle.dumps(Payload(sentinel)))
    (folder / MANIFEST).unlink()
    seal(folder, step=6, identity=facts["identity"], versions=facts["versions"])
    with pytest.raises(CheckpointError, match=r"step-000006"):
        trainer_for(interrupted).train(resume_from_checkpoint=True)
    assert not sentinel.exists()


def test_no_pickle_is_left_in_a_checkpoint(interrupted):
    """Nothing that only an unsafe load could read."""
    names = {path.name for path in Store(interrupted).path(6).iterdir()}
    assert "training_args.bin" not in names
    for name in names:
        if name.endswith((".pt", ".pth")) and name != "rng_state.pth":
            torch.load(Store(interrupted).path(6) / name, weights_only=True)


# Signals -----------------------------------------------------------------------------------------


class Send(TrainerCallback):
    """Sends a signal to this process at a moment of a step."""

    def __init__(self, number, step, moment):
        self.number, self.step, self.moment = number, step, moment

    def _at(self, moment, state):
        if moment == self.moment and state.global_step == self.step:
            self.moment = None  # a second one would end this process
            os.kill(os.getpid(), self.number)

    def on_step_begin(self, args, state, control, **_):
        self._at("begin", state)

    def on_prediction_step(self, args, state, control, **_):
        self._at("evaluation", state)

    def on_log(self, args, state, control, **_):
        self._at("log", state)

    def on_save(self, args, state, control, **_):
        self._at("save", state)

    def on_epoch_end(self, args, state, control, **_):
        self._at("epoch", state)


SIGNALLED = {"eval_strategy": "epoch", "save_steps": 5, "max_steps": 23, "logging_steps": 4}
SIGNALLED |= {"per_device_eval_batch_size": 4}
MOMENTS = [
    ("begin", 0), ("begin", 7), ("begin", 9), ("begin", 22), ("evaluation", 10), ("evaluation", 20),
    ("evaluation", 23), ("log", 8), ("save", 5), ("save", 10), ("epoch", 10), ("epoch", 23),
]  # fmt: skip


@pytest.fixture(scope="module")
def signalled(tmp_path_factory):
    whole = trainer_for(tmp_path_factory.mktemp("whole"), **SIGNALLED)
    whole.train()
    return end(whole)


@pytest.mark.parametrize(
    ("moment", "step", "number"),
    [(*each, signal.SIGTERM) for each in MOMENTS] + [(*MOMENTS[0], signal.SIGINT)],
)
def test_a_signal_saves_and_the_resumed_run_is_exact(number, moment, step, signalled, tmp_path):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"{number.name}: stopped at step") as caught:
        trainer_for(tmp_path, Send(number, step, moment), **SIGNALLED).train()
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    last = Store(tmp_path).steps()[-1]
    assert last in (step, step + 1), "at most one step after the signal"
    resumed = trainer_for(tmp_path, process=4, **SIGNALLED)
    resumed.train(resume_from_checkpoint=True)
    assert differences(signalled, end(resumed)) == []


@pytest.mark.parametrize("moment", [("begin", 7), ("evaluation", 8)])
def test_a_signal_before_the_last_evaluation_leaves_the_best_model_the_best(moment, tmp_path):
    """The evaluation that a resumed run catches up on may find the best step; no checkpoint follows
    it that would say so, and the weights of an earlier one were taken."""
    case = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "max_steps": 8,
        "learning_rate": 1e-3,
        **BEST,
    }
    whole = trainer_for(tmp_path / "whole", **case)
    whole.train()
    assert whole.state.best_global_step == 8
    with pytest.raises(Stopped):
        trainer_for(tmp_path / "run", Send(signal.SIGTERM, moment[1], moment[0]), **case).train()
    resumed = trainer_for(tmp_path / "run", process=3, **case)
    resumed.train(resume_from_checkpoint=True)
    assert differences(end(whole), end(resumed)) == []


def test_no_whole_checkpoint_is_written_over(tmp_path, monkeypatch):
    """Between its removal and the renaming of the next there would be none."""
    saved = []

    def recorded(final):
        saved.append(final.name)
        return staged(final)

    monkeypatch.setattr(exact, "staged", recorded)
    with pytest.raises(Stopped):
        trainer_for(tmp_path, Send(signal.SIGTERM, 10, "save"), **SIGNALLED).train()
    trainer_for(tmp_path, **SIGNALLED).train(resume_from_checkpoint=True)
    assert "step-000010" in saved
    assert len(saved) == len({*saved})


def test_a_second_signal_stops_at_once(tmp_path):
    """Whoever asks twice does not want to wait for the end of a long step."""

    class Twice(Send):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)

    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            trainer_for(tmp_path, Twice(signal.SIGTERM, None, None)).train()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    assert Store(tmp_path).steps() == [2, 4], "step 6 was not waited for"
    assert Store(tmp_path).newest(pytest.fail)


TRUNCATION = LossTruncation(drop=0.4, min_count=8, window=8)
REMEMBERING = {
    "loss truncation": {"objective": TRUNCATION},
    "an average's weights": {"weights_from": "ema", "weights_decay": 0.9},
    "a lagging copy's weights": {"weights_from": "lagged", "weights_every": 3},
}


@pytest.mark.parametrize("remembered", REMEMBERING.values(), ids=REMEMBERING)
def test_what_an_objective_remembers_goes_on(remembered, tmp_path, monkeypatch):
    whole = trainer_for(tmp_path / "whole", **remembered)
    whole.train()
    ends = []
    for forget in (False, True):
        folder = tmp_path / str(forget)
        stopped = trainer_for(folder, StopAt(7), **remembered)
        with pytest.raises(KeyboardInterrupt):
            stopped.train()
        resumed = trainer_for(folder, process=3, **remembered)
        if forget:
            load = ObjectiveTrainer.load_progress

            def forgetful(self, progress, load=load):
                load(self, progress | {"objective": {}, "old": None})

            monkeypatch.setattr(ObjectiveTrainer, "load_progress", forgetful)
        resumed.train(resume_from_checkpoint=True)
        ends.append(differences(end(whole), end(resumed)))
    assert ends[0] == []
    assert ends[1], "the comparison can fail"


def test_a_step_that_is_left_out_leaves_no_trace_in_what_is_remembered(tmp_path):
    seen, weights = [], []

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, **_):
            seen.append(int(trainer._state.get("seen", 0)))
            if trainer._old is not None:
                weights.append(next(trainer._old.model.parameters()).sum().item())

    for options in REMEMBERING["loss truncation"], REMEMBERING["an average's weights"]:
        options = {**options, "max_skipped_steps": 2, "logging_steps": 1}
        trainer = trainer_for(tmp_path / str(len(seen)), Break(4), Watch(), **options)
        trainer.train()
    assert seen[3] == seen[2] != seen[4]
    assert weights[3] == weights[2] != weights[4]


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    """nohup means it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trainer = trainer_for(tmp_path, Send(signal.SIGINT, 3, "begin"))
    trainer.train()
    assert trainer.state.global_step == 13


def test_signals_may_be_left_to_others(tmp_path):
    trainer = trainer_for(tmp_path, Send(signal.SIGINT, 3, "begin"))
    trainer.stop_signals = ()
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


# Numbers -----------------------------------------------------------------------------------------


class Break(TrainerCallback):
    """Makes a gradient of the step infinite, once each step asked for."""

    def __init__(self, *steps):
        self.steps, self.hooks = set(steps), []

    def on_step_begin(self, args, state, control, model=None, **_):
        for hook in self.hooks:
            hook.remove()
        weight = model.transformer.wte.weight
        if state.global_step + 1 in self.steps:
            self.hooks = [weight.register_hook(lambda grad: grad * math.inf)]


def test_an_infinite_gradient_stops_the_run_before_the_update(tmp_path):
    """The stock trainer goes on with weights of nan, and logs a loss of 0."""
    trainer = trainer_for(tmp_path, Break(6), gradient_accumulation_steps=2)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    text = str(caught.value)
    assert "step 6: the gradient's norm is" in text
    assert "no weight was touched" in text
    assert str(Store(tmp_path).path(4)) in text
    assert "(rows: row " in text
    assert "more)" not in text, "eight rows are shown"
    assert trainer.state.global_step == 5
    good = trainer_for(tmp_path / "good", StopAt(5), gradient_accumulation_steps=2)
    with pytest.raises(KeyboardInterrupt):
        good.train()
    assert all(map(torch.equal, good.model.parameters(), trainer.model.parameters()))


def test_rows_of_a_broken_loss_are_named(tmp_path):
    trainer = trainer_for(tmp_path, train_dataset=data(count=8))
    trainer.place = lambda row: f"train.jsonl:{row + 1}"
    step = trainer.compute_loss

    def broken(model, inputs, *args, **kwargs):
        assert "row" not in inputs, "the model would not know it"
        loss = step(model, inputs, *args, **kwargs)
        return loss * math.nan if trainer.state.global_step == 2 else loss

    trainer.compute_loss = broken
    with pytest.raises(NonFiniteError, match=r"step 3: the loss is nan \(rows: train\.jsonl:\d"):
        trainer.train()


def test_a_step_may_be_left_out_and_is_counted(tmp_path):
    """As if its batch had not been there: no update, no decay, no loss in the log."""
    steps = []
    trainer = trainer_for(tmp_path, Break(3, 6), max_skipped_steps=2, logging_steps=1)
    before = {}

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **_):
            before[state.global_step + 1] = model.transformer.wte.weight.detach().clone()

        def on_step_end(self, args, state, control, model=None, **_):
            same = torch.equal(before[state.global_step], model.transformer.wte.weight)
            steps.extend([state.global_step] * same)

    trainer.add_callback(Watch())
    trainer.train()
    assert steps == [3, 6]
    rows = {row["step"]: row for row in trainer.state.log_history if "loss" in row}
    assert math.isnan(rows[3]["loss"])
    assert "nll" not in rows[3], "there was no step to speak of"
    assert (rows[2].get("skipped_steps"), rows[5]["skipped_steps"]) == (None, 1)
    assert rows[13]["skipped_steps"] == 2
    third = trainer_for(tmp_path / "b", Break(3, 6, 9), max_skipped_steps=2)
    with pytest.raises(NonFiniteError, match=r"step 9: .*\(after 2 skipped\)"):
        third.train()


def test_the_mean_loss_is_over_the_steps_that_were_made(tmp_path):
    one = trainer_for(tmp_path / "a", Break(2), max_skipped_steps=1, max_steps=3, logging_steps=1)
    one.train()
    three = trainer_for(tmp_path / "b", Break(2), max_skipped_steps=1, max_steps=3, logging_steps=3)
    three.train()
    losses = [row["loss"] for row in one.state.log_history if "loss" in row]
    assert three.state.log_history[0]["loss"] == pytest.approx((losses[0] + losses[2]) / 2)


def test_a_skipped_step_survives_a_resumption(tmp_path):
    case = {"max_skipped_steps": 3}
    whole = trainer_for(tmp_path / "whole", Break(3, 8), **case)
    whole.train()
    resumed = stopped_and_resumed(tmp_path / "run", (5,), lambda: [Break(3, 8)], **case)
    assert differences(end(whole), end(resumed)) == []


def test_a_signal_after_the_last_step_is_told(tmp_path):
    class Late(TrainerCallback):
        def on_train_end(self, args, state, control, **_):
            os.kill(os.getpid(), signal.SIGTERM)

    said = []
    trainer = trainer_for(tmp_path, Late())
    trainer.say = said.append
    trainer.train()
    assert said == ["SIGTERM came after the last step; the run is done"]


def test_a_best_model_that_never_was_is_not_made_up(tmp_path):
    """The stock trainer keeps the last weights and says nothing."""
    trainer = trainer_for(tmp_path, eval_strategy="steps", eval_steps=2, **BEST)
    evaluate = trainer.evaluate
    trainer.evaluate = lambda **kwargs: evaluate(**kwargs) | {"eval_nll": math.nan}
    with pytest.raises(NonFiniteError, match="no evaluation gave a finite nll"):
        trainer.train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enable_jit_checkpoint": True}, "exact place"),
        ({"save_only_model": True}, "no run can go on from"),
        ({"ignore_data_skip": True}, "resume with other rows"),
        ({"auto_find_batch_size": True}, "resume with other rows"),
        ({"max_skipped_steps": -1}, "max_skipped_steps"),
    ],
)
def test_settings_that_would_lose_a_run_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer_for(tmp_path, **changes)
