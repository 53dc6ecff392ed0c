"""The `generation` section: transformers' GenerationConfig by name, over the task's defaults; and
`source_ratio`, which is ours."""

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, BeforeValidator, ConfigDict, create_model

from tvd_gen.config.training import refuse

_OWNED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "return_dict_in_generate",
            "output_attentions",
            "output_hidden_states",
            "output_logits",
            "output_scores",
        ),
        "tvd-gen writes texts",
    ),
    "num_return_sequences": "one text is written for each row",
    "transformers_version": "it is no setting",
}
_OWN: dict[str, Any] = {"source_ratio": Annotated[float, Ge(0)]}
"""source_ratio: so many tokens more than max_new_tokens for each token of the longest source of a
batch, as fairseq's --max-len-a beside --max-len-b."""
_Count = Annotated[int, Ge(0)]
_Many = Annotated[int, Ge(1)]
_Share = Annotated[float, Gt(0), Le(1)]
_Positive = Annotated[float, Gt(0)]
_KINDS: dict[str, Any] = {
    "max_new_tokens": _Many,
    "max_length": _Many,
    "min_new_tokens": _Count,
    "min_length": _Count,
    "num_beams": _Many,
    "num_beam_groups": _Many,
    "do_sample": bool,
    "early_stopping": bool | Literal["never"],
    "use_cache": bool,
    "temperature": _Positive,
    "top_p": _Share,
    "top_k": _Count,
    "min_p": Annotated[float, Ge(0), Le(1)],
    "typical_p": _Share,
    "epsilon_cutoff": Annotated[float, Ge(0), Le(1)],
    "eta_cutoff": Annotated[float, Ge(0), Le(1)],
    "length_penalty": float,
    "repetition_penalty": _Positive,
    "encoder_repetition_penalty": _Positive,
    "diversity_penalty": Annotated[float, Ge(0)],
    "no_repeat_ngram_size": _Count,
    "encoder_no_repeat_ngram_size": _Count,
    "max_time": _Positive,
    "guidance_scale": _Positive,
    "renormalize_logits": bool,
    "remove_invalid_values": bool,
    "bad_words_ids": list[list[_Count]],
    "suppress_tokens": list[_Count],
    "begin_suppress_tokens": list[_Count],
    "stop_strings": str | list[str],
    "bos_token_id": _Count,
    "pad_token_id": _Count,
    "eos_token_id": _Count | list[_Count],
    "decoder_start_token_id": _Count,
    "forced_bos_token_id": _Count,
    "forced_eos_token_id": _Count | list[_Count],
}
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)
_BEAMS = ("length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty")


@functools.cache
def generation_model() -> type[BaseModel]:
    """A pydantic model with the fields of transformers' GenerationConfig."""
    # not at the top of the file: it imports torch
    from transformers import GenerationConfig

    make: Any = GenerationConfig  # its constructor has no types
    names = [name for name in make().to_dict() if not name.startswith("_")]
    fields: dict[str, Any] = {name: (_kind(name), None) for name in (*names, *_OWN)}
    return create_model("Generation", __config__=ConfigDict(extra="forbid"), **fields)


@functools.cache
def generation_names() -> tuple[str, ...]:
    """The fields that a generation section may hold."""
    return tuple(name for name in generation_model().model_fields if name not in _OWNED)


def _kind(name: str) -> Any:
    if name in _OWNED:
        return Annotated[Any, BeforeValidator(refuse(_OWNED[name]))]
    return (_KINDS | _OWN).get(name, Any) | None


def check_generation(given: Any) -> Any:
    """The section with its fields checked; pydantic's errors for what is wrong."""
    if isinstance(given, dict):
        generation_model().model_validate_json(json.dumps(given, default=str), strict=True)
    return given


def with_defaults(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields given, over the task's defaults that still have an effect beside them."""
    merged = {**defaults, **given}
    idle = {name for name, _ in _idle(merged)} - set(given)
    return {name: value for name, value in merged.items() if name not in idle}


def idle_fields(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, why) for what was given and would have no effect."""
    merged = {**defaults, **given}
    yield from ((name, why) for name, why in _idle(merged) if name in given)


def _idle(merged: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in _SAMPLING:
        if merged.get(name) is not None and not merged.get("do_sample"):
            yield name, "has no effect without do_sample: true"
    for name in _BEAMS:
        if merged.get(name) is not None and (merged.get("num_beams") or 1) == 1:
            yield name, "has no effect with num_beams: 1"
