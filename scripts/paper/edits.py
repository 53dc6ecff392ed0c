"""Texts spoilt word by word: repeated, cut off, thinned out, substituted.

After the perturbation analysis of the published code, with its faults mended: there "delete a
random word" takes the last one (here `truncate`, beside a `delete` that is random); a text that
becomes empty is dropped (here its last word stays, and it has fewer versions); a word may be
"substituted" by itself (here by another one); every text is printed (here none).
"""

from collections.abc import Callable, Sequence
from random import Random

Words = list[str]
Edit = Callable[[Words, Random, Sequence[str]], Words]
"""words, a source of chance, the vocabulary -> the words after one edit, [] where none is left"""


def repeat(words: Words, random: Random, _: Sequence[str]) -> Words:
    """Say one word twice, where it stands."""
    at = random.randrange(len(words))
    return [*words[: at + 1], *words[at:]]


def truncate(words: Words, _: Random, __: Sequence[str]) -> Words:
    """Take the last word away."""
    return words[:-1]


def delete(words: Words, random: Random, _: Sequence[str]) -> Words:
    """Take one word away."""
    at = random.randrange(len(words))
    return words[:at] + words[at + 1 :]


def substitute(words: Words, random: Random, vocabulary: Sequence[str]) -> Words:
    """Put another word of the vocabulary, each as likely, in the place of one."""
    if len(vocabulary) < 2:
        raise ValueError("texts of one and the same word have no other to put in its place")
    at = random.randrange(len(words))
    while (other := random.choice(vocabulary)) == words[at]:
        pass
    return [*words[:at], other, *words[at + 1 :]]


def mixed(words: Words, random: Random, vocabulary: Sequence[str]) -> Words:
    """One of repeat, truncate and substitute, each as likely: the published mixture."""
    return random.choice((repeat, truncate, substitute))(words, random, vocabulary)


EDITS: dict[str, Edit] = {
    "repeat": repeat,
    "truncate": truncate,
    "delete": delete,
    "substitute": substitute,
    "mixed": mixed,
}


def vocabulary_of(texts: Sequence[str]) -> list[str]:
    """The different words of the texts, sorted; ValueError for fewer than two."""
    words = sorted({word for text in texts for word in text.split()})
    if len(words) < 2:
        raise ValueError("the texts have fewer than 2 different words: nothing can be substituted")
    return words


def versions(text: str, kind: str, most: int, seed: str, vocabulary: Sequence[str]) -> list[str]:
    """The text after 0, 1, ... up to `most` edits of a kind, each on top of those before it.

    Words are what white space parts, joined by single spaces, the unedited text's too. Never
    empty: n words allow n - 1 deletions. Chance hangs on (seed, kind) alone.
    """
    random, words = Random(f"{seed}/{kind}"), text.split()
    found = [words]
    while len(found) <= most and (words := EDITS[kind](words, random, vocabulary)):
        found.append(words)
    return [" ".join(each) for each in found]
