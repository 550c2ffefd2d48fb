import pytest

from edgegen.errors import UsageError
from edgegen.sources._inputs import parse_inputs
from edgegen.spec import TensorSpec


def test_fixed_and_free_dimensions_limits_and_ranges():
    specs, limits = parse_inputs(
        [
            "image:float32[batch,3,64,64]",
            "ids: int64 [batch, seq<=512] @ 0..30521",
            "mask:int64[batch,seq]",
            "noise:float32[batch]@-1.5..2e-1",
            "step:float32[]",
        ]
    )
    assert specs == (
        TensorSpec("image", "float32", ("batch", 3, 64, 64)),
        TensorSpec("ids", "int64", ("batch", "seq"), 0, 30521),
        TensorSpec("mask", "int64", ("batch", "seq"), 0, 1),
        TensorSpec("noise", "float32", ("batch",), -1.5, 0.2),
        TensorSpec("step", "float32", ()),
    )
    assert limits == {"seq": 512}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image", "wanted NAME:DTYPE"),
        ("image:float32", "wanted NAME:DTYPE"),
        ("image:float32[1,3", "wanted NAME:DTYPE"),
        ("x:float32[1]@3", "wanted NAME:DTYPE"),
        ("x:float32[batch,]", "'' is no number"),
        ("x:float32[0]", "'0' is no number"),
        ("x:float32[-1]", "'-1' is no number"),
        ("x:float32[a b!]", "'ab!' is no number"),
        ("x:int64[seq]@a..b", "a..b is no range"),
    ],
)
def test_what_is_badly_written_is_shown_the_right_way(text, message):
    with pytest.raises(UsageError, match=message) as error:
        parse_inputs([text])
    assert repr(text) in str(error.value)
    assert "--input 'image:float32[batch,3,64,64]'" in error.value.hint
    assert error.value.exit_code == 2


def test_an_unknown_dtype_gets_the_nearest():
    with pytest.raises(UsageError, match="no dtype 'flaot32'") as error:
        parse_inputs(["x:flaot32[1]"])
    assert error.value.hint == "did you mean 'float32'?"


@pytest.mark.parametrize(
    ("texts", "message", "hint"),
    [
        (["x:float32[1]", "x:float32[2]"], "x is given twice", "leave one out"),
        (["x:float32[n<=1]"], "n<=1 is below 2", "from 2"),
        (["x:float32[n<=8]", "y:float32[n<=9]"], "not the limit given before", "one limit"),
        (["x:int64[1]@5..2"], r"range 5\.\.2 is empty", "swap its ends"),
        (["x:float32[1]@nan..2"], "is empty", "swap its ends"),
    ],
)
def test_what_contradicts_itself_is_refused(texts, message, hint):
    with pytest.raises(UsageError, match=message) as error:
        parse_inputs(texts)
    assert hint in error.value.hint
