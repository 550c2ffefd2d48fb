"""BLEU and ROUGE where the answer is known."""

import math

import pytest

from edgegen.errors import UsageError

pytest.importorskip("sacrebleu", reason="BLEU is sacrebleu's")
pytest.importorskip("rouge_score", reason="ROUGE is rouge-score's")
from edgegen.quality.overlap import bleu, rouge

TEXTS = ["the cat sat on the mat", "a dog ran over the long green field"]


def test_equal_texts_have_bleu_100_and_rouge_1():
    assert bleu(TEXTS, TEXTS).value == pytest.approx(100)
    assert bleu(TEXTS, TEXTS).error == pytest.approx(0, abs=1e-9)
    assert [figure.value for figure in rouge(TEXTS, TEXTS).values()] == [1, 1, 1]


def test_texts_with_no_word_in_common_have_0():
    other = ["x y z w", "p q r s"]
    assert bleu(other, TEXTS).value == 0
    assert [figure.value for figure in rouge(other, TEXTS).values()] == [0, 0, 0]


def test_a_beginning_loses_the_brevity_penalty_alone():
    """Five of six words, every n-gram right: exp(1 - 6 / 5)."""
    found = bleu(["the cat sat on the"], TEXTS[:1])
    assert found.value == pytest.approx(100 * math.exp(1 - 6 / 5))
    assert found.error is None
    figures = rouge(["the cat sat on the"], TEXTS[:1])
    assert figures["rouge_1"].value == pytest.approx(10 / 11)  # precision 1, recall 5 / 6


def test_texts_that_differ_in_how_good_they_are_give_a_standard_error():
    found = bleu([TEXTS[0], "nothing like it"], TEXTS)
    assert found.error > 5
    assert (found.count, found.of, found.unit) == (2, "texts", "of 100")


def test_an_empty_text_counts_as_nothing_found():
    assert bleu(["", TEXTS[1]], TEXTS).value < 70
    assert rouge([""], TEXTS[:1])["rouge_l"].value == 0


@pytest.mark.parametrize("measure", [bleu, rouge])
def test_no_text_or_one_without_its_fellow_is_refused(measure):
    with pytest.raises(UsageError, match="0 texts found, 0 wanted"):
        measure([], [])
    with pytest.raises(UsageError, match="1 texts found, 2 wanted"):
        measure(["a"], TEXTS)
