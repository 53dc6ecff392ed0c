"""Tokenizers: trained on the training texts, or one that exists.

Encoding adds no special token: `tokenizer(text)` is the text alone. Who builds the rows
(`data.encode`) appends eos to a target, and to a source of an encoder-decoder model.
"""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel
from tokenizers.trainers import BpeTrainer
from transformers import BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tvd_gen.errors import ModelError
from tvd_gen.models.spec import TokenizerSpec

# the ids that BART and mBART have by default: 0, 1, 2, 3
SPECIALS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
# tokens that no text needs, best first; used for padding where a tokenizer has no pad token
PADS = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")
BYTES = 256
SOURCE_FILE, TARGET_FILE = "source_tokenizer.json", "target_tokenizer.json"


class PairTokenizer(PreTrainedTokenizerFast):
    """Two vocabularies: `tokenizer(text)` reads with `source`'s, the rest is the target's.

    That is `tokenizer(text_target=...)`, `decode` and `len`. Special tokens have the same ids in
    both. Saved in SOURCE_FILE and TARGET_FILE, and loaded by `load`.
    """

    source: PreTrainedTokenizerFast

    @classmethod
    def of(cls, source: Tokenizer, target: Tokenizer) -> "PairTokenizer":
        """The pair of two cores that were trained here."""
        pair: PairTokenizer = _wrapped(cls, target)
        pair.source = _wrapped(PreTrainedTokenizerFast, source)
        return pair

    @classmethod
    def load(cls, folder: Path) -> "PairTokenizer":
        """The pair that was saved in a folder."""
        cores = [Tokenizer.from_file(str(folder / name)) for name in (SOURCE_FILE, TARGET_FILE)]
        return cls.of(*cores)

    def __call__(
        self, text: Any = None, *others: Any, text_target: Any = None, **options: Any
    ) -> BatchEncoding:
        """Ids of what is read, of what is written (`text_target`), or of both (as labels)."""
        if text_target is None:
            read: BatchEncoding = self.source(text, *others, **options)
            return read
        written: BatchEncoding = super().__call__(text_target=text_target, **options)
        if text is None:
            return written
        read = self.source(text, *others, **options)
        read["labels"] = written["input_ids"]
        return read

    def save_pretrained(self, save_directory: Any, *args: Any, **options: Any) -> tuple[str, ...]:
        """Both vocabularies into the folder; other options have no effect."""
        # No tokenizer.json: AutoTokenizer would read sources with the target's vocabulary.
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.source.backend_tokenizer.save(str(folder / SOURCE_FILE))
        self.backend_tokenizer.save(str(folder / TARGET_FILE))
        return str(folder / SOURCE_FILE), str(folder / TARGET_FILE)


def reader_of(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer of what a model reads: a pair's source, or the only one."""
    return tokenizer.source if isinstance(tokenizer, PairTokenizer) else tokenizer


def train_tokenizer(spec: TokenizerSpec, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE, unigram or word tokenizer of at most `vocab_size` tokens, with specials.

    The same texts in the same order give the same tokenizer. A small text may hold fewer pieces
    than were asked for; then the vocabulary is smaller. bpe gives every text back as it was;
    unigram turns each run of white space, line ends too, into one blank. With `spec.separate`,
    `texts` are a source and a target in turn, and the tokenizer is a PairTokenizer.
    Raises ModelError without texts.
    """
    texts = [*texts]
    kept = [text for text in texts if text.strip()]
    if not kept:
        raise ModelError("model.tokenizer: there are no training texts to train a tokenizer on")
    core = _TRAINERS[spec.type](spec, kept)
    if spec.separate:
        return PairTokenizer.of(_pruned(core, texts[0::2]), _pruned(core, texts[1::2]))
    single: PreTrainedTokenizerFast = _wrapped(PreTrainedTokenizerFast, core)
    return single


def _wrapped(kind: Callable[..., Any], core: Tokenizer) -> Any:
    return kind(
        tokenizer_object=core,
        padding_side="right",
        clean_up_tokenization_spaces=False,  # or "wheel ." would come back as "wheel."
        **SPECIALS,
    )


def _pruned(core: Tokenizer, texts: Sequence[str]) -> Tokenizer:
    """The bpe with those pieces alone that the texts use, and those they are merged from.

    The texts are cut as before. Bytes and special tokens stay, so that nothing is unknown.
    """
    state = json.loads(core.to_str())
    model = state["model"]
    merges = [(left, right) for left, right in model["merges"]]
    used = {index for encoding in core.encode_batch_fast(texts) for index in encoding.ids}
    kept = {core.id_to_token(index) for index in used}
    kept |= {*pre_tokenizers.ByteLevel.alphabet(), *SPECIALS.values()}
    before = 0
    while len(kept) > before:
        before = len(kept)
        kept |= {part for pair in merges if "".join(pair) in kept for part in pair}
    ordered = [piece for piece in sorted(model["vocab"], key=model["vocab"].get) if piece in kept]
    model["vocab"] = {piece: index for index, piece in enumerate(ordered)}
    model["merges"] = [pair for pair in merges if "".join(pair) in kept]
    return Tokenizer.from_str(json.dumps(state))


def _train_bpe(spec: TokenizerSpec, texts: list[str]) -> Tokenizer:
    least = len(SPECIALS) + BYTES
    if spec.vocab_size < least:
        raise ModelError(
            f"model.tokenizer.vocab_size: a bpe tokenizer needs at least {least} "
            f"({BYTES} bytes and {len(SPECIALS)} special tokens), got {spec.vocab_size}"
        )
    core = Tokenizer(BPE())
    core.normalizer = _normalizer(spec)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=spec.vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIALS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return core


def _train_unigram(spec: TokenizerSpec, texts: list[str]) -> Tokenizer:
    # sentencepiece, not tokenizers' own trainer: that one gives other pieces at each call
    normalizer = _normalizer(spec)
    pieces = _sentencepieces(spec.vocab_size, (normalizer.normalize_str(t) for t in texts))
    core = Tokenizer(Unigram(pieces, unk_id=list(SPECIALS).index("unk_token"), byte_fallback=False))
    core.normalizer = normalizer
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    return core


def _sentencepieces(vocab_size: int, texts: Iterator[str]) -> list[tuple[str, float]]:
    model = io.BytesIO()
    ids = {f"{name.removesuffix('_token')}_id": i for i, name in enumerate(SPECIALS)}
    train: Callable[..., None] = SentencePieceTrainer.train
    train(
        sentence_iterator=texts,
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        max_sentence_length=1 << 24,
        num_threads=1,
        minloglevel=2,
        **ids,
    )
    processor = SentencePieceProcessor(model_proto=model.getvalue())
    size = processor.get_piece_size()
    return [(processor.id_to_piece(i), processor.get_score(i)) for i in range(size)]


def _train_words(spec: TokenizerSpec, texts: list[str]) -> Tokenizer:
    normalizer = _normalizer(spec)
    counts = Counter(word for text in texts for word in normalizer.normalize_str(text).split())
    known = sorted(counts.keys() - {*SPECIALS.values()}, key=lambda word: (-counts[word], word))
    words = [*SPECIALS.values(), *known][: spec.vocab_size]
    unknown = SPECIALS["unk_token"]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=unknown))
    core.normalizer = normalizer
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return core


_TRAINERS = {"bpe": _train_bpe, "unigram": _train_unigram, "word": _train_words}


def _normalizer(spec: TokenizerSpec) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = [normalizers.NFC()]
    if spec.lowercase:
        steps.append(normalizers.Lowercase())
    if spec.type == "unigram":
        steps.append(normalizers.Replace(Regex(r"\s+"), " "))
    return normalizers.Sequence(steps)


def complete_specials(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give the tokenizer an eos and a pad token out of its own vocabulary; no model is resized.

    Pad is a token of its own where the vocabulary has one: a model that zeroes the gradient of
    its padding row (Llama) would otherwise do so for eos. eos is the last resort; labels and
    attention are masked by position, never by token. Raises ModelError where nothing fits.
    """
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{name}: its tokenizer has no end token, so no text could ever end")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = next(_free_tokens(tokenizer), tokenizer.eos_token)


def _free_tokens(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    vocabulary = tokenizer.get_vocab()
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    return (token for token in PADS if token in vocabulary and token not in taken)
