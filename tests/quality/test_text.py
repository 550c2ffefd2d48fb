"""Figures of text that can be worked out by hand."""

import math

import numpy as np
import pytest

from edgegen.errors import MismatchError, UsageError
from edgegen.quality import text

VOCABULARY = 10


def uniform(ids):
    return np.zeros((*ids.shape, VOCABULARY), np.float32)


def table(seed):
    """A bigram model: random logits for each token."""
    logits = np.random.default_rng(seed).normal(size=(VOCABULARY, VOCABULARY))
    return lambda ids: logits[ids].astype(np.float32)


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, VOCABULARY, 200)


def corpus(ids, sizes=None, marks=None):
    none = np.zeros(len(ids), np.int64)
    return text.Corpus(ids, none if sizes is None else sizes, none > 0 if marks is None else marks)


def test_the_perplexity_of_a_uniform_model_is_the_size_of_its_vocabulary(tokens):
    figure = text.perplexity(uniform, tokens, text.windows(200, 16))
    assert figure.value == pytest.approx(VOCABULARY, rel=1e-12)
    assert figure.error == pytest.approx(0, abs=1e-12)
    assert (figure.count, figure.of, figure.better) == (23, "windows", "lower")


def test_the_perplexity_of_a_model_that_knows_the_text_is_1():
    ids = np.arange(200) % VOCABULARY
    sure = lambda ids: 1e3 * np.eye(VOCABULARY)[(ids + 1) % VOCABULARY]  # noqa: E731
    assert text.perplexity(sure, ids, text.windows(200, 16)).value == 1


def test_a_bigram_model_gives_the_mean_over_exactly_the_predicted_tokens(tokens):
    window = text.windows(200, 16)
    logits = table(1)(np.arange(VOCABULARY)).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    at = np.concatenate([np.arange(s + 9, s + 17) for s in window.starts])
    assert len(set(at)) == len(at)  # each counted once
    nats = -log_p[tokens[at - 1], tokens[at]]
    figure = text.perplexity(table(1), tokens, window)
    assert figure.value == pytest.approx(math.exp(nats.mean()), rel=1e-6)
    means = nats.reshape(-1, 8).mean(1)
    error = math.exp(nats.mean()) * means.std(ddof=1) / math.sqrt(len(means))
    assert figure.error == pytest.approx(error, rel=1e-6)


def test_bits_per_byte_by_hand(tokens):
    """3 bytes a token at log2(10) bits a token."""
    found = text.figures(uniform, corpus(tokens, np.full(200, 3)), text.windows(200, 16))
    assert found["bits_per_byte"].value == pytest.approx(math.log2(VOCABULARY) / 3)
    assert found["bits_per_byte"].unit == "bits/byte"


def test_marks_count_as_tokens_and_not_for_the_bits_of_a_byte(tokens):
    marks = np.zeros(200, bool)
    marks[::2] = True
    sizes = np.where(marks, 0, 3)
    found = text.figures(uniform, corpus(tokens, sizes, marks), text.windows(200, 16))
    assert found["bits_per_byte"].value == pytest.approx(math.log2(VOCABULARY) / 3)
    assert found["perplexity"].value == pytest.approx(VOCABULARY)


def test_the_kl_of_a_model_from_itself_is_0_and_it_agrees_with_itself(tokens):
    found = text.figures(table(1), corpus(tokens), text.windows(200, 16), table(1))
    assert (found["kl_nats"].value, found["kl_nats"].error) == (0, 0)
    assert found["top1_agreement"].value == 1
    assert (found["perplexity_ratio"].value, found["perplexity_ratio"].error) == (1, 0)


def test_kl_against_a_uniform_reference_in_closed_form(tokens):
    """KL(uniform || p) = -log 10 - mean log p; the token's row is the one read last."""
    found = text.figures(table(1), corpus(tokens), text.windows(200, 16), uniform)
    logits = table(1)(np.arange(VOCABULARY)).astype(np.float64)
    rows = -math.log(VOCABULARY) - (logits - np.log(np.exp(logits).sum(1, keepdims=True))).mean(1)
    at = np.concatenate([np.arange(s + 8, s + 16) for s in text.windows(200, 16).starts])
    assert found["kl_nats"].value == pytest.approx(rows[tokens[at]].mean(), rel=1e-6)


def test_the_ratio_of_two_perplexities_is_known_better_than_either(tokens):
    near = lambda ids: table(1)(ids) + 0.01 * table(2)(ids)  # noqa: E731
    found = text.figures(near, corpus(tokens), text.windows(200, 16), table(1))
    both = [text.perplexity(one, tokens, text.windows(200, 16)).value for one in (near, table(1))]
    assert found["perplexity_ratio"].value == pytest.approx(both[0] / both[1])
    assert found["perplexity_ratio"].error < found["perplexity"].error / found["perplexity"].value


def test_one_window_has_no_standard_error(tokens):
    found = text.figures(uniform, corpus(tokens, tokens + 1), text.windows(200, 16, 1))
    assert found["perplexity"].error is None
    assert found["bits_per_byte"].error is None


def test_windows_are_spread_over_the_text_and_say_what_they_are():
    window = text.windows(10_001, 100, 3)
    assert window.starts.tolist() == [0, 4950, 9900]
    assert str(window) == "3 windows of 100 tokens, the last 50 of each predicted"
    assert len(text.windows(10_001, 100).starts) == text.NUMBER


def test_a_short_text_shortens_the_window():
    assert text.windows(9, 512) == (np.array([0]), 8, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((2, 16), "2 tokens of held-out text, wanted 3 or more"),
        ((200, 16, 24), "num is 24, the held-out text has 23 windows of 16 tokens"),
        ((200, 16, 0), "num is 0"),
    ],
)
def test_too_little_text_for_what_was_asked_is_said(given, message):
    with pytest.raises(UsageError, match=message):
        text.windows(*given)


def test_a_fixed_window_needs_a_whole_one():
    with pytest.raises(UsageError, match="16 tokens of held-out text, wanted 17 or more"):
        text.windows(16, 16, fixed=True)


def test_logits_that_are_not_finite_are_never_averaged_in(tokens):
    def broken(ids):
        logits = uniform(ids)
        logits[-1, -1, 3] = np.nan
        return logits

    with pytest.raises(MismatchError, match=r"logits of window 0 .*1 of 80 .*\[0, 7, 3\]"):
        text.perplexity(broken, tokens, text.windows(200, 16))


def test_logits_of_the_last_position_alone_are_refused(tokens):
    with pytest.raises(MismatchError, match=r"logits of shape \[1, 1, 10\], wanted \[1, 16, 'voc"):
        text.perplexity(lambda ids: uniform(ids)[:, -1:], tokens, text.windows(200, 16))


def test_a_reference_of_another_vocabulary_is_refused(tokens):
    wide = lambda ids: np.zeros((*ids.shape, 11))  # noqa: E731
    with pytest.raises(MismatchError, match="10 tokens in the vocabulary, the reference has 11"):
        text.figures(uniform, corpus(tokens), text.windows(200, 16), wide)
