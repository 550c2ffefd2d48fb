"""What may be asked for, and how a slip is answered."""

import msgspec
import pytest

from edgegen.errors import NotFoundError, UsageError
from edgegen.spec import Options, Request
from edgegen.workload import MOST, Job, check, request_for


def job(path, request=None, *, runtime="callable", threads=0, warmup=1, repeats=2):
    request = request or request_for(path)
    return Job(str(path), runtime, "cpu", request, Options(threads=threads), warmup, repeats)


def test_text_reads_and_writes_32_tokens_and_stops_at_nothing(text_bundle):
    want = Request(prompt_tokens=32, new_tokens=32, ignore_eos=True)
    assert request_for(text_bundle) == want


def test_the_default_fits_into_the_positions(text_bundle):
    assert request_for(text_bundle, prompt_tokens=60).new_tokens == 4  # of 64 positions
    assert request_for(text_bundle, prompt_tokens=5, new_tokens=7).new_tokens == 7


def test_images_have_a_batch_only(image_bundle):
    assert request_for(image_bundle, batch=3, seed=5) == Request(batch=3, seed=5)


@pytest.mark.parametrize("option", ["prompt_tokens", "new_tokens"])
def test_images_have_no_tokens(image_bundle, option):
    flag = "--" + option.replace("_", "-")
    with pytest.raises(UsageError, match=f"{flag} 4: .* is no text model") as error:
        request_for(image_bundle, **{option: 4})
    assert error.value.hint == f"leave {flag} out"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"repeats": 0}, "--repeats is 0"),
        ({"repeats": -3}, "--repeats is -3"),
        ({"repeats": 10**9}, "--repeats is 1000000000"),
        ({"warmup": -1}, "--warmup is -1"),
        ({"threads": -2}, "--threads is -2"),
        ({"request": Request(batch=0)}, "--batch is 0"),
        ({"request": Request(batch=10**12)}, "--batch is 1000000000000"),
        ({"request": Request(seed=-1)}, "--seed is -1"),
    ],
)
def test_a_number_out_of_range_is_named_with_its_range(image_bundle, change, said):
    with pytest.raises(UsageError, match=said) as error:
        check(job(image_bundle, **change))
    assert error.value.hint.startswith("give a number from ")
    assert error.value.hint.endswith(f"to {MOST}")


def test_text_needs_tokens(text_bundle):
    with pytest.raises(UsageError, match="--prompt-tokens is 0"):
        check(job(text_bundle, Request(new_tokens=4)))
    with pytest.raises(UsageError, match="--new-tokens is 0"):
        check(job(text_bundle, Request(prompt_tokens=4)))
    check(job(text_bundle, Request(prompts=((1, 2),), new_tokens=4)))


def test_more_tokens_than_positions_are_refused_with_both_numbers(text_bundle):
    with pytest.raises(UsageError, match=r"60 prompt tokens and 5 new ones are 65, .* has 64") as e:
        check(job(text_bundle, request_for(text_bundle, prompt_tokens=60, new_tokens=5)))
    assert "add up to 64 or less" in e.value.hint


def test_a_size_must_be_that_of_a_free_dimension(image_bundle):
    with pytest.raises(UsageError, match="no free dimension 'widht'"):
        check(job(image_bundle, request_for(image_bundle, sizes={"widht": 4})))


def test_an_unknown_engine_gets_a_did_you_mean(image_bundle):
    with pytest.raises(NotFoundError, match=r"no 'openvno' in edgegen\.runtimes") as error:
        check(job(image_bundle, runtime="openvno"))
    assert error.value.hint == "did you mean 'openvino'?"


def test_no_bundle_is_said_so(tmp_path):
    with pytest.raises(NotFoundError, match="no bundle there"):
        request_for(tmp_path / "nothing")


def test_a_job_survives_the_pipe(image_bundle):
    one = job(image_bundle, request_for(image_bundle, sizes={}))
    assert msgspec.json.decode(msgspec.json.encode(one), type=Job) == one
