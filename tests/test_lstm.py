"""The LSTM encoder-decoder: one model whether it reads a target whole, step by step, or in beams.

The trainer's laws for it are in test_trainer.py, with those of all families.
"""

import pytest
import torch
import torch.nn.functional as F
from families import VOCAB, tiny_model
from transformers import AutoModelForSeq2SeqLM, Seq2SeqTrainer, Seq2SeqTrainingArguments

from tvd_gen.models.lstm import CACHE, LSTMForSeq2SeqLM, LSTMSeq2SeqConfig

SOURCE = torch.tensor([[5, 9, 7, 2], [8, 2, 0, 0], [11, 6, 2, 0]])
MASK = (SOURCE != 0).long()
TARGET = torch.tensor([[2, 30, 41, 52, 63], [2, 64, 8, 9, 10], [2, 3, 3, 5, 5]])


def two_layers(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "embedding_size": 20, "hidden_size": 24, "num_hidden_layers": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    return LSTMForSeq2SeqLM(LSTMSeq2SeqConfig(**sizes | ids | {"init_range": 0.5} | changes)).eval()


@pytest.fixture(params=["one layer", "two layers"])
def model(request):
    return tiny_model("lstm_seq2seq").eval() if request.param == "one layer" else two_layers()


def logits(model, target=TARGET, source=SOURCE, mask=MASK, **options):
    return model(input_ids=source, attention_mask=mask, decoder_input_ids=target, **options).logits


def assert_same(one, other):
    """In every bit of the weights; products may be rounded by where in memory a weight lies."""
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(logits(one), logits(other))


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_step_by_step_it_is_the_model_that_was_trained(model, name):
    """Generation would else sample from another distribution than the one that is measured. It
    gives the state by the name `cache` from transformers 5.24 on."""
    state, steps = None, []
    for token in TARGET.unbind(1):
        out = model(
            input_ids=SOURCE, attention_mask=MASK, decoder_input_ids=token.unsqueeze(1),
            use_cache=True, **{name: state},
        )  # fmt: skip
        state = out[CACHE]
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), logits(model))
    assert state.get_seq_length() == TARGET.shape[1]


@pytest.mark.parametrize("name", ["inputs_embeds", "past_states"])
def test_what_it_would_pass_over_is_refused(model, name):
    """A state under a name that it did not know was once passed over, and generation was wrong."""
    with pytest.raises(TypeError, match=name):
        logits(model, **{name: torch.zeros(3)})
    logits(model, **{name: None})
    with pytest.raises(TypeError, match="return_dict"):
        logits(model, return_dict=False)
    with pytest.raises(TypeError):
        model.encoder(SOURCE, MASK, **{name: torch.zeros(3)})
    state = model(SOURCE, MASK, TARGET, use_cache=True)[CACHE]
    with pytest.raises(TypeError, match="not both"):
        logits(model, cache=state, past_key_values=state)


def written_out(model, target=TARGET):
    """Logits by the textbook: torch's own cells, nothing computed for all steps at once."""
    decoder = model.decoder
    source = model.encoder(SOURCE, MASK)
    hidden, cell = list(source.hidden.unbind(1)), list(source.cell.unbind(1))
    feed, found = torch.zeros_like(hidden[0]), []
    for token in target.unbind(1):
        below = torch.cat([decoder.embed_tokens(token), feed], 1)
        for i, layer in enumerate(decoder.cells):
            hidden[i], cell[i] = layer(below, (hidden[i], cell[i]))
            below = hidden[i]
        query = F.linear(below, decoder.attention_in)
        scores = torch.einsum("bsh,bh->bs", source.last_hidden_state, query)
        weights = scores.masked_fill(MASK == 0, -torch.inf).softmax(1)
        read = torch.einsum("bs,bsh->bh", weights, source.last_hidden_state)
        feed = F.linear(torch.cat([read, below], 1), decoder.attention_out).tanh()
        found.append(model.lm_head(feed))
    return torch.stack(found, 1)


def gradients(model, logits):
    model.zero_grad()
    (logits * torch.sin(torch.arange(logits.numel()).view_as(logits) * 0.7)).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def test_it_is_fairseqs_decoder_in_torchs_own_cells(model):
    """Parity in values and gradients with the same written out, step by step."""
    model.double()
    torch.testing.assert_close(logits(model), written_out(model))
    ours, torchs = gradients(model, logits(model)), gradients(model, written_out(model))
    torch.testing.assert_close(ours, torchs)


def test_padding_of_sources_and_targets_changes_nothing(model):
    wide, mask = F.pad(SOURCE, (0, 3), value=17), F.pad(MASK, (0, 3))
    torch.testing.assert_close(logits(model, source=wide, mask=mask), logits(model))
    alone = logits(model, TARGET[1:2], SOURCE[1:2, :2], MASK[1:2, :2])
    torch.testing.assert_close(alone, logits(model)[1:2])
    longer = F.pad(TARGET, (0, 2), value=0)
    torch.testing.assert_close(logits(model, longer)[:, : TARGET.shape[1]], logits(model))


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_generation_is_argmax_step_by_step(model, use_cache):
    ids = torch.full((3, 1), 2)
    for _ in range(6):
        ids = torch.cat([ids, logits(model, ids)[:, -1:].argmax(2)], 1)
    made = model.generate(
        input_ids=SOURCE, attention_mask=MASK, max_new_tokens=6, do_sample=False,
        eos_token_id=None, use_cache=use_cache,
    )  # fmt: skip
    assert made.tolist() == ids.tolist()


def test_a_beam_as_wide_as_the_tree_finds_the_best_continuation(model):
    """A cache that is not reordered with its beams writes on from another beam's words."""
    settings = {"max_new_tokens": 2, "eos_token_id": None, "do_sample": False}
    made = model.generate(input_ids=SOURCE, attention_mask=MASK, num_beams=VOCAB, **settings)
    start = torch.full((3, 1), 2)
    first = logits(model, start)[:, -1].log_softmax(1)
    second = torch.stack(
        [
            logits(model, F.pad(start, (0, 1), value=token))[:, -1].log_softmax(1)
            for token in range(VOCAB)
        ],
        1,
    )
    best = (first.unsqueeze(2) + second).flatten(1).argmax(1)
    assert made[:, 1:].tolist() == [[i // VOCAB, i % VOCAB] for i in best.tolist()]


def test_sampling_draws_from_the_logits():
    model = tiny_model("lstm_seq2seq").eval()
    torch.manual_seed(0)
    rows = 4000
    made = model.generate(
        input_ids=SOURCE[:1].repeat(rows, 1), attention_mask=MASK[:1].repeat(rows, 1),
        max_new_tokens=1, do_sample=True, top_k=0,
    )  # fmt: skip
    p = logits(model, TARGET[:1, :1], SOURCE[:1], MASK[:1])[0, -1].softmax(0)
    share = torch.bincount(made[:, 1], minlength=VOCAB) / rows
    assert (share - p).abs().sum() / 2 < 0.1


def test_what_is_saved_is_what_is_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert type(again) is LSTMForSeq2SeqLM
    assert_same(again, model)


def test_new_words_are_read_by_both_sides_and_saved(model, tmp_path):
    """The encoder has embeddings of its own."""
    before = logits(model)
    model.resize_token_embeddings(VOCAB + 3)
    assert torch.equal(logits(model)[..., :VOCAB], before)
    source = torch.full_like(SOURCE, VOCAB + 2)
    model.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert_same(again, model)
    torch.testing.assert_close(logits(again, source=source), logits(model, source=source))


def test_what_it_cannot_do_is_one_line(model):
    with pytest.raises(ValueError, match="no shared embeddings"):
        two_layers(tie_word_embeddings=True)
    mask = MASK.clone()
    mask[1] = 0
    with pytest.raises(ValueError, match="a source of the batch has no tokens"):
        logits(model, mask=mask)


def test_every_weight_starts_uniform_but_the_padding_row():
    """fairseq's start; torch's own would be another for every layer."""
    model = two_layers(init_range=0.1)
    for name, weight in model.named_parameters():
        assert weight.abs().max() <= 0.1, name
        if weight.numel() > 50:
            assert weight.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.2), name
    assert not model.decoder.embed_tokens.weight[0].any()
    assert not model.encoder.embed_tokens.weight[0].any()


def test_dropout_falls_on_embeddings_and_outputs_in_training_alone():
    model = two_layers(dropout=0.5)
    assert torch.equal(logits(model), logits(model))
    model.train()
    first, second = logits(model), logits(model)
    assert not torch.allclose(first, second)
    model.decoder.dropout = model.encoder.dropout = model.encoder.lstm.dropout = 0.0
    assert torch.equal(logits(model), logits(model))


def test_labels_give_the_token_mean():
    """For those who call the model without a trainer of ours."""
    model = tiny_model("lstm_seq2seq").eval()
    labels = F.pad(TARGET[:, 1:], (0, 1), value=2).masked_fill(MASK[:, [0, 1, 2, 3, 3]] == 0, -100)
    out = model(input_ids=SOURCE, attention_mask=MASK, labels=labels)
    expected = F.cross_entropy(logits(model, model.prepare_decoder_input_ids_from_labels(labels))
                               .flatten(0, 1), labels.flatten())  # fmt: skip
    assert out.loss.item() == pytest.approx(expected.item())
    assert model.prepare_decoder_input_ids_from_labels(labels)[1].tolist() == [2, 64, 8, 0, 0]


def test_the_stock_trainer_accumulates_the_token_mean(tmp_path):
    """It leaves the division to a model that takes any argument: the loss was the sum of the
    micro-batches' means, three times as large."""
    model = tiny_model("lstm_seq2seq")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    labels = TARGET[:, 1:].masked_fill(torch.arange(4) > torch.tensor([[3], [1], [2]]), -100)
    inputs = {"input_ids": SOURCE, "attention_mask": MASK, "labels": labels}
    examples = [{name: each[i] for name, each in inputs.items()} for i in range(3)]
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path), per_device_train_batch_size=1, gradient_accumulation_steps=3,
        max_steps=1, optim="sgd", learning_rate=1.0, max_grad_norm=0.0, use_cpu=True,
        report_to="none", save_strategy="no", lr_scheduler_type="constant", disable_tqdm=True,
    )  # fmt: skip
    trainer = Seq2SeqTrainer(model, arguments, train_dataset=examples)
    trained = trainer.train()
    moved = {name: before[name] - weight.detach() for name, weight in model.named_parameters()}
    model.load_state_dict(before, strict=False)
    mean = model(**inputs).loss  # dropout is 0 in the tiny one
    assert trained.training_loss == pytest.approx(mean.item(), rel=1e-5)
    slopes = dict(zip(moved, torch.autograd.grad(mean, [*model.parameters()]), strict=True))
    torch.testing.assert_close(moved, slopes, rtol=1e-3, atol=1e-6)
