"""Caption metrics against pycocoevalcap's, on the same words; our words against its Java tokenizer's."""

import random
import shutil
from itertools import pairwise

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from cwdpo.evaluation.captions import bleu, bleu_sums, caption_words, cider_d, rouge_l

SENTENCES = (
    "A man riding a wave on top of a surfboard.",
    "It's a black-and-white dog, isn't it?",
    'The sign says "STOP" (in red), and they can\u2019t stop!',
    "Two people cannot sit on a 3-year-old's chair; they're standing.",
    "There are 1,200 birds at 12:30, i.e. half past twelve.",
    "I'd say we've seen 2.5 cats... or 3?",
    "The U.S. flag: red, white & blue.",
    "He doesn't know who'll come, I'm sure.",
    "a cup costs $5 or 50% less",
    "The man's 1st dog - a big one - sleeps.",
    "Mr. Smith\u2019s café is open.",
    "don't",
)


def corpus(rows: int, seed: int, *, references: int = 3) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Random captions over a small vocabulary, answers made from a reference; one answer and one match are empty."""
    rng = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(12)]
    texts = [
        [[rng.choice(vocabulary) for _ in range(rng.randint(1, 14))] for _ in range(rng.randint(1, references))]
        for _ in range(rows)
    ]
    answers = [[word if rng.random() < 0.8 else rng.choice(vocabulary) for word in rng.choice(t)] for t in texts]
    answers[0], answers[1] = [], ["unseen"]
    return [answer[: rng.randint(1, 14)] for answer in answers], texts


def as_theirs(answers: list[list[str]], references: list[list[list[str]]]) -> tuple[dict, dict]:
    gold = {i: [" ".join(text) for text in texts] for i, texts in enumerate(references)}
    return gold, {i: [" ".join(answer)] for i, answer in enumerate(answers)}


@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_pycocoevalcap(seed: int) -> None:
    answers, references = corpus(30, seed)
    gold, found = as_theirs(answers, references)
    sums = np.array([bleu_sums(*row) for row in zip(answers, references, strict=True)])
    theirs, by_row = Bleu(4).compute_score(gold, found, verbose=0)
    for n in range(1, 5):
        assert bleu(sums.sum(axis=0), n) == pytest.approx(theirs[n - 1], abs=1e-9)
        assert bleu(sums, n) == pytest.approx(by_row[n - 1], abs=1e-9)
    assert cider_d(answers, references) == pytest.approx(Cider().compute_score(gold, found)[1], abs=1e-9)
    ours = [rouge_l(*row) for row in zip(answers, references, strict=True)]
    assert ours == pytest.approx(list(Rouge().compute_score(gold, found)[1]), abs=1e-9)


def test_short_answers_pay_and_long_ones_do_not() -> None:
    reference = ["a", "b", "c", "d"]
    assert bleu(bleu_sums(["a", "b"], [reference]), 1) == pytest.approx(np.exp(-1))
    assert bleu(bleu_sums([*reference, "e"], [reference]), 1) == pytest.approx(4 / 5)


def test_a_row_alone_has_no_rare_words() -> None:
    assert cider_d([["a", "dog"]], [[["a", "dog"]]]) == [0]


def test_equal_answers_have_the_highest_scores() -> None:
    texts = [["one", "red", "dog", "runs"], ["two", "blue", "cats", "sit"]]
    assert cider_d(texts, [[text] for text in texts]) == pytest.approx([10, 10])
    assert [rouge_l(text, [text]) for text in texts] == [1, 1]
    scores = [cider_d([texts[0][:n], texts[1]], [[text] for text in texts])[0] for n in range(1, 5)]
    assert all(more > less for less, more in pairwise(scores))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's a dog; don't!", "it 's a dog do n't"),
        ("They cannot, won't and shouldn\u2019t.", "they can not wo n't and should n't"),
        ("(a) 'b' \"c\" - d", "a b c d"),
        ("A 3-year-old at 12:30, 1,200 of 2.5", "a 3-year-old at 12:30 1,200 of 2.5"),
        ("Café \u7ea2\u8272 & 50%", "café \u7ea2\u8272 & 50 %"),
        ("", ""),
    ],
)
def test_words(text: str, words: str) -> None:
    assert caption_words(text) == words.split()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="the tokenizer of COCO's evaluation is a Java program")
def test_words_are_those_of_the_treebank_tokenizer() -> None:
    captions = {i: [{"caption": sentence}] for i, sentence in enumerate(SENTENCES)}
    theirs = PTBTokenizer().tokenize(captions)
    words = [[word for word in theirs[i][0].split() if word not in ("-lrb-", "-rrb-")] for i in captions]
    assert [caption_words(sentence) for sentence in SENTENCES] == words
