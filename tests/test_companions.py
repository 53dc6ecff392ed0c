"""Objectives of every level in the trainers, and the models that they look at beside."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from families import arguments, collate, rows, tiny_model
from test_exact import Break
from test_trainer import assert_same_step, own_logits, trained, trainer_for
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, Trainer, TrainerCallback

from tvd_gen import ObjectiveTrainer, TaiLr, objective_loss
from tvd_gen.models.lstm import LSTMForSeq2SeqLM, LSTMSeq2SeqConfig
from tvd_gen.objectives import (
    ASFT,
    EAFT,
    GEM,
    GOLD,
    GOLDP,
    OBJECTIVES,
    ConfidencePenalty,
    D2GPo,
    LossTruncation,
    SequenceObjective,
    Sequences,
    TokenObjective,
    Unlikelihood,
)
from tvd_gen.schedules import Constant, Linear
from tvd_gen.trainer.companions import follow, frozen_copy
from tvd_gen.trainer.conventions import IGNORE, take_targets
from tvd_gen.trainer.interception import LossRequest

SPLIT = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
LEVELS = [
    *(LossTruncation(0.4, 0, 8), GOLD(), ConfidencePenalty(), Unlikelihood(), D2GPo()),
    *(GOLDP(), GEM(), EAFT(), ASFT()),
]
OPTIONS = {
    "eval": {"weights_from": "eval"},
    "ema": {"weights_from": "ema", "weights_decay": 0.5},
    "lagged": {"weights_from": "lagged", "weights_every": 2},
    "normalized": {"normalize_weights": True},
}


def test_the_levels_are_every_objective_above_the_tokens():
    ours = {cls for cls in OBJECTIVES.values() if not issubclass(cls, TokenObjective)}
    assert {type(objective) for objective in LEVELS} == ours


def three_steps(model, folder, trainer, **changes):
    """(last loss, last gradient norm, weights) after three steps."""
    made = trainer_for(model, folder, trainer=trainer, max_steps=3, **changes)
    made.train()
    last = [row for row in made.state.log_history if "loss" in row][-1]
    return last["loss"], last["grad_norm"], made.model.state_dict()


@pytest.mark.parametrize(
    ("family", "objective"),
    [*(("gpt2", each) for each in LEVELS), *(("bart", each) for each in LEVELS[:4])],
    ids=repr,
)
def test_accumulation_and_padding_change_nothing(objective, family, tmp_path):
    """A quantile of half a batch, or a neighbour taken for context, would."""
    model, trainer = tiny_model(family), {"objective": objective}
    once = three_steps(model, tmp_path, trainer)
    assert_same_step(once, three_steps(model, tmp_path, trainer, **SPLIT))
    assert_same_step(once, three_steps(model, tmp_path, trainer, extra=5))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_accumulation_changes_no_weights_of_other_models(options, tmp_path):
    model = tiny_model("gpt2")
    once = three_steps(model, tmp_path, options)
    assert_same_step(once, three_steps(model, tmp_path, options, **SPLIT))
    plain = three_steps(model, tmp_path, {})
    same = all(torch.equal(once[2][name], plain[2][name]) for name in plain[2])
    assert same == (options == OPTIONS["eval"])  # a model without dropout is its own


@pytest.mark.parametrize("backend", ["auto", "logits"])
@pytest.mark.parametrize("objective", LEVELS, ids=repr)
def test_every_objective_trains_under_autocast(objective, backend, tmp_path):
    """What this model's head reads is in half precision there, its weights are not."""

    def lstm(seed):
        torch.manual_seed(seed)
        sizes = {"vocab_size": 97, "embedding_size": 16, "hidden_size": 16}
        return LSTMForSeq2SeqLM(LSTMSeq2SeqConfig(**sizes, dropout=0.0))

    options = {"objective": objective, "head_backend": backend}
    if objective.looks_at_reference():
        options["reference"] = lstm(1)
    losses = [
        trained(lstm(0), tmp_path, trainer=options, max_steps=1, bf16=bf16)[0]
        for bf16 in (False, True)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


def batch_of(model):
    return collate(rows(model.config.is_encoder_decoder))


def dense_gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def ours(trainer, batch):
    loss = trainer.compute_loss(trainer.model, batch)
    return loss, dense_gradients(trainer.model, loss)


def other_model(family):
    return tiny_model(family, seed=5)


def previous_of(targets):
    """By loops."""
    length = targets.shape[1]
    out = torch.full((*targets.shape, length), -1)
    for i, row in enumerate(targets.tolist()):
        for t in range(length):
            seen = [token for token in row[:t] if token != IGNORE]
            out[i, t, : len(seen)] = torch.tensor(seen, dtype=torch.long)
    return out


@pytest.mark.parametrize("backend", ["auto", "logits"])
@pytest.mark.parametrize("family", ["gpt2", "bart", "gemma2"])
@pytest.mark.parametrize("objective", [Unlikelihood(), D2GPo(), ASFT(0.5), GEM()], ids=repr)
def test_distribution_objectives_have_the_gradients_of_the_dense_loss(
    objective, family, backend, tmp_path
):
    reference = other_model(family) if objective.needs & {"reference", "embeddings"} else None
    options = {"objective": objective, "reference": reference, "head_backend": backend}
    trainer = trainer_for(tiny_model(family), tmp_path, trainer=options)
    model, batch = trainer.model, batch_of(trainer.model)
    loss, got = ours(trainer, batch)
    targets, logits = own_logits(model, batch)
    side = {"previous": previous_of(targets)}
    if reference is not None:
        side["reference"] = own_logits(reference.eval(), batch)[1].detach()
        table = reference.get_decoder() if family == "bart" else reference
        side["embeddings"] = table.get_input_embeddings().weight.detach()
    dense = objective_loss(logits, targets, objective, **side)
    torch.testing.assert_close(loss, dense, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got, dense_gradients(model, dense), rtol=1e-3, atol=2e-6)


def target_grid(logits, targets):
    kept = targets != IGNORE
    logp = logits.log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(kept, logp, 0.0), kept


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("family", ["gpt2", "bart"])
@pytest.mark.parametrize("objective", [GOLD(), GOLDP(), LossTruncation(0.4, 0, 8)], ids=repr)
def test_sequence_objectives_have_the_gradients_of_the_dense_loss(
    objective, family, smoothing, tmp_path
):
    reference = other_model(family) if objective.needs else None
    options = {"objective": objective, "reference": reference, "label_smoothing": smoothing}
    trainer = trainer_for(tiny_model(family), tmp_path, trainer=options)
    model, batch = trainer.model, batch_of(trainer.model)
    targets, logits = own_logits(model, batch)
    logp, kept = target_grid(logits, targets)
    anchor, state = None, objective.start()
    if reference is None:  # half of the sequences are dropped
        state["threshold"] = Sequences(logp, kept).means().detach().quantile(0.5)
    else:
        anchor, _ = target_grid(own_logits(reference.eval(), batch)[1].detach(), targets)
    trainer._state = state
    loss, got = ours(trainer, batch)
    dense = objective.loss(Sequences(logp, kept, None, anchor), state).sum() / kept.sum()
    uniform = -logits.log_softmax(-1).mean(-1)[kept].mean()
    dense = (1 - smoothing) * dense + smoothing * uniform
    torch.testing.assert_close(loss, dense, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got, dense_gradients(model, dense), rtol=1e-3, atol=2e-6)


def with_dropout():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0.4
    )
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.data.mul_(3.0) if parameter.dim() > 1 else None
    return model


@dataclass(frozen=True)
class Nothing(SequenceObjective):
    """Every sequence is left out."""

    def loss(self, sequences, state):
        return sequences.logp * 0.0


@dataclass(frozen=True)
class SequenceProbability(SequenceObjective):
    """A user's own: 1 - (geometric mean of p)^k, whose slope is no weight of its value."""

    k: float = 0.5

    def loss(self, sequences, state):
        mean = (1 - torch.exp(-self.k * sequences.means())).unsqueeze(-1)
        return mean * sequences.kept


@pytest.mark.parametrize("backend", ["auto", "logits"])
def test_a_sequence_objective_of_ones_own_has_its_value_and_gradient(backend, tmp_path):
    options = {"objective": SequenceProbability(), "head_backend": backend}
    trainer = trainer_for(tiny_model("bart"), tmp_path, trainer=options)
    model, batch = trainer.model, batch_of(trainer.model)
    loss, got = ours(trainer, batch)
    targets, logits = own_logits(model, batch)
    sequences = Sequences(*target_grid(logits, targets))
    dense = SequenceProbability().loss(sequences, {}).sum() / sequences.kept.sum()
    torch.testing.assert_close(loss, dense, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got, dense_gradients(model, dense), rtol=1e-3, atol=2e-6)


def test_weights_without_dropout_are_those_of_the_model_without_dropout(tmp_path):
    """And the gradient is that of the pass with it."""
    options = {"objective": TaiLr(0.02, 0.2), "weights_from": "eval"}
    trainer = trainer_for(with_dropout(), tmp_path, cls=ObjectiveTrainer, trainer=options)
    model, batch = trainer.model.train(), batch_of(trainer.model)
    with torch.no_grad():
        targets, still = own_logits(copy.deepcopy(model).eval(), batch)
    torch.manual_seed(3)
    loss, got = ours(trainer, batch)
    assert model.training
    torch.manual_seed(3)
    _, logits = own_logits(model, batch)
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    logp, kept = target_grid(still, targets)
    weights = TaiLr(0.02, 0.2).weight(logp) * kept
    dense = (weights.flatten() * nll).sum() / kept.sum()
    torch.testing.assert_close(got, dense_gradients(model, dense), rtol=1e-3, atol=2e-6)
    value = TaiLr(0.02, 0.2).loss(target_grid(logits, targets)[0][kept]).mean()
    torch.testing.assert_close(loss, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_of_another_model_leave_the_loss_and_its_floor_what_they_are(smoothing, tmp_path):
    """Without dropout the model in evaluation mode is the model."""
    found = []
    for source in ("model", "eval"):
        options = {"objective": TaiLr(0.8, 0.3), "weights_from": source}
        options["label_smoothing"] = smoothing
        trainer = trainer_for(tiny_model("gpt2"), tmp_path, trainer=options)
        found.append(trainer.evaluate())
    for name in ("eval_loss", "eval_share_floored", "eval_mean_weight"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-5), name
    assert found[0]["eval_share_floored"] > 0.5


def with_head_adapter(seed=0, **options):
    peft = pytest.importorskip("peft")
    model = tiny_model("llama")
    torch.manual_seed(seed)
    options = {"target_modules": ["lm_head"]} | options
    return peft.get_peft_model(model, peft.LoraConfig(**options))


def test_weights_without_dropout_have_none_in_an_adapter_of_the_head(tmp_path, caplog):
    """The head's product is made later than the body's, when the model trains again."""
    model = with_head_adapter(lora_dropout=0.5, init_lora_weights=False)
    options = {"objective": TaiLr(0.02, 0.2), "weights_from": "eval"}
    trainer = trainer_for(model, tmp_path, cls=ObjectiveTrainer, trainer=options)
    model, batch = trainer.model.train(), batch_of(trainer.model)
    trainer.compute_loss(model, batch)
    assert "own logits" not in caplog.text
    targets, logits = own_logits(copy.deepcopy(model).eval(), batch)
    expected, kept = target_grid(logits, targets)
    inputs = dict(batch)
    request = LossRequest(take_targets(inputs, shift=True), trainer.objective, torch.tensor(1.0))
    look = trainer._old.look(inputs, "auto")
    assert model.training
    assert look.head is not None
    torch.testing.assert_close(look.logp(request, "auto"), expected[kept], rtol=1e-4, atol=1e-5)
    every = look.logits(request)(torch.arange(int(kept.sum())))
    torch.testing.assert_close(every, logits[kept], rtol=1e-4, atol=1e-5)
    assert all(module.training for module in model.modules())


def test_an_adapter_that_adds_nothing_yet_makes_no_other_reference(tmp_path):
    """A run that is started again draws it anew, and could not be gone on with."""
    for target in ("lm_head", "embed_tokens"):
        found = []
        for seed, options in ((1, {}), (2, {}), (2, {"init_lora_weights": False})):
            model = with_head_adapter(seed, target_modules=[target], **options)
            trainer = trainer_for(model, tmp_path, trainer={"objective": ASFT()})
            trainer._make_companions()
            found.append(trainer.identity()["reference"])
        assert found[0] == found[1] != found[2]


def test_where_weights_come_from_is_part_of_a_run(tmp_path):
    each = [{}, *OPTIONS.values(), {"weights_from": "lagged", "weights_every": 3}]
    made = [trainer_for(tiny_model("gpt2"), tmp_path, trainer=options) for options in each]
    identities = [trainer.identity()["weights"] for trainer in made]
    assert len(set(identities)) == len(each)


def test_a_copy_is_made_anew_though_the_step_of_its_turn_is_left_out(tmp_path):
    """Of the model as the step before left it; not one whole period later."""
    seen = {}

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            pairs = zip(trainer.model.parameters(), trainer._old.model.parameters(), strict=True)
            seen[state.global_step] = all(torch.equal(*pair) for pair in pairs)

    options = {"weights_from": "lagged", "weights_every": 3, "max_skipped_steps": 1}
    options["callbacks"] = [Watch(), Break(3)]
    trainer = trainer_for(tiny_model("gpt2"), tmp_path, trainer=options, max_steps=8)
    trainer.train()
    assert trainer.skipped_steps == 1
    assert [step for step, same in seen.items() if same] == [0, 3, 6]


def test_an_average_of_half_precision_is_kept_in_float32():
    """In bfloat16 a thousandth of a difference is rounded away, step by step."""
    model = torch.nn.Linear(8, 8).bfloat16()
    old = frozen_copy(model).float()
    model.weight.data.fill_(1.0)
    begin = (old.weight - 1.0).abs().mean()
    for _ in range(1000):
        follow(old, model, 0.999)
    torch.testing.assert_close((old.weight - 1.0).abs().mean(), begin * 0.999**1000)


def test_a_trainer_averages_in_float32(tmp_path):
    options = {"weights_from": "ema"}
    trainer = trainer_for(tiny_model("gpt2").bfloat16(), tmp_path, trainer=options, max_steps=1)
    trainer.train()
    assert trainer._old.model.dtype == torch.float32


def test_a_step_of_dropped_sequences_alone_is_a_step_of_no_gradient(tmp_path):
    """Also divided by its mean weight, which is 0."""
    options = {"objective": Nothing(), "normalize_weights": True}
    model = tiny_model("gpt2")
    before = {name: each.clone() for name, each in model.state_dict().items()}
    trainer = trainer_for(model, tmp_path, trainer=options, max_steps=2)
    trainer.train()
    torch.testing.assert_close(trainer.model.state_dict(), before, rtol=0, atol=0)


def test_a_schedule_moves_what_a_sequence_objective_remembers_by(tmp_path):
    """Nothing is dropped at the start, nearly all at the end."""
    options = {
        "objective": LossTruncation(0.0, 0, 4),
        "schedules": {"drop": Linear(0.0, 0.9)},
    }
    trainer = trainer_for(
        tiny_model("gpt2"), tmp_path, trainer=options, max_steps=8, logging_steps=1
    )
    trainer.train()
    rows = [row["mean_weight"] for row in trainer.state.log_history if "mean_weight" in row]
    assert rows[0] == 1.0
    assert rows[-1] < 0.5


def test_a_reference_of_another_vocabulary_is_refused(tmp_path):
    for objective in (ASFT(), GOLD()):
        other = tiny_model("gpt2", seed=5)
        other.resize_token_embeddings(90)
        options = {"objective": objective, "reference": other}
        with pytest.raises(ValueError, match="90 tokens"):
            trainer_for(tiny_model("gpt2"), tmp_path, trainer=options)
    other.resize_token_embeddings(120)  # GOLD looks at targets alone
    trainer_for(tiny_model("gpt2"), tmp_path, trainer={"objective": GOLD(), "reference": other})
    with pytest.raises(ValueError, match="120 tokens"):
        trainer_for(tiny_model("gpt2"), tmp_path, trainer={"objective": ASFT(), "reference": other})


@pytest.mark.parametrize(("family", "other"), [("gpt2", "bart"), ("bart", "gpt2")])
def test_a_reference_of_another_kind_is_refused(family, other, tmp_path):
    """A decoder swallows decoder_input_ids; its states at the source were read as the target's."""
    options = {"objective": ASFT(), "reference": tiny_model(other)}
    with pytest.raises(ValueError, match=r"the reference model is an? .*, the trained one an? "):
        trainer_for(tiny_model(family), tmp_path, trainer=options)


@pytest.mark.parametrize("other", [GPT2Model(GPT2Config(n_layer=1)), torch.nn.Linear(1, 1), "dir"])
def test_what_is_no_language_model_is_no_reference(other, tmp_path):
    options = {"objective": GOLD(), "reference": other}
    with pytest.raises(ValueError, match="must be a language model of transformers, not "):
        trainer_for(tiny_model("gpt2"), tmp_path, trainer=options)


def test_a_mixture_of_experts_own_loss_is_not_normalized(tmp_path):
    model = tiny_model("mixtral")
    model.config.output_router_logits = True
    with pytest.raises(ValueError, match="weights of -log p: output_router_logits"):
        trainer_for(model, tmp_path, trainer={"normalize_weights": True})


def test_a_copy_has_no_hooks(tmp_path):
    trainer = trainer_for(tiny_model("gpt2"), tmp_path, trainer={"objective": ASFT()}, max_steps=1)
    trainer.compute_loss(trainer.model, batch_of(trainer.model))
    trainer.train()
    copied = [*trainer._reference.model.modules()]
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in copied)


def test_the_trained_model_is_no_reference(tmp_path):
    """It would move with it: ASFT's anchor would hold nothing."""
    model = tiny_model("gpt2")
    data = rows(False)
    with pytest.raises(ValueError, match="parameters that are trained, and would move"):
        ObjectiveTrainer(
            model, arguments(tmp_path), train_dataset=data, objective=ASFT(), reference=model
        )


def test_a_normalized_gradient_is_divided_by_the_mean_weight(tmp_path):
    model, plain, normalized = tiny_model("gpt2"), {}, {"normalize_weights": True}
    for clip in (0.0, 1.0):
        settings = {"max_grad_norm": clip, "max_steps": 1}
        loss, norm, _ = trained(model, tmp_path, trainer=plain, **settings)
        made = trainer_for(model, tmp_path, trainer=normalized, **settings)
        made.train()
        row = made.state.log_history[0]
        assert row["loss"] == pytest.approx(loss, rel=1e-6)
        assert row["grad_norm"] == pytest.approx(norm / row["mean_weight"], rel=1e-4)


def test_the_objectives_that_can_be_normalized_have_the_gradient_of_weighted_nll():
    """w (p - onehot) on the logits, where w is what the objective says its weight is."""
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 9, dtype=torch.float64), torch.arange(6)
    side = {"previous": torch.full((6, 1), -1), "reference": torch.randn(6, 9).double()}
    side["embeddings"] = torch.randn(9, 4).double()
    side["previous"][:, 0] = (targets + 3) % 9
    for objective in (*LEVELS, TaiLr(0.3, 0.2)):
        if isinstance(objective, SequenceObjective):
            continue
        leaf = logits.clone().requires_grad_()
        objective_loss(leaf, targets, objective, **side).backward()
        onehot = F.one_hot(targets, 9)
        unit = leaf.detach().softmax(-1) - onehot
        ratio = leaf.grad / unit
        weighted = torch.allclose(ratio, ratio[:, :1].expand_as(ratio))
        assert weighted == objective.is_weighted_nll, objective


def test_old_weights_follow_the_model_as_they_should(tmp_path):
    """An average that starts anew, or a copy of the wrong step, would still train."""
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            pairs = (trainer.model, trainer._old.model)
            seen.append([next(m.parameters()).detach().clone() for m in pairs])

    for options in OPTIONS["ema"], OPTIONS["lagged"]:
        seen.clear()
        options = options | {"callbacks": [Watch()]}
        trainer = trainer_for(tiny_model("gpt2"), tmp_path, trainer=options, max_steps=5)
        trainer.train()
        models, old = zip(*seen, strict=True)
        if options["weights_from"] == "lagged":
            assert all(torch.equal(old[i], models[i // 2 * 2]) for i in range(5))
            continue
        expected = models[0]
        for i in range(1, 5):
            expected = 0.5 * expected + 0.5 * models[i]
            torch.testing.assert_close(old[i], expected, rtol=1e-5, atol=1e-6)


def test_the_reference_stays_as_it_was(tmp_path):
    model = tiny_model("gpt2")
    trainer = trainer_for(model, tmp_path, trainer={"objective": ASFT()}, max_steps=3)
    trainer.train()
    frozen = trainer._reference.model
    pairs = zip(frozen.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(left, right) and not left.requires_grad for left, right in pairs)


REFUSED = [
    ({"objective": GEM(), "row_budget": 0.1}, "row_budget is for token objectives"),
    ({"objective": EAFT(), "schedules": {"k": Linear(5.0, 9.0)}}, "whole number"),
    ({"objective": GEM(), "weights_from": "ema"}, "has no weights that could come from"),
    ({"objective": "loss_truncation", "weights_from": "eval"}, "has no weights"),
    ({"weights_from": "elsewhere"}, "weights_from must be one of model, eval"),
    ({"weights_from": "lagged", "weights_every": 0}, "weights_every must be at least 1"),
    ({"weights_from": "ema", "weights_decay": 1.0}, r"weights_decay must lie in \[0, 1\)"),
    ({"reference": torch.nn.Linear(1, 1)}, "looks at no reference model"),
    ({"objective": "ce", "weights_from": "ema"}, "CrossEntropy.. has no weights"),
    ({"normalize_weights": True, "label_smoothing": 0.1}, "weights of -log p: label smoothing"),
    ({"normalize_weights": True, "z_loss": 1e-4}, "weights of -log p: z_loss"),
    ({"normalize_weights": True, "objective": ASFT()}, r"weights of -log p: ASFT\("),
    ({"objective": LossTruncation(), "schedules": {"window": Constant(2**25)}}, "window must lie"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED)
def test_settings_without_effect_are_refused(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        trainer_for(tiny_model("gpt2"), tmp_path, trainer=options)


@pytest.mark.parametrize("kind", ["fsdp", "deepspeed"])
@pytest.mark.parametrize(
    "options", [{"weights_from": "ema"}, {"normalize_weights": True}, {"objective": ASFT()}]
)
def test_other_models_beside_one_that_is_split_are_refused(kind, options, monkeypatch, tmp_path):
    """Neither library can be had on one CPU process: the stock trainer is made to say it is on."""
    stock = Trainer.create_accelerator_and_postprocess

    def split(trainer):
        stock(trainer)
        setattr(trainer, f"is_{kind}_enabled", True)

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", split)
    with pytest.raises(ValueError, match="FSDP and DeepSpeed split a model"):
        trainer_for(tiny_model("gpt2"), tmp_path, trainer=options)
    trainer_for(tiny_model("gpt2"), tmp_path)


def test_a_run_with_another_reference_is_another_run(tmp_path):
    identities = []
    for seed in (1, 1, 2):
        options = {"objective": ASFT(), "reference": tiny_model("gpt2", seed=seed)}
        trainer = trainer_for(tiny_model("gpt2"), tmp_path, trainer=options)
        trainer._make_companions()
        identities.append(trainer.identity()["reference"])
    assert identities[0] == identities[1] != identities[2]


def test_an_evaluation_looks_at_the_reference_too(tmp_path):
    options = {"objective": ASFT(0.5), "reference": other_model("gpt2")}
    trainer = trainer_for(tiny_model("gpt2"), tmp_path, trainer=options)
    found = trainer.evaluate()
    model = trainer.model.eval()
    targets, logits = own_logits(model, batch_of(model))
    anchor = own_logits(options["reference"].eval(), batch_of(model))[1]
    expected = objective_loss(logits, targets, ASFT(0.5), reference=anchor)
    assert found["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
