"""encode: what the model sees of a row, and what it is asked to predict."""

from itertools import islice

import pytest
from datasets import Column, Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from tvd_gen.data import (
    DataSpec,
    LengthSortedBatchSampler,
    MaxTokensBatchSampler,
    SplitReport,
    check_fits,
    encode,
    encode_corpus,
    encode_prompts,
    load_corpus,
    render_prompt,
)
from tvd_gen.errors import ConfigError, DataError

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "a naïve café, an über-straße and 東京",
    "pack my box with five dozen liquor jugs",
]
PROMPT = "Read: {source}\nSay:\n"
EOS = 2


def train_tokenizer(frame=None):
    """A byte-level tokenizer with <s> 0, <pad> 1, </s> 2, <de> 3; `frame` as in a template."""
    special = ["<s>", "<pad>", "</s>", "<de>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    if frame:
        ids = [(token, special.index(token)) for token in special]
        tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


PLAIN = train_tokenizer()
FRAMES = {
    "plain": ("", [], [EOS]),
    "bart": ("<s> $A </s>", [0], [EOS]),
    "t5": ("$A </s>", [], [EOS]),
    "mbart": ("$A </s> <de>", [], [EOS, 3]),
    "mbart50": ("<de> $A </s>", [3], [EOS]),
    "llama": ("<s> $A", [0], [EOS]),
}


class Letters(PreTrainedTokenizer):
    """A tokenizer without offsets, as Marian's is: a token a letter."""

    def __init__(self, **options):
        self.letters = ["<pad>", "</s>", *map(chr, range(32, 127)), "\n"]
        super().__init__(eos_token="</s>", pad_token="<pad>", **options)

    @property
    def vocab_size(self):
        return len(self.letters)

    def get_vocab(self):
        return {letter: i for i, letter in enumerate(self.letters)}

    def _tokenize(self, text, **_):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.letters.index(token)

    def _convert_id_to_token(self, index):
        return self.letters[index]

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return token_ids_0


def pairs(*rows):
    return Dataset.from_list([{"source": source, "target": target} for source, target in rows])


def encoded(
    dataset, tokenizer=PLAIN, kind="sequence_to_sequence", encoder_decoder=False, **options
):
    options = {"prompt": PROMPT, **options} if kind == "sequence_to_sequence" else options
    report = SplitReport(rows_read=len(dataset), rows_kept=len(dataset))
    spec = DataSpec(**options)
    rows = encode(dataset, kind, tokenizer, spec, encoder_decoder=encoder_decoder, report=report)
    return rows, report


def refused(*args, **options):
    with pytest.raises(DataError) as caught:
        encoded(*args, **options)
    return str(caught.value)


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)


@given(source=text, target=text, limit=st.integers(14, 40))
@settings(max_examples=150, deadline=None)
def test_generation_sees_exactly_the_prompt_ids_of_training(source, target, limit):
    """Tokenised in one piece, the ids at the seam differ from what generation starts from."""
    if "</s>" in target:
        return
    options = {"max_source_tokens": limit, "max_target_tokens": 10_000, "prompt": PROMPT}
    rows, _ = encoded(pairs((source, target)), **options)
    [prompt], _ = encode_prompts([source], PLAIN, DataSpec(**options), encoder_decoder=False)
    row = rows[0]
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"] == [-100] * len(prompt) + row["input_ids"][len(prompt) :]
    assert PLAIN.decode(row["input_ids"][len(prompt) : -1]) == target
    assert row["input_ids"][-1] == EOS
    assert len(prompt) <= limit


@given(source=text, limit=st.integers(14, 40))
@settings(max_examples=150, deadline=None)
def test_a_cut_prompt_keeps_all_its_own_words(source, limit):
    """Cut at its end, a prompt would lose the words that ask for the target."""
    spec = DataSpec(prompt=PROMPT, max_source_tokens=limit)
    [ids], _ = encode_prompts([source], PLAIN, spec, encoder_decoder=False)
    head, tail = PROMPT.split("{source}")
    read = PLAIN.decode(ids)
    assert read.startswith(head)
    assert read.endswith(tail)
    assert source.startswith(read.removeprefix(head).removesuffix(tail))
    assert len(ids) <= limit


@pytest.mark.parametrize("word", ["漢字", "quick brown fox ", "ж "])
def test_a_cut_within_a_word_costs_only_that_word(word):
    """Cut in its middle, a word or a character can become more tokens than it was."""
    for limit in range(20, 40):
        spec = DataSpec(prompt=PROMPT, max_source_tokens=limit)
        [ids], _ = encode_prompts([word * 50], PLAIN, spec, encoder_decoder=False)
        assert limit - 6 <= len(ids) <= limit


@pytest.mark.parametrize("tokenizer", [PLAIN, Letters()], ids=["fast", "slow"])
def test_a_cut_source_is_as_long_as_the_limit_allows(tokenizer):
    spec = DataSpec(prompt=PROMPT, max_source_tokens=30)
    [ids], _ = encode_prompts(["a b c d e " * 50], tokenizer, spec, encoder_decoder=False)
    assert 28 <= len(ids) <= 30
    assert tokenizer.decode(ids).replace(" ", "").endswith("\nSay:\n")


@pytest.mark.parametrize("name", FRAMES)
def test_encoder_decoder_rows_are_framed_as_the_tokenizer_does(name):
    """mBART's decoder inputs start from the last label: a stray end token there breaks them all."""
    template, prefix, suffix = FRAMES[name]
    tokenizer = train_tokenizer(template)
    options = {"encoder_decoder": True, "prompt": None}
    rows, _ = encoded(pairs(*[(text, text[::-1]) for text in TEXTS]), tokenizer, **options)
    for row, source in zip(rows, TEXTS, strict=True):
        body = tokenizer(source, add_special_tokens=False)["input_ids"]
        assert row["input_ids"] == [*prefix, *body, *suffix]
        assert row["labels"].count(EOS) == 1
        assert row["labels"][-len(suffix) :] == suffix
        assert -100 not in row["labels"]
        assert row["length"] == max(len(row["input_ids"]), len(row["labels"]))
    if name not in ("plain", "llama"):
        assert rows[0]["input_ids"] == tokenizer(TEXTS[0])["input_ids"]
        assert rows[0]["labels"] == tokenizer(text_target=TEXTS[0][::-1])["input_ids"]


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_a_cut_target_has_tokens_of_its_own_and_its_end_token(name, encoder_decoder):
    """A row without a target trains as loss 0.0 and looks like success."""
    tokenizer = train_tokenizer(FRAMES[name][0])
    rows, report = encoded(
        pairs((TEXTS[0], TEXTS[2])),
        tokenizer,
        encoder_decoder=encoder_decoder,
        max_target_tokens=5,
    )
    labels = [label for label in rows[0]["labels"] if label != -100]
    assert len(labels) == 5
    assert labels.count(EOS) == 1
    assert TEXTS[2].startswith(tokenizer.decode(labels, skip_special_tokens=True))
    assert report.cut == {"target": 1}


def test_a_decoder_only_tokenizer_that_ends_its_texts_does_not_end_the_prompt():
    """The model would learn to write after an end token, and generation would start behind one."""
    rows, _ = encoded(pairs(("x", "y")), train_tokenizer("<s> $A </s>"))
    assert rows[0]["input_ids"][0] == 0
    assert rows[0]["input_ids"].count(EOS) == 1


def test_rows_over_the_limits_are_skipped_or_refused_by_place():
    long = pairs(("short", "short"), (TEXTS[0] * 9, "y"), ("x", TEXTS[1] * 9))
    options = {"max_source_tokens": 40, "max_target_tokens": 20}
    rows, report = encoded(long, **options, too_long="skip")
    assert rows["row"] == [0]
    assert report.bad == {"long source": 1, "long target": 1}
    assert (report.rows_read, report.rows_kept) == (3, 1)
    message = refused(long, **options, too_long="stop")
    assert "  row 2: long source: over 40 tokens" in message.splitlines()
    assert message.splitlines()[2].startswith("  row 3: long target: over 20 tokens (")
    assert message.endswith("raise the limits, or set data.too_long to truncate or skip")
    rows, report = encoded(long, **options)
    assert (len(rows), report.rows_kept, report.cut) == (3, 3, {"source": 1, "target": 1})


@pytest.mark.parametrize("name", FRAMES)
def test_a_cut_source_keeps_its_frame(name):
    """Sources without their end token would be another kind of input."""
    template, prefix, suffix = FRAMES[name]
    tokenizer = train_tokenizer(template)
    data = pairs((TEXTS[0], "x"))
    rows, report = encoded(data, tokenizer, prompt=None, encoder_decoder=True, max_source_tokens=9)
    body = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    room = 9 - len(prefix) - len(suffix)
    assert rows[0]["input_ids"] == [*prefix, *body[:room], *suffix]
    assert report.cut == {"source": 1}


def test_a_limit_that_leaves_no_room_is_a_config_fault():
    with pytest.raises(ConfigError, match=r"data.max_source_tokens: 5 leaves no room"):
        encoded(pairs(("x", "y")), max_source_tokens=5)
    with pytest.raises(ConfigError, match=r"data.max_target_tokens: 1 leaves no room"):
        encoded(pairs(("x", "y")), max_target_tokens=1)


def test_a_target_with_the_end_token_inside_is_refused():
    """It would train the model to go on after the end."""
    rows = pairs(("x", "y"), ("x", "one</s>two"))
    assert "  row 2: end token inside: the target's text has" in refused(rows)
    _, report = encoded(rows, on_bad_row="skip")
    assert (report.rows_kept, report.bad) == (1, {"end token inside": 1})


def test_a_text_of_which_nothing_is_left_is_refused():
    """A tokenizer without bytes drops what it does not know."""
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "</s>": 1}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    rows = pairs(("a", "a"), ("a", "ß"))
    assert "row 2: no tokens: the tokenizer makes nothing of the target" in refused(
        rows, tokenizer, prompt=None
    )
    assert "row 1: no tokens: the tokenizer makes nothing of the source" in refused(
        pairs(("ß", "a")), tokenizer, prompt=None, encoder_decoder=True
    )


def test_a_tokenizer_without_an_end_token_is_refused():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=PLAIN.backend_tokenizer)
    with pytest.raises(ConfigError, match=r"has no end \(eos\) token"):
        encoded(pairs(("x", "y")), tokenizer)


@given(
    texts=st.lists(text, min_size=1, max_size=12), size=st.integers(2, 20), stop=st.integers(0, 2)
)
@settings(max_examples=150, deadline=None)
def test_packed_blocks_hold_every_token_once_and_in_order(texts, size, stop):
    """Dropping the last block loses most of a small corpus in silence."""
    data = Dataset.from_dict({"text": texts})
    whole = [id for each in texts for id in [*PLAIN(each)["input_ids"], EOS]]
    rows, report = encoded(data, kind="language_modeling", block_size=size)
    joined = [id for row in rows for id in row["input_ids"]]
    left = report.tokens["left over"]
    assert joined == whole[: len(whole) - left]
    assert left == (1 if len(whole) % size == 1 else 0)
    assert all(len(row["input_ids"]) == size for row in list(rows)[:-1])
    assert rows["labels"] == rows["input_ids"]


def test_a_block_names_the_text_it_begins_in():
    data = Dataset.from_dict({"text": ["abc", "xyz", TEXTS[0]]})
    rows, _ = encoded(data, kind="language_modeling", block_size=4)
    assert rows[0]["row"] == 0
    assert rows[len(rows) - 1]["row"] == 2


def test_without_blocks_each_text_is_a_row():
    data = Dataset.from_dict({"text": [TEXTS[0], TEXTS[2] * 9]})
    rows, report = encoded(data, kind="language_modeling", max_target_tokens=30)
    assert rows[0]["input_ids"] == [*PLAIN(TEXTS[0])["input_ids"], EOS]
    assert len(rows[1]["input_ids"]) == 30
    assert rows[1]["input_ids"][-1] == EOS
    assert report.cut == {"text": 1}
    assert report.tokens["target"] == sum(rows["length"])


def test_a_corpus_is_encoded_with_its_places(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("source\ttarget\na\tb\n\tb\na\tone</s>\n")
    spec = DataSpec(files={"train": str(path)}, on_bad_row="skip", prompt=PROMPT)
    corpus = load_corpus(spec, ("source", "target"))
    kind = "sequence_to_sequence"
    rows = encode_corpus(corpus, kind, PLAIN, spec, encoder_decoder=False)["train"]
    report = corpus.report.splits["train"]
    assert len(rows) == report.rows_kept == 1
    assert report.first_bad[0] == f"{path}:3: empty source"
    assert report.first_bad[1].startswith(f"{path}:4: end token inside")
    assert report.rows_read == report.rows_kept + sum(report.bad.values())


def test_a_stream_is_encoded_as_the_table_is(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("source\ttarget\n" + "".join(f"s{n}\tt{n}\n" for n in range(5)))
    options = {"files": {"train": str(path)}, "prompt": PROMPT}
    rows = []
    for spec in (DataSpec(**options), DataSpec(**options, streaming=True)):
        corpus = load_corpus(spec, ("source", "target"))
        kind = "sequence_to_sequence"
        stream = encode_corpus(corpus, kind, PLAIN, spec, encoder_decoder=False)["train"]
        rows.append(sorted(row["input_ids"] for row in islice(stream, 5)))
    assert rows[0] == rows[1]


def test_a_stream_of_blocks_has_no_short_block(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
    spec = DataSpec(files={"train": str(tmp_path / "a.txt")}, streaming=True, block_size=16)
    corpus = load_corpus(spec, ("text",))
    stream = encode_corpus(corpus, "language_modeling", PLAIN, spec, encoder_decoder=False)["train"]
    assert {len(row["input_ids"]) for row in islice(stream, 40)} == {16}


def test_rows_that_the_model_has_no_room_for_are_named():
    """Without the check training stops in its middle with an index out of range."""
    rows, _ = encoded(pairs(("x", "y"), (TEXTS[0], TEXTS[1])))
    check_fits(rows, vocab_size=400, max_positions=200)
    with pytest.raises(ConfigError, match=r"vocabulary ends at 49; is it this model's tokenizer"):
        check_fits(rows, vocab_size=50)
    with pytest.raises(ConfigError, match=r"b.tsv:3: \d+ tokens, and the model has 20 positions"):
        check_fits(rows, vocab_size=400, max_positions=20, place=lambda i, _: f"b.tsv:{i + 2}")


def test_a_column_is_read_at_once(monkeypatch):
    """One row after the other, 110,000 rows took six seconds in place of a hundredth."""
    rows, _ = encoded(pairs(*(("x", text) for text in TEXTS)))

    def refuse(column, key):
        assert isinstance(key, slice)
        return whole(column, key)

    whole = Column.__getitem__
    monkeypatch.setattr(Column, "__getitem__", refuse)
    monkeypatch.setattr(Column, "__iter__", None)
    check_fits(rows, vocab_size=400, max_positions=200)
    assert len(LengthSortedBatchSampler(rows["length"], 1)) == len(TEXTS)
    assert len(MaxTokensBatchSampler(rows["length"], 200).lengths) == len(TEXTS)


def test_the_default_prompt_is_the_source():
    assert render_prompt(DataSpec(), "a {source} b", encoder_decoder=True) == "a {source} b"
    assert render_prompt(DataSpec(), "a") == "a\n"
    assert render_prompt(DataSpec(prompt="{source}: {source}!"), "a") == "a: a!"
