"""How far is far: figures with exact answers, and rows that fail when they should."""

import math

import numpy as np
import pytest

from edgegen import verify
from edgegen.bundle import GOLDEN, Case, Drift, Text, open_bundle, sums, worst, write_golden
from edgegen.errors import FormatError

WANT = np.array([[1.0, -2.0, 4.0]], np.float32)


def row(found, precision="fp32", want=WANT):
    case = Case("model", "one", {}, {"y": want})
    (drift,) = verify.drifts("an engine", case, {} if found is None else {"y": found}, precision)
    return drift


def test_sqnr_is_ten_times_the_logarithm_of_the_ratio_of_powers():
    assert verify.sqnr_db(np.array([10.0]), np.array([9.0])) == pytest.approx(20)
    assert verify.sqnr_db(np.array([3.0, 4.0]), np.array([3.0, 3.5])) == pytest.approx(20)


def test_an_exact_output_gets_the_best_figure_and_noise_on_nothing_the_worst():
    zeros = np.zeros(3)
    assert verify.sqnr_db(WANT, WANT) == verify.sqnr_db(zeros, zeros) == verify.BEST_DB
    assert verify.sqnr_db(zeros, np.ones(3)) == 0


def test_sums_of_halves_do_not_overflow():
    large = np.full(1000, 6e4, np.float16)
    assert verify.sqnr_db(large, large * np.float16(0.5)) == pytest.approx(20 * math.log10(2), 0.01)


def test_psnr_is_over_the_span_of_the_pixels():
    want, found = np.zeros((1, 1, 2, 2)), np.full((1, 1, 2, 2), 0.1)
    assert verify.psnr_db(want, found, 1) == pytest.approx(20)
    assert verify.psnr_db(want, found, 2) == pytest.approx(20 + 20 * math.log10(2))
    assert verify.psnr_db(want, want, 1) == verify.BEST_DB


def test_agreement_counts_positions():
    want = np.eye(4)[None]
    found = want.copy()
    found[0, 0] = [0, 9, 0, 0]
    assert verify.top1_agreement(want, found) == 0.75


def test_the_same_numbers_pass():
    drift = row(WANT.copy())
    assert (drift.ok, drift.max_abs_error, drift.sqnr_db) == (True, 0, verify.BEST_DB)


@pytest.mark.parametrize(
    ("precision", "error", "ok"),
    [
        ("fp32", 1e-5, True),
        ("fp32", 1e-3, False),
        ("fp16", 1e-3, True),
        ("fp16", 0.1, False),
        ("int8", 0.1, True),
        ("int8", 1.0, False),
        ("int4", 0.4, True),
        ("int4", 2.0, False),
    ],
)
def test_each_precision_has_its_tolerance(precision, error, ok):
    drift = row(WANT + np.float32(error), precision)
    assert drift.ok is ok
    assert drift.max_abs_error == pytest.approx(error, rel=0.02)


def test_one_outlier_among_many_fails_in_fp32_whatever_the_sqnr():
    want = np.full(100_000, 1.0, np.float32)
    found = want.copy()
    found[7] += 0.01
    drift = row(found, want=want)
    assert drift.sqnr_db > 80
    assert not drift.ok


@pytest.mark.parametrize("precision", verify.TOLERANCES)
@pytest.mark.parametrize(
    ("want", "found", "rule"),
    [
        (WANT, None, "shape [1, 3], found nothing"),
        (WANT, WANT[:, :2], "shape [1, 3], found [1, 2]"),
        (WANT, WANT * np.float32("nan"), "finite numbers"),
        (WANT, WANT * np.float32("inf"), "finite numbers"),
        (WANT * np.float32("nan"), WANT, "the reference is not finite, which proves nothing"),
    ],
)
def test_what_cannot_be_compared_fails_at_every_precision(precision, want, found, rule):
    drift = row(found, precision, want)
    assert (drift.ok, drift.rule) == (False, rule)
    assert drift.numbers() == ("-", "-")  # no figure where nothing could be measured


def test_verify_gives_a_row_an_output_and_the_caches_as_their_worst(text_bundle):
    rows = verify.verify(open_bundle(text_bundle), "callable")
    assert [(r.case, r.output, r.ok) for r in rows] == [
        ("batch-1", "logits", True),
        ("batch-1", "present.0.key", True),
        ("batch-2", "logits", True),
        ("batch-2", "present.0.key", True),
    ]


def test_a_cache_that_is_off_is_the_row_that_is_shown(toys):
    case = toys.text_case("one", [[1, 2]], 0)
    found = dict(case.outputs)
    found["present.1.value"] = found["present.1.value"] + 1
    rows = list(verify._worst_of_caches(verify.drifts("e", case, found, "fp32")))
    assert [(r.output, r.ok) for r in rows] == [("logits", True), ("present.1.value", False)]


def test_without_golden_data_there_is_nothing_to_verify(image_bundle):
    write_golden([], image_bundle / GOLDEN)
    with pytest.raises(FormatError) as error:
        verify.verify(open_bundle(image_bundle), "callable")
    assert "no golden data in it" in str(error.value)
    assert error.value.hint == "export the bundle again"
    assert sums(image_bundle)


class Model:
    """A session of the toy model, wrong while its cache has `bad` positions or more."""

    def __init__(self, toys, bad=10**9):
        self.graph, self.toys, self.bad = toys.MODEL, toys, bad

    def run(self, feed):
        out = self.toys.toy_text(feed)
        if feed["past_key_values.0.key"].shape[2] >= self.bad:
            out["logits"] = np.roll(out["logits"], 9, axis=-1)
        return out


def decode(toys, session, precision, tokens):
    prompt = np.array([[5, 6, 7]])
    inputs = {"input_ids": prompt, "attention_mask": np.ones_like(prompt)}
    case = Case("model", "decode-one", inputs, {"tokens": np.array([tokens])})
    return verify._decode_drift("an engine", session, case, precision)


def test_tokens_decoded_through_the_cache_are_those_of_the_reference(toys):
    tokens = toys.continuation([5, 6, 7], 6)
    drift = decode(toys, Model(toys), "fp32", tokens)
    assert drift.ok
    assert drift.rule.endswith("torch, 6 tokens: 0 differ")


def test_in_fp32_every_token_that_is_not_the_references_counts(toys):
    tokens = toys.continuation([5, 6, 7], 6)
    assert not decode(toys, Model(toys), "fp32", [*tokens[:5], tokens[5] + 1]).ok
    assert decode(toys, Model(toys), "int8", [*tokens[:5], tokens[5] + 1]).ok


def test_at_every_precision_the_cache_must_agree_with_the_full_forward(toys):
    drift = decode(toys, Model(toys, bad=5), "int8", toys.continuation([5, 6, 7], 6))
    assert not drift.ok
    assert drift.rule.endswith("6 tokens: 3 differ")


def test_the_worst_row_is_a_failed_one_and_first_of_those_one_without_a_number():
    def made(ok, sqnr):
        return Drift("e", "model", "one", "y", None if sqnr is None else 0.1, sqnr, "rule", ok)

    fine, figure, off, lost = (
        made(True, 90.0),
        made(True, None),
        made(False, 3.0),
        made(False, None),
    )
    assert worst([figure, fine]) is fine
    assert worst([figure, fine, off]) is off
    assert worst([off, lost, fine]) is lost


def test_a_quality_figure_stands_in_its_rule_and_is_given_no_error_and_no_sqnr():
    case = Case("model", "text", {}, {"logits": np.eye(4, dtype=np.float32)[None]})
    loop = Text(vocab_size=4, max_positions=8, layers=1, kv_heads=1, head_dim=1)
    found = {"logits": case.outputs["logits"][:, ::-1]}
    row = verify._quality("e", loop, case, found, "int8")
    assert (row.ok, row.rule) == (False, "top-1 agreement 0.000 >= 0.8")
    assert row.numbers() == ("-", "-")
