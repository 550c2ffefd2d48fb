"""What flows between the stages refuses what does not fit, and says what would."""

import msgspec
import numpy as np
import pytest

from edgegen.errors import MismatchError
from edgegen.spec import GraphSpec, ModelSpec, Options, Request, Sampling, TensorSpec

X = TensorSpec("x", "float32", ("batch", 3, 4))
DECODER = GraphSpec(
    "model",
    (
        TensorSpec("ids", "int64", ("batch", "seq")),
        TensorSpec("mask", "int64", ("batch", "past+seq")),
        TensorSpec("past", "float32", ("batch", "past")),
    ),
    (),
    {"seq": 8},
)


def feed(batch=2, seq=3, past=4, mask=None):
    return {
        "ids": np.zeros((batch, seq), np.int64),
        "mask": np.zeros((batch, past + seq if mask is None else mask), np.int64),
        "past": np.zeros((batch, past), np.float32),
    }


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_a_tensor_that_fits_is_accepted_at_any_size_of_a_free_dimension(batch):
    X.check(np.zeros((batch, 3, 4), np.float32))


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((1, 3, 4), np.float64), "float64[1, 3, 4]"),
        (np.zeros((1, 3, 5), np.float32), "float32[1, 3, 5]"),
        (np.zeros((3, 4), np.float32), "float32[3, 4]"),
        (np.float32(0), "float32[]"),
    ],
    ids=["dtype", "size", "rank", "scalar"],
)
def test_a_tensor_that_does_not_fit_is_named_with_what_was_wanted_and_found(array, found):
    with pytest.raises(MismatchError) as error:
        X.check(np.asarray(array))
    assert str(error.value) == f"x: wanted float32[batch, 3, 4], found {found}"
    assert error.value.hint == "cast or reshape x to float32[batch, 3, 4]"


def test_a_feed_that_fits_is_accepted_with_an_empty_past_too():
    DECODER.check(feed())
    DECODER.check(feed(past=0))


def test_missing_and_unknown_inputs_are_named_with_those_the_graph_takes():
    wrong = feed()
    wrong["idz"] = wrong.pop("ids")
    with pytest.raises(MismatchError) as error:
        DECODER.check(wrong)
    assert str(error.value) == "graph model: missing inputs ['ids'], unknown inputs ['idz']"
    assert error.value.hint == "it takes: ids, mask, past"


@pytest.mark.parametrize(
    ("wrong", "message", "hint"),
    [
        (
            feed() | {"past": np.zeros((1, 4), np.float32)},
            "batch is 2 in ids but 1 in past",
            "give batch one size in all inputs",
        ),
        (feed(seq=9), "ids: seq is 9, the limit is 8", "use at most 8"),
        (
            feed(mask=6),
            "mask: past+seq is 6, wanted 4 + 3",
            "give mask the length 7 there",
        ),
    ],
    ids=["two sizes", "over the limit", "a sum that is none"],
)
def test_sizes_that_contradict_each_other_are_refused(wrong, message, hint):
    with pytest.raises(MismatchError) as error:
        DECODER.check(wrong)
    assert str(error.value) == message
    assert error.value.hint == hint


@pytest.mark.parametrize(
    "record",
    [X, DECODER, ModelSpec("vae", {"latent": 8}), Request(prompts=((1, 2), (3,))), Options()],
)
def test_records_survive_json_and_refuse_unknown_fields(record):
    kind, data = type(record), msgspec.json.encode(record)
    assert msgspec.json.decode(data, type=kind) == record
    with pytest.raises(msgspec.ValidationError, match="unknown field `nonsense`"):
        msgspec.json.decode(b'{"nonsense":1,' + data[1:], type=kind)


def test_the_default_sampling_is_greedy_over_all_tokens():
    assert Sampling() == Sampling(0.0, 0, 1.0, 0.0, 1.0)
