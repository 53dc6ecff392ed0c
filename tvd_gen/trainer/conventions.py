"""What models of transformers do with labels, and what they add to their own loss: facts of theirs
that a loss taken outside of them has to know."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

IGNORE = -100
_ALIGNED = {
    *MODEL_FOR_MASKED_LM_MAPPING_NAMES.values(),
    *MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values(),
    # Decoders of encoder-decoders by themselves: their labels are shifted beforehand.
    *(
        f"{name}ForCausalLM"
        for name in (
            *("Bart", "BigBirdPegasus", "Blenderbot", "BlenderbotSmall", "CpmAnt", "MBart"),
            *("Marian", "Mvp", "PLBart", "Pegasus", "TrOCR", "Whisper"),
        )
    ),
    "XLNetLMHeadModel",
}
"""model classes whose labels are the targets of their own positions"""
_OWN_TERMS = ("encoder_aux_loss", "decoder_aux_loss", "encoder_z_loss", "decoder_z_loss")


def language_model(model: Any) -> Any:
    """The transformers model itself, under PEFT's adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_encoder_decoder(core: Any) -> bool:
    """Whether it reads a source and writes a target; False where its config does not say."""
    return bool(getattr(core.config, "is_encoder_decoder", False))


# --- labels ------------------------------------------------------------------------------------


def shifts(core: Any) -> bool:
    """Whether position t predicts label t + 1: decoders; not masked language models."""
    return not is_encoder_decoder(core) and type(core).__name__ not in _ALIGNED


def take_targets(inputs: dict[str, Any], *, shift: bool) -> Tensor | None:
    """Take the labels out of `inputs`, as targets (B, T): target t belongs to hidden state t.

    `shift_labels` are aligned already; `labels` of a decoder-only model (shift) are the tokens
    themselves, so that position t predicts label t + 1. None where there are no labels.
    """
    labels: Tensor | None = inputs.pop("labels", None)
    aligned: Tensor | None = inputs.pop("shift_labels", None)
    if aligned is not None or labels is None:
        return aligned
    return F.pad(labels, (0, 1), value=IGNORE)[..., 1:] if shift else labels


def complete_inputs(inputs: dict[str, Any], targets: Tensor, core: Any) -> None:
    """Add what the model would have made of the labels that it does not see.

    ValueError where position t would get another position's target.
    """
    if targets.dim() != 2:
        raise ValueError(
            f"labels must be (batch, length), one for each token, got {tuple(targets.shape)}"
        )
    inputs.setdefault("use_cache", False)
    inputs.pop("num_items_in_batch", None)
    names = ("input_ids", "inputs_embeds")
    if is_encoder_decoder(core):
        names = ("decoder_input_ids", "decoder_inputs_embeds")
        if all(inputs.get(name) is None for name in names):
            inputs["decoder_input_ids"] = _decoder_inputs(targets, core)
    for name in names:
        read = inputs.get(name)
        if read is not None and read.shape[1] != targets.shape[1]:
            raise ValueError(
                f"labels are {targets.shape[1]} long and {name} {read.shape[1]}: each position "
                "needs its label, or -100"
            )


def _decoder_inputs(targets: Tensor, core: Any) -> Tensor:
    prepare = getattr(core, "prepare_decoder_input_ids_from_labels", None)
    if prepare is None:
        raise ValueError(
            f"{type(core).__name__} cannot make decoder_input_ids from labels: "
            "have the collator add them"
        )
    made: Tensor = prepare(labels=targets)
    return made


# --- what a model adds -------------------------------------------------------------------------


def check_z_loss(core: Any) -> None:
    """ValueError for a model that adds a term which cannot be taken from its outputs."""
    if getattr(core.config, "z_loss_coefficient", 0):
        raise ValueError(
            "the model would add a z-loss to its own loss, which is not taken: set "
            "config.z_loss_coefficient to 0, and give z_loss"
        )


def asks_for_router_loss(core: Any) -> bool:
    """Whether a mixture of experts is to add its own term."""
    return any(getattr(each, "output_router_logits", False) for each in _configs(core))


def router_loss(core: Any, outputs: Any) -> Tensor | None:
    """The term of a mixture of experts, times its coefficient; None where there is none.

    ValueError for a term that is known by name alone.
    """
    if lost := [name for name in _OWN_TERMS if getattr(outputs, name, None) is not None]:
        raise ValueError(
            f"{type(core).__name__} would add {', '.join(lost)} to its own loss, which is not "
            "taken: leave output_router_logits out"
        )
    term: Tensor | None = getattr(outputs, "aux_loss", None)
    return None if term is None else _router_coefficient(core) * term


def _router_coefficient(core: Any) -> float:
    """By its names in transformers' configs."""
    for each in _configs(core):
        for name in ("router_aux_loss_coef", "aux_loss_coef"):
            if hasattr(each, name):
                return float(getattr(each, name))
    raise ValueError(
        f"{type(core.config).__name__} has no router_aux_loss_coef: leave output_router_logits out"
    )


def _configs(core: Any) -> tuple[Any, Any]:
    """The model's, and that of its text part."""
    text_of = getattr(core.config, "get_text_config", lambda: core.config)
    return core.config, text_of()
