"""What a config may say about the model: a value, with no loader behind it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer trained on the training split, or one that exists."""

    type: Literal["bpe", "unigram", "word"] = "bpe"
    """word: what white space parts, every word that occurs, up to vocab_size of them"""
    vocab_size: Annotated[int, Ge(16)] = 8000
    lowercase: bool = False
    separate: bool = False
    """sources and targets each keep the pieces of the joint bpe that their own training texts use:
    two vocabularies, for marian with share_encoder_decoder_embeddings: false"""
    pretrained: str | None = None
    """a hub id or folder; then the other fields are not used"""


@dataclass(frozen=True)
class ModelSpec:
    """A pretrained model, or an architecture with fresh weights. Exactly one of the two is
    given."""

    pretrained: str | None = None
    """a folder, a hub id, or smollm2-135m (which needs no hub)"""
    revision: str | None = None
    architecture: Mapping[str, Any] | None = None
    """transformers' config fields, with model_type: {model_type: bart, d_model: 256, ...}"""
    tokenizer: TokenizerSpec | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    """fields of a pretrained model's config to override, e.g. {dropout: 0.1}"""
    freeze: tuple[str, ...] = ()
    """patterns (with *) over parameter names; what they match is not trained"""
    dtype: Literal["float32", "bfloat16"] = "float32"
