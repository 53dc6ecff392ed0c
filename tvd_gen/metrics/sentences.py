"""Where one sentence ends and the next begins, without a trained splitter."""

import re

# A mark, closing quotes or brackets, then space; the wide marks of Chinese and Japanese need none.
_MARK = re.compile(
    r"""[.!?\u2026]+["'\u201d\u2019\xbb)\]]*(?=\s)|[\u3002\uff01\uff1f]+["\u201d\u300d\u300f\uff09]*"""
)
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")  # e.g  i.e  U.S  z.B
_NEVER_LAST = {"eg", "ie", "cf", "vs", "viz", "approx", "resp", "incl", "mr", "mrs", "ms", "dr"}
_NEVER_LAST |= {"prof", "st", "bzw", "ca", "vgl", "inkl", "evtl"}
_SELDOM_LAST = {"etc", "al", "inc", "ltd", "co", "corp", "jr", "sr", "usw"}
_BEFORE_NUMBER = {"no", "nr", "v", "ver", "vol", "fig", "p", "pp", "ch", "sec", "art"}
_OPENERS = {"This", "The", "These", "It", "A", "An", "In", "You", "For", "Its", "With"}


def split_sentences(text: str) -> list[str]:
    """Cut at every newline, and after . ! ? … followed by space unless one of these holds.

    The word is an abbreviation (e.g., i.e., vs., Dr.), an abbreviation that seldom ends a sentence
    (etc., Inc.) before a small letter, one that stands before a number (no. 5, ver. 2), an initial
    (Donald E. Knuth); an ellipsis or a closing bracket comes before a small letter; or nothing so
    far is a word ("1. First"). A small letter alone does not keep two sentences together, for many
    begin with a name ("libfoo is ..."). Dots inside a word (3.0, Node.js) are never marks.
    """
    return [sentence for line in text.splitlines() for sentence in _split_line(line)]


def lead(text: str) -> str:
    """Give the first sentence, its line breaks made spaces; "" for a text without one."""
    paragraph = re.split(r"\n\s*\n", text.strip(), maxsplit=1)[0]
    return next(iter(split_sentences(" ".join(paragraph.split()))), "")


def _split_line(line: str) -> list[str]:
    sentences, start = [], 0
    for mark in _MARK.finditer(line):
        before, after = line[start : mark.start()], line[mark.end() :].lstrip()
        if _ends(before, mark.group(), after):
            sentences.append(line[start : mark.end()].strip())
            start = mark.end()
    return [*sentences, rest] if (rest := line[start:].strip()) else sentences


def _ends(before: str, mark: str, after: str) -> bool:
    """Whether the mark between the two texts ends a sentence."""
    if not any(character.isalpha() for character in before):
        return False
    if after[:1].islower() and (mark[:2] in {"..", "\u2026"} or mark[-1] in ")]"):
        return False
    return mark[0] != "." or not _is_abbreviation(before.split(), after)


def _is_abbreviation(words: list[str], after: str) -> bool:
    word = words[-1].lstrip("\"'\u201c\u2018\xab([")
    bare = word.casefold()
    if _DOTTED.fullmatch(word) or bare in _NEVER_LAST:
        return True
    if bare in _SELDOM_LAST:
        return not after[:1].isupper()
    if bare in _BEFORE_NUMBER:
        return after[:1].isdigit()
    return len(word) == 1 and word.isupper() and _is_initial(words[:-1], after)


def _is_initial(words: list[str], after: str) -> bool:
    """Whether a single capital belongs to a name: "E. W. Dijkstra", but "written in C. It is"."""
    named = not words or words[-1][:1].isupper() or words[-1] in {"by", "and"}
    return named and after[:1].isupper() and after.split()[0] not in _OPENERS
