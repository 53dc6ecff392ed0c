"""transformers configs from a config's fields, each of them checked, with the tokenizer's ids."""

import dataclasses
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    EncoderDecoderConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

import tvd_gen.models.lstm  # noqa: F401  # makes lstm_seq2seq known
from tvd_gen.errors import ModelError
from tvd_gen.models.tokenizer import PairTokenizer, reader_of

# read by the configs although their classes do not list them
UNLISTED = {"rope_theta", "rope_scaling", "decoder_start_token_id", "tie_word_embeddings"}
# families whose decoder starts with pad; the others start with eos, as fairseq's do
STARTS_WITH_PAD = {"t5", "mt5", "umt5", "longt5", "switch_transformers", "marian", "pegasus"}


def build_config(fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The config that `model.architecture` describes, with the tokenizer's size and special ids.

    `fields` are transformers' names plus model_type; model_type encoder-decoder takes an
    `encoder` and a `decoder` mapping. What the user gives stands over what the tokenizer says.
    Raises ModelError for a type, a field or a value that transformers does not know.
    """
    where = "model.architecture"
    if _model_type(fields, where) == "encoder-decoder":
        config = _encoder_decoder(fields, tokenizer, where)
    else:
        config = _single(fields, tokenizer, where)
    _check_vocabulary(config, tokenizer, where)
    _check_is_generator(config, where)
    return config


def _single(
    fields: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    where: str,
    **implied: Any,
) -> PreTrainedConfig:
    model_type = _model_type(fields, where)
    given = {name: value for name, value in fields.items() if name != "model_type"}
    known = known_fields(CONFIG_MAPPING[model_type])
    check_fields(given, known, where)
    ids = _special_ids(CONFIG_MAPPING[model_type], tokenizer)
    derived = {
        "vocab_size": len(reader_of(tokenizer)),
        **{n: i for n, i in ids.items() if n in known},
    }
    if isinstance(tokenizer, PairTokenizer) and "decoder_vocab_size" in known:
        derived["decoder_vocab_size"] = len(tokenizer)
    return _construct(where, model_type, {**derived, **implied, **given})


def _construct(where: str, model_type: str, fields: dict[str, Any]) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.for_model(model_type, **fields)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as fault:
        raise ModelError(f"{where}: {one_line(fault)}") from fault
    return config


def _encoder_decoder(
    fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, where: str
) -> PreTrainedConfig:
    check_fields(fields, {"model_type", "encoder", "decoder"}, where)
    for part in ("encoder", "decoder"):
        if not isinstance(fields.get(part), Mapping):
            raise ModelError(f"{where}.{part}: missing; an encoder-decoder needs both parts")
    encoder = _single(fields["encoder"], tokenizer, f"{where}.encoder")
    decoder = _decoder(fields["decoder"], tokenizer, f"{where}.decoder")
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.decoder_start_token_id = _start(tokenizer)
    return config


def _decoder(
    fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, where: str
) -> PreTrainedConfig:
    model_type = _model_type(fields, where)
    if "add_cross_attention" not in known_fields(CONFIG_MAPPING[model_type]):
        raise ModelError(f"{where}.model_type: {model_type} has no cross-attention; try gpt2, bert")
    roles = {"is_decoder": True, "add_cross_attention": True}
    return _single(fields, tokenizer, where, **roles)


def _model_type(fields: Mapping[str, Any], where: str) -> str:
    model_type = fields.get("model_type")
    if model_type in CONFIG_MAPPING:
        return str(model_type)
    if model_type is None:
        raise ModelError(f"{where}.model_type: missing; name one of transformers', e.g. gpt2, bart")
    raise ModelError(
        f"{where}.model_type: transformers has no {model_type!r}"
        + did_you_mean(str(model_type), CONFIG_MAPPING)
    )


def _start(tokenizer: PreTrainedTokenizerBase) -> int | None:
    start: int | None = tokenizer.bos_token_id
    end: int | None = tokenizer.eos_token_id
    return end if start is None else start


def _special_ids(
    kind: type[PreTrainedConfig], tokenizer: PreTrainedTokenizerBase
) -> dict[str, int | None]:
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    ids = {"pad_token_id": pad, "eos_token_id": eos, "bos_token_id": _start(tokenizer)}
    if not kind.is_encoder_decoder:
        return ids
    start = pad if kind.model_type in STARTS_WITH_PAD else eos
    return {**ids, "decoder_start_token_id": start, "forced_eos_token_id": eos}


def apply_overrides(config: PreTrainedConfig, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """A copy of a pretrained config with some fields replaced; the class checks their types."""
    known = known_fields(type(config)) | set(config.to_dict())
    check_fields(fields, known, "model.config")
    try:
        return type(config).from_dict({**config.to_dict(), **_unmapped(config, fields)})
    except (StrictDataclassError, ValueError, TypeError) as fault:
        raise ModelError(f"model.config: {one_line(fault)}") from fault


def _unmapped(config: PreTrainedConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    # to_dict() names hidden_size as the class does (n_embd, d_model); both names must not meet
    return {config.attribute_map.get(name, name): value for name, value in fields.items()}


def known_fields(kind: type[PreTrainedConfig]) -> set[str]:
    """The names that a config class takes. It would accept any other name, and forget it."""
    names = {field.name for field in dataclasses.fields(kind)}
    return names | set(kind.attribute_map) | UNLISTED


def check_fields(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise one ModelError that names every unknown field."""
    known = set(known)
    faults = [
        f"{where}.{name}: unknown field{did_you_mean(name, known)}"
        for name in given
        if name not in known
    ]
    if faults:
        raise ModelError("\n".join(faults))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'; did you mean x?' or nothing."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def one_line(fault: BaseException) -> str:
    """A foreign error's text on one line."""
    return " ".join(str(fault).split()) or type(fault).__name__


def _check_vocabulary(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, where: str
) -> None:
    if isinstance(tokenizer, PairTokenizer):
        return _check_vocabularies(config, tokenizer, where)
    parts = [config.encoder, config.decoder] if hasattr(config, "encoder") else [config]
    for part in parts:
        if part.vocab_size < len(tokenizer):
            raise ModelError(
                f"{where}.vocab_size: {part.vocab_size} is less than the tokenizer's "
                f"{len(tokenizer)} tokens; leave it out, or make model.tokenizer.vocab_size smaller"
            )


def _check_vocabularies(config: PreTrainedConfig, tokenizer: PairTokenizer, where: str) -> None:
    if getattr(config, "share_encoder_decoder_embeddings", True):
        raise ModelError(
            f"{where}: model.tokenizer.separate makes two vocabularies; it needs model_type marian "
            "with share_encoder_decoder_embeddings: false"
        )
    for name, tokens in (
        ("vocab_size", len(tokenizer.source)),
        ("decoder_vocab_size", len(tokenizer)),
    ):
        if getattr(config, name) < tokens:
            raise ModelError(
                f"{where}.{name}: {getattr(config, name)} is less than the tokenizer's {tokens} "
                "tokens; leave it out"
            )


def _check_is_generator(config: PreTrainedConfig, where: str) -> None:
    mapping = (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
        if config.is_encoder_decoder
        else MODEL_FOR_CAUSAL_LM_MAPPING
    )
    if type(config) not in mapping:
        raise ModelError(
            f"{where}.model_type: {config.model_type} does not generate text; "
            "use e.g. gpt2, llama, t5, bart, marian"
        )
