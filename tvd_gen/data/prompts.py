"""What the model reads: a source in its prompt, as ids, the same in training and in generation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from transformers import PreTrainedTokenizerBase

from tvd_gen.data.spec import DataSpec
from tvd_gen.errors import ConfigError

CHUNK = 1000
Ids: TypeAlias = list[int]


def render_prompt(spec: DataSpec, source: str, *, encoder_decoder: bool = False) -> str:
    """The text that the model reads for a source, in training and in generation alike."""
    template = spec.prompt or ("{source}" if encoder_decoder else "{source}\n")
    return template.replace("{source}", source)


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that ends a text: eos, or BERT's sep; ConfigError without one."""
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if isinstance(token, int):
            return token
    raise ConfigError(f"{tokenizer.name_or_path or 'the tokenizer'}: has no end (eos) token")


@dataclass(frozen=True)
class Frame:
    """The special tokens before and after a text's own."""

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.prefix) + len(self.suffix)

    def around(self, ids: Sequence[int]) -> Ids:
        """The text's ids in the frame."""
        return [*self.prefix, *ids, *self.suffix]


def own_frame(tokenizer: PreTrainedTokenizerBase, text: str, *, target: bool = False) -> Frame:
    """What the tokenizer itself puts around a text, found with this one or a plain one."""
    for sample in (text, "a", "0"):
        bare = tokenize(tokenizer, [sample], target=target)[0]
        full = tokenize(tokenizer, [sample], target=target, special=True)[0]
        for start in range(len(full) - len(bare) + 1 if bare else 0):
            if full[start : start + len(bare)] == bare:
                return Frame(tuple(full[:start]), tuple(full[start + len(bare) :]))
    raise ConfigError(f"{tokenizer.name_or_path or 'the tokenizer'}: makes no tokens of plain text")


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    target: bool = False,
    special: bool = False,
) -> list[Ids]:
    """Ids of texts; `target` in the tokenizer's target mode, `special` with its special tokens."""
    result = tokenizer(
        **{"text_target" if target else "text": list(texts)},
        add_special_tokens=special,
        return_attention_mask=False,
        verbose=False,
    )
    ids: list[Ids] = result["input_ids"]
    return ids


class SourceEncoder:
    """Sources to what the model reads, at most `max_source_tokens` ids each.

    Too long a row loses the end of its source, never a word of the prompt around it: the text is
    cut, and prompt and rest are tokenised again. Without a prompt the ids are cut.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, spec: DataSpec, encoder_decoder: bool, sample: str
    ):
        self.tokenizer, self.spec, self.encoder_decoder = tokenizer, spec, encoder_decoder
        self.limit = spec.max_source_tokens
        frame = own_frame(tokenizer, self.prompt(sample))
        self.frame = with_end(frame, tokenizer) if encoder_decoder else Frame(frame.prefix)
        taken = len(self.read([""])[0])
        if taken >= self.limit:
            raise ConfigError(
                f"data.max_source_tokens: {self.limit} leaves no room for a source; "
                f"the prompt and special tokens alone take {taken}"
            )
        self.room = self.limit - taken

    def prompt(self, source: str) -> str:
        """The text the model reads."""
        return render_prompt(self.spec, source, encoder_decoder=self.encoder_decoder)

    def read(self, sources: Sequence[str]) -> list[Ids]:
        """The ids of whole sources."""
        bare = tokenize(self.tokenizer, [self.prompt(source) for source in sources])
        return [self.frame.around(ids) for ids in bare]

    def __call__(self, sources: Sequence[str]) -> tuple[list[Ids], set[int]]:
        """The ids of each source, and which of them are of a cut one."""
        rows = self.read(sources)
        long = [i for i, ids in enumerate(rows) if len(ids) > self.limit]
        if self.prompt("") == "":
            cut = [self._without_end(rows[i]) for i in long]
        else:
            cut = self._cut([sources[i] for i in long])
        for i, ids in zip(long, cut, strict=True):
            rows[i] = ids
        return rows, set(long)

    def _without_end(self, ids: Ids) -> Ids:
        start = len(self.frame.prefix)
        return self.frame.around(ids[start : start + self.room])

    def _cut(self, sources: Sequence[str]) -> list[Ids]:
        if not self.tokenizer.is_fast:
            return [self._cut_by_halves(source) for source in sources]
        ends = self._token_ends(sources)
        keep = [min(self.room, len(each)) for each in ends]
        done: dict[int, Ids] = {}
        while len(done) < len(sources):
            open_rows = [i for i in range(len(sources)) if i not in done]
            texts = [sources[i][: ends[i][keep[i] - 1]] if keep[i] > 0 else "" for i in open_rows]
            for i, ids in zip(open_rows, self.read(texts), strict=True):
                if len(ids) <= self.limit:
                    done[i] = ids
                else:
                    # A cut can split a word into more tokens than it had.
                    keep[i] -= len(ids) - self.limit
        return [done[i] for i in range(len(sources))]

    def _token_ends(self, sources: Sequence[str]) -> list[list[int]]:
        if not sources:
            return []
        result = self.tokenizer(
            list(sources), add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return [[end for _, end in offsets] for offsets in result["offset_mapping"]]

    def _cut_by_halves(self, source: str) -> Ids:
        low, high = 0, len(source)
        while low < high:
            middle = (low + high + 1) // 2
            fits = len(self.read([source[:middle]])[0]) <= self.limit
            low, high = (middle, high) if fits else (low, middle - 1)
        return self.read([source[:low]])[0]


def with_end(frame: Frame, tokenizer: PreTrainedTokenizerBase) -> Frame:
    """The frame, with the end token last unless it has one after the text already."""
    end = end_token(tokenizer)
    return frame if end in frame.suffix else Frame(frame.prefix, (*frame.suffix, end))


def encode_prompts(
    sources: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    spec: DataSpec,
    *,
    encoder_decoder: bool,
) -> tuple[list[Ids], int]:
    """What the model reads to generate from each source, and how many sources were cut for it.

    The ids are the very ones that training saw.
    """
    if not sources:
        return [], 0
    sample = next((source for source in sources if source.strip()), "a")
    rows: list[Ids] = []
    cut = 0
    encoder = SourceEncoder(tokenizer, spec, encoder_decoder, sample)
    for start in range(0, len(sources), CHUNK):
        read, shortened = encoder(sources[start : start + CHUNK])
        rows += read
        cut += len(shortened)
    return rows, cut
