"""Models and tokenizers: pretrained, or built from a config.

Only the specs are imported here; the loader comes with its first use, for it brings transformers.
"""

from typing import TYPE_CHECKING, Any

from tvd_gen.models.spec import ModelSpec, TokenizerSpec

if TYPE_CHECKING:
    from tvd_gen.models.load import (
        ModelSummary,
        describe_model,
        freeze,
        load_model,
        most_new_tokens,
        save,
    )
    from tvd_gen.models.smollm import cache_folder
    from tvd_gen.models.tokenizer import reader_of, train_tokenizer

_HOMES = {
    "ModelSummary": "load",
    "describe_model": "load",
    "freeze": "load",
    "load_model": "load",
    "most_new_tokens": "load",
    "save": "load",
    "cache_folder": "smollm",
    "train_tokenizer": "tokenizer",
    "reader_of": "tokenizer",
}

__all__ = [
    "ModelSpec",
    "ModelSummary",
    "TokenizerSpec",
    "cache_folder",
    "describe_model",
    "freeze",
    "load_model",
    "most_new_tokens",
    "reader_of",
    "save",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
