"""Tiny models of every family, built from a config, and rows of uneven lengths to train them on."""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedModel,
    Seq2SeqTrainingArguments,
)

import tvd_gen.models.lstm  # noqa: F401  # makes lstm_seq2seq known

VOCAB = 97
SPECIAL = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "dropout": 0.0,
}
_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_BERT = _LLAMA | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2 | _NO_DROPOUT,
    "llama": _LLAMA,
    "gemma2": _LLAMA | {"num_key_value_heads": 1, "head_dim": 16},
    "mixtral": _LLAMA
    | {
        "num_local_experts": 4,
        "num_key_value_heads": 2,
        "output_router_logits": True,
        "router_aux_loss_coef": 0.5,
    },
    "t5": {
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 2,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.0,
    },
    "bart": _BART,
    "lstm_seq2seq": {"embedding_size": 24, "hidden_size": 32, "dropout": 0.0},
    "marian": _BART,
    "mbart": _BART,
}
FAMILIES = [*(name for name in CONFIGS if name != "mixtral"), "encoder-decoder"]


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A model of the family with weights large enough to tell tokens apart."""
    torch.manual_seed(seed)
    model = _encoder_decoder() if family == "encoder-decoder" else _from_config(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
        if hasattr(model, "final_logits_bias"):
            # Zero as it comes: a bias that is forgotten would not show.
            model.final_logits_bias.normal_()
    return model


def _from_config(family: str) -> PreTrainedModel:
    config = AutoConfig.for_model(family, **SPECIAL, **CONFIGS[family])
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_config(config)


def _encoder_decoder() -> PreTrainedModel:
    encoder = AutoConfig.for_model("bert", vocab_size=VOCAB, pad_token_id=0, **_BERT)
    decoder = AutoConfig.for_model(
        "bert", vocab_size=VOCAB, pad_token_id=0, is_decoder=True, add_cross_attention=True, **_BERT
    )
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return EncoderDecoderModel(config=config)


def rows(encoder_decoder: bool, count: int = 16, seed: int = 0) -> list[dict[str, list[int]]]:
    """Source and target pairs of uneven lengths, as features in transformers' convention."""
    make = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=make))
        return torch.randint(3, VOCAB, (length,), generator=make).tolist()

    pairs = [(tokens(5, 12), [*tokens(2, 9), 2]) for _ in range(count)]
    if encoder_decoder:
        return [{"input_ids": s, "labels": t} for s, t in pairs]
    return [{"input_ids": s + t, "labels": [-100] * len(s) + t} for s, t in pairs]


def collate(features: list[dict[str, list[int]]], extra: int = 0) -> dict[str, torch.Tensor]:
    """Right padding, `extra` columns more than needed."""

    def pad(name: str, value: int) -> torch.Tensor:
        width = max(len(f[name]) for f in features) + extra
        return torch.tensor([f[name] + [value] * (width - len(f[name])) for f in features])

    ids = pad("input_ids", 0)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": pad("labels", -100)}


def arguments(folder: Any, **changes: Any) -> Seq2SeqTrainingArguments:
    """One quiet step of 16 rows on the CPU."""
    settings = {
        "per_device_train_batch_size": 16,
        "max_steps": 1,
        "learning_rate": 0.1,
        "optim": "sgd",  # Adam would turn a rounding error of a tiny gradient into a whole step
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "max_grad_norm": 1e9,
    }
    return Seq2SeqTrainingArguments(str(folder), **(settings | changes))
