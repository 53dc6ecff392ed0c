"""From a ModelSpec to a model and its tokenizer, ready to train."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from tvd_gen.errors import ModelError
from tvd_gen.models.architecture import apply_overrides, build_config, one_line
from tvd_gen.models.pretrained import Place, find
from tvd_gen.models.spec import ModelSpec, TokenizerSpec
from tvd_gen.models.tokenizer import (
    SOURCE_FILE,
    PairTokenizer,
    complete_specials,
    reader_of,
    train_tokenizer,
)

Say = Callable[[str], None]
Progress = Callable[[int, int], None]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    spec: ModelSpec,
    *,
    texts: Iterable[str] | None,
    seed: int,
    say: Say,
    progress: Progress | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer that a config asks for, in the dtype it asks for.

    The class follows the config: sequence-to-sequence where `is_encoder_decoder`, else causal.
    `texts` train a tokenizer and are read in that case only; for separate vocabularies they are a
    source and a target in turn. The same seed gives the same fresh
    weights, and the caller's random state stays as it was. `say` hears of what takes time,
    `progress(done, total)` of a download's bytes; nothing is printed.
    Both come back with eos and pad set, and model, generation config and tokenizer agree on them.
    Raises ModelError, one line a fault; DiskError where the cache cannot be written.
    """
    if (spec.pretrained is None) == (spec.architecture is None):
        raise ModelError("model: give exactly one of pretrained and architecture")
    with quiet():
        model, tokenizer = (
            _pretrained(spec, seed, say, progress)
            if spec.architecture is None
            else _fresh(spec, texts, seed, say)
        )
    _agree_on_specials(model, tokenizer)
    freeze(model, spec.freeze)
    return model, tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its bars and notes: what matters goes through `say`."""
    log: Any = logging  # its functions carry no types
    level, had_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if had_bars:
            log.enable_progress_bar()


# --- pretrained --------------------------------------------------------------------------------


def _pretrained(
    spec: ModelSpec, seed: int, say: Say, progress: Progress | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    assert spec.pretrained is not None
    if spec.tokenizer is not None and spec.tokenizer.pretrained is None:
        raise ModelError("model.tokenizer: a pretrained model keeps its own; leave it out")
    place = find(spec.pretrained, spec.revision, say, progress)
    with _faults_of(spec.pretrained):
        tokenizer = _tokenizer_of(spec.tokenizer, place, say, progress)
        complete_specials(tokenizer, spec.pretrained)
        config = AutoConfig.from_pretrained(**place.arguments())
        config = apply_overrides(config, spec.config) if spec.config else config
        config = _with_pad(config, tokenizer)
        model = _weights(place, config, spec, seed, say)
    _check_rows(model, tokenizer, spec.pretrained)
    return model, tokenizer


def _tokenizer_of(
    spec: TokenizerSpec | None, place: Place, say: Say, progress: Progress | None
) -> PreTrainedTokenizerBase:
    if spec is not None and spec.pretrained is not None:
        place = find(spec.pretrained, None, say, progress)
    if (Path(place.name) / SOURCE_FILE).is_file():
        return PairTokenizer.load(Path(place.name))
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**place.arguments())
    return tokenizer


def _with_pad(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    # before the model is built: Llama's embedding holds back the gradient of config.pad_token_id
    if not config.is_encoder_decoder:
        config.pad_token_id = tokenizer.pad_token_id
    return config


def _weights(
    place: Place, config: PreTrainedConfig, spec: ModelSpec, seed: int, say: Say
) -> PreTrainedModel:
    with seeded(seed):  # tensors that the checkpoint lacks start fresh
        model, notes = auto_class(config).from_pretrained(
            **place.arguments(), config=config, dtype=DTYPES[spec.dtype], output_loading_info=True
        )
    if missing := sorted(notes["missing_keys"]):
        more = ", ..." if len(missing) > 3 else ""
        say(
            f"{spec.pretrained}: {len(missing)} tensors are not in the checkpoint and start "
            f"fresh: {', '.join(missing[:3])}{more}"
        )
    loaded: PreTrainedModel = model
    return loaded


def auto_class(config: PreTrainedConfig) -> Any:
    """transformers' factory for the config's kind of model."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


# UnpicklingError: what a .bin raises that holds more than tensors. It is never run.
_FAULTS: tuple[type[Exception], ...] = (OSError, ValueError, KeyError, RuntimeError, ImportError)
_FAULTS += (EOFError, SafetensorError, UnpicklingError)


@contextmanager
def _faults_of(name: str) -> Iterator[None]:
    try:
        yield
    except _FAULTS as fault:
        raise ModelError(f"{name}: cannot be loaded ({one_line(fault)[:300]})") from fault


def _check_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    embedding: Any = model.get_input_embeddings()
    rows, tokens = embedding.weight.shape[0], len(reader_of(tokenizer))
    if tokens > rows:
        raise ModelError(
            f"{name}: its tokenizer has {tokens} tokens and its embedding {rows} rows; "
            "they do not belong together"
        )


# --- from scratch ------------------------------------------------------------------------------


def _fresh(
    spec: ModelSpec, texts: Iterable[str] | None, seed: int, say: Say
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    assert spec.architecture is not None
    if spec.config:
        raise ModelError("model.config: only for a pretrained model; use model.architecture")
    tokenizer = _fresh_tokenizer(spec.tokenizer or TokenizerSpec(), texts, say)
    config = build_config(spec.architecture, tokenizer)
    with seeded(seed), _faults_of("model.architecture"):
        model = auto_class(config).from_config(config, dtype=DTYPES[spec.dtype])
    return model, tokenizer


def _fresh_tokenizer(
    spec: TokenizerSpec, texts: Iterable[str] | None, say: Say
) -> PreTrainedTokenizerBase:
    if spec.pretrained is None:
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(spec, texts or ())
        read = f"{len(reader_of(tokenizer))} and " if spec.separate else ""
        say(f"tokenizer: {spec.type}, {read}{len(tokenizer)} tokens, trained on the training texts")
        return tokenizer
    with _faults_of(spec.pretrained):
        tokenizer = _tokenizer_of(spec, Place(""), say, None)
        complete_specials(tokenizer, spec.pretrained)
    return tokenizer


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's CPU generator at `seed` inside, as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


# --- both --------------------------------------------------------------------------------------


def _agree_on_specials(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    generation = model.generation_config
    model.config.pad_token_id = generation.pad_token_id = tokenizer.pad_token_id
    generation.eos_token_id = _ends(generation.eos_token_id, tokenizer.eos_token_id)
    if model.config.eos_token_id is None:
        model.config.eos_token_id = tokenizer.eos_token_id
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        _learn_padding_row(model)


def _ends(known: int | list[int] | None, eos: int) -> int | list[int]:
    # a chat model may end with several tokens; the tokenizer's own must be among them
    others = [known] if isinstance(known, int) else known or []
    ends = [eos, *(other for other in others if other != eos)]
    return ends if len(ends) > 1 else eos


def _learn_padding_row(model: PreTrainedModel) -> None:
    embedding: Any = model.get_input_embeddings()
    if getattr(embedding, "padding_idx", None) is not None:
        embedding.padding_idx = None


def freeze(model: PreTrainedModel, patterns: Iterable[str]) -> None:
    """Set requires_grad = False where a pattern matches a parameter's name.

    Patterns are those of fnmatch: `*.embed_tokens.*`, `model.layers.[0-9].*`. A tied weight
    answers to each of its names. Raises ModelError for a pattern that matches nothing, and when
    nothing is left to train.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        matched = [name for name in parameters if fnmatchcase(name, pattern)]
        if not matched:
            raise ModelError(_no_match(pattern, list(parameters)))
        for name in matched:
            parameters[name].requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError("model.freeze: every parameter is frozen, nothing is left to train")


def _no_match(pattern: str, names: list[str]) -> str:
    close = get_close_matches(pattern, names, n=3, cutoff=0.0)
    return f"model.freeze: {pattern!r} matches no parameter; names are like {', '.join(close)}"


@dataclass(frozen=True)
class ModelSummary:
    """What a plan says of a model. Parameters that are tied count once."""

    kind: str  # the class, e.g. LlamaForCausalLM
    parameters: int
    trained: int
    dtype: str
    vocabulary: int  # rows of the head
    read_vocabulary: int  # rows of the embedding of what is read
    positions: int | None  # the longest input, in tokens, where the architecture has a limit
    encoder_decoder: bool


def describe_model(model: PreTrainedModel) -> ModelSummary:
    """Sizes of a loaded model."""
    head: Any = model.get_output_embeddings  # carries no types
    embedding: Any = model.get_input_embeddings()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return ModelSummary(
        kind=type(model).__name__,
        parameters=sum(size for size, _ in sizes),
        trained=sum(size for size, is_trained in sizes if is_trained),
        dtype=str(model.dtype).removeprefix("torch."),
        vocabulary=head().weight.shape[0],
        read_vocabulary=embedding.weight.shape[0],
        positions=_positions(model.config),
        encoder_decoder=bool(model.config.is_encoder_decoder),
    )


def _positions(config: PreTrainedConfig) -> int | None:
    parts = [getattr(config, part, config) for part in ("encoder", "decoder")]
    limits = [getattr(part, "max_position_embeddings", None) for part in parts]
    return min((limit for limit in limits if limit), default=None)


def most_new_tokens(model: PreTrainedModel, read: int) -> int:
    """How many tokens may be written for a batch whose longest source has `read` tokens.

        int(source_ratio * read) + max_new_tokens

    of the generation config; source_ratio, 0 where it is not given, is fairseq's --max-len-a.
    """
    settings = model.generation_config
    ratio = getattr(settings, "source_ratio", None) or 0.0
    return int(ratio * read) + int(settings.max_new_tokens or 0)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Weights (safetensors), config, generation config and tokenizer into `folder`."""
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
