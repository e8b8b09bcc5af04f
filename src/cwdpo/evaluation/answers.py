"""What an answer says, read from its text: yes or no, which option, which objects; and how varied answers are."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cwdpo.contents import VOCABULARY, refusal
from cwdpo.errors import DataError
from cwdpo.evaluation.captions import Ngram, Words, caption_words, ngrams
from cwdpo.negatives.filtering import normalised

_YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_RIGHT_YES_NO = re.compile(r"\W*(yes|no)\s*(?:[.,;:!].*)?", re.IGNORECASE | re.DOTALL)
_LETTER = re.compile(r"\s*(?:(?:the )?(?:answer|option)(?: is)?:?\s*)?\(?([A-Za-z])(?:\)|\.|:|,|\s*$)", re.IGNORECASE)
_OPTION_LINE = re.compile(r"^\s*(?:\(([A-Z])\)|([A-Z])[.):])\s*(\S.*?)\s*$", re.MULTILINE)


def exact_match(answer: str, references: Iterable[str]) -> bool:
    """Whether an answer is one of the references, but for case, punctuation, spaces and articles.

    Example:
        >>> exact_match("a red disc", ["A red disc."]), exact_match("A red ball.", ["A red disc."])
        (True, False)
    """
    return normalised(answer) in {normalised(reference) for reference in references}


def says_yes(answer: str) -> bool | None:
    """Whether an answer's first word is yes or no; None where it is another.

    Example:
        >>> says_yes("Yes, a dog."), says_yes("no"), says_yes("There is no dog.")
        (True, False, None)
    """
    found = _YES_NO.match(answer)
    return found and found[1].lower() == "yes"


def is_yes(right_answer: str) -> bool | None:
    """As :func:`says_yes` of a right answer, which counts only where yes or no stands apart: ``No.``, ``Yes, it is``.

    Example:
        >>> is_yes("No, it is not."), is_yes("No parking")
        (False, None)
    """
    found = _RIGHT_YES_NO.fullmatch(right_answer.strip())
    return found and found[1].lower() == "yes"


def options_in(prompt: str) -> list[str]:
    """The options that a prompt lists a line each, as ``A. red``, ``A) red``, ``(A) red`` or ``A: red``, from A on
    without a gap; none where there are fewer than two.

    Example:
        >>> options_in("Which colour?\\nA. red\\nB. blue\\nAnswer with the letter.")
        ['red', 'blue']
    """
    found = [(one or other, text) for one, other, text in _OPTION_LINE.findall(prompt)]
    in_order = all(ord(letter) - ord("A") == place for place, (letter, _) in enumerate(found))
    return [text for _, text in found] if in_order and len(found) > 1 else []


def option_of(answer: str, options: Sequence[str]) -> int | None:
    """Which option an answer takes: its text, else its letter (``B``, ``(b)``, ``B. blue``, ``The answer is B``), else
    the only option whose text occurs in it as words; None where that is unclear.

    Example:
        >>> [option_of(answer, ["red", "blue"]) for answer in ("Blue.", "(A)", "It is blue", "red or blue")]
        [1, 0, 1, None]
    """
    plain = normalised(answer)
    texts = [normalised(option) for option in options]
    if plain in texts:
        return texts.index(plain)
    letter = _LETTER.match(answer)
    if letter and (place := ord(letter[1].upper()) - ord("A")) < len(options):
        return place
    inside = [place for place, text in enumerate(texts) if f" {text} " in f" {plain} "]
    return inside[0] if len(inside) == 1 else None


def is_letter(answer: str) -> bool:
    """Whether an answer is an option's letter alone.

    Example:
        >>> is_letter("B"), is_letter("(b)"), is_letter("B. blue")
        (True, True, False)
    """
    return re.fullmatch(r"\s*\(?[A-Za-z][).:]?\s*", answer) is not None


@dataclass(frozen=True)
class Vocabulary:
    """Objects by name, with other words for them."""

    names: Mapping[tuple[str, ...], str]
    """Words of an object or a synonym, in the singular -> the object."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file with one object a line, and after commas other words for it: ``couch, sofa, settee``.

        Empty lines and lines that begin with ``#`` are passed over. A ``DataError`` where there is no object, or one
        word stands for two.
        """
        if not path.is_file():
            raise refusal(path, VOCABULARY, DataError)
        names: dict[tuple[str, ...], str] = {}
        try:
            lines = path.read_text("utf-8").splitlines()
        except UnicodeDecodeError as problem:
            raise DataError(f"{path}: byte {problem.start + 1} is not UTF-8. Save it as plain UTF-8 text.") from problem
        for number, line in enumerate(lines, start=1):
            words = [word.strip() for word in line.split(",") if word.strip()]
            if not words or words[0].startswith("#"):
                continue
            for word in words:
                key = tuple(map(_singular, caption_words(word)))
                if not key:
                    raise DataError(f"{path}:{number}: {word!r} has no letter. Write an object, or take it out.")
                if names.setdefault(key, words[0]) != words[0]:
                    raise DataError(
                        f"{path}:{number}: {word!r} stands for {names[key]} and for {words[0]}. Keep one of them."
                    )
        if not names:
            raise DataError(f"{path}: holds no object. Write one a line, and after commas other words for it.")
        return cls(names)

    def named_in(self, text: str) -> set[str]:
        """The objects that a text names, in singular or plural; of overlapping names the longest counts.

        Example:
            >>> words = Vocabulary({("dog",): "dog", ("hot", "dog"): "hot dog", ("couch",): "sofa"})
            >>> sorted(words.named_in("Two hot dogs on a couch."))
            ['hot dog', 'sofa']
        """
        words = [_singular(word) for word in caption_words(text)]
        longest = max(map(len, self.names))
        found, at = set(), 0
        while at < len(words):
            sizes = range(min(longest, len(words) - at), 0, -1)
            size = next((size for size in sizes if tuple(words[at : at + size]) in self.names), 0)
            if size:
                found.add(self.names[tuple(words[at : at + size])])
            at += size or 1
        return found


def _singular(word: str) -> str:
    """A word without the ending of an English plural; what is no plural may change too, but always in the same way.

    Example:
        >>> [_singular(word) for word in ("dogs", "boxes", "ponies", "bus", "glass", "knives", "olives", "people")]
        ['dog', 'box', 'pony', 'bus', 'glass', 'knife', 'olive', 'person']
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) < 4 or word.endswith(("ss", "us", "is")):
        return word
    for ending, singular in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("sses", "ss")):
        if word.endswith(ending):
            return word[: -len(ending)] + singular
    return word[:-1] if word.endswith("s") else word


_IRREGULAR = {
    **{"people": "person", "men": "man", "women": "woman", "children": "child", "feet": "foot", "teeth": "tooth"},
    **{"mice": "mouse", "geese": "goose", "buses": "bus", "potatoes": "potato", "tomatoes": "tomato", "skis": "ski"},
    **{f"{stem}ves": f"{stem}f" for stem in ("lea", "loa", "wol", "shel", "scar", "cal", "hal", "el", "hoo")},
    **{f"{stem}ves": f"{stem}fe" for stem in ("kni", "wi", "li")},
    **{f"{stem}ies": f"{stem}ie" for stem in ("t", "p", "cook", "mov", "brown", "hood", "zomb", "smooth", "self")},
}
"""Plurals that drop more than an s, and those in -ies of words in -ie."""


def distinct(answers: Sequence[Words], n: int) -> tuple[float, NDArray[np.float64]]:
    r"""distinct-n (Li et al., NAACL 2016): different n-grams over all n-grams of all answers, from 0 to 1.

    Returns:
        The number, and ``(answers,)`` the number without each of them in turn, from which
        :func:`cwdpo.evaluation.intervals.jackknife_estimate` says how sure it is: a resample that holds a row twice
        would count its n-grams as repeated. nan where there is no n-gram.

    Example:
        >>> distinct([["a", "dog"], ["a", "cat"]], 1)
        (0.75, array([1., 1.]))
    """
    grams = [ngrams(words, n) for words in answers]
    whole: Counter[Ngram] = Counter()
    for found in grams:
        whole += found
    total, different = whole.total(), len(whole)
    alone = [sum(count == whole[gram] for gram, count in found.items()) for found in grams]
    without = np.array([different - own for own in alone], dtype=np.float64)
    left = np.array([total - found.total() for found in grams], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return (different / total if total else float("nan")), without / left
