"""Profiles on disk, their schema, and what is read off them."""

import json
import math
from importlib import resources

import jsonschema
import pytest

from edgegen import profile, records
from edgegen.errors import FormatError, NotFoundError


def test_a_profile_survives_the_disk(make_profile, tmp_path):
    records.write(make_profile(tokens=3), tmp_path / "p.json")
    assert profile.read(tmp_path / "p.json") == make_profile(tokens=3)


def test_the_published_schema_is_the_one_of_the_code():
    published = resources.files("edgegen").joinpath("profile.schema.json").read_bytes()
    fix = "run: python -m edgegen.profile > edgegen/profile.schema.json"
    assert published == records.encode(profile.schema()), fix


@pytest.mark.parametrize("tokens", [0, 3])
def test_a_profile_file_is_valid_by_the_published_schema(make_profile, tmp_path, tokens):
    records.write(make_profile(tokens=tokens), tmp_path / "p.json")
    published = json.loads(resources.files("edgegen").joinpath("profile.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.validate(json.loads((tmp_path / "p.json").read_text()), published)


def test_the_schema_refuses_a_field_of_the_wrong_type(make_profile):
    found = json.loads(records.encode(make_profile())) | {"load_ms": "fast"}
    with pytest.raises(jsonschema.ValidationError, match="'fast' is not of type 'number'"):
        jsonschema.validate(found, profile.schema())


def test_every_time_is_in_ms_and_says_so(make_profile):
    numbers = {"load_ms", "cold_ms", "first_ms", "steps_ms"}
    assert numbers <= set(json.loads(records.encode(make_profile())))


def write(make_profile, path, **changes):
    path.write_text(json.dumps(json.loads(records.encode(make_profile())) | changes))
    return path


def test_a_newer_profile_is_refused_even_where_it_has_new_fields(make_profile, tmp_path):
    path = write(make_profile, tmp_path / "p.json", schema_version=99, joules_per_token=1)
    with pytest.raises(FormatError, match="schema_version 99, this EdgeGen reads up to 1") as error:
        profile.read(path)
    assert error.value.hint == "run: pip install --upgrade edgegen"


def test_an_unknown_field_gets_a_did_you_mean(make_profile, tmp_path):
    path = write(make_profile, tmp_path / "p.json", laod_ms=1)
    with pytest.raises(FormatError, match="laod_ms") as error:
        profile.read(path)
    assert error.value.hint == "did you mean 'load_ms'?"


@pytest.mark.parametrize("cut", [0, 1, 200])
def test_a_truncated_profile_is_named(make_profile, tmp_path, cut):
    path = tmp_path / "p.json"
    path.write_bytes(records.encode(make_profile())[:cut])
    with pytest.raises(FormatError, match=r"p\.json: not valid JSON"):
        profile.read(path)


def test_json_that_is_no_profile_is_named(tmp_path):
    (tmp_path / "p.json").write_text("{}")
    with pytest.raises(FormatError, match=r"p\.json: .*schema_version"):
        profile.read(tmp_path / "p.json")


def test_a_profile_without_samples_is_refused(make_profile, tmp_path):
    path = write(make_profile, tmp_path / "p.json", first_ms=[], steps_ms=[])
    with pytest.raises(FormatError, match="0 first steps for 0 repeats"):
        profile.read(path)


@pytest.mark.parametrize(("first", "later"), [([0.0], [[1.0]]), ([1.0], [[2.0, -1.0]])])
def test_a_step_that_took_no_time_is_refused(make_profile, tmp_path, first, later):
    path = write(make_profile, tmp_path / "p.json", first_ms=first, steps_ms=later)
    with pytest.raises(FormatError, match=r"p\.json: a step of -?[01] ms; wanted more") as error:
        profile.read(path)
    assert error.value.hint.startswith("measure again")


def test_no_file_is_said_so(tmp_path):
    with pytest.raises(NotFoundError, match=r"p\.json: no such file"):
        profile.read(tmp_path / "p.json")


def test_text_is_about_its_later_tokens_and_the_rest_about_whole_runs(make_profile):
    text, images = make_profile(tokens=3), make_profile()
    assert profile.samples(text) == [ms for steps in text.steps_ms for ms in steps]
    assert profile.samples(images) == list(images.first_ms)


def test_the_rate_is_of_the_whole_batch(make_profile):
    request = make_profile().request
    four = make_profile(first_ms=(20.0,) * 5, steps_ms=((),) * 5, repeats=5)
    assert profile.rate(four) == (50.0, "images/s")
    assert profile.rate(make_profile(tokens=2))[1] == "tokens/s"
    assert profile.rate(make_profile(family="module"))[1] == "runs/s"
    assert request.batch == 1


@pytest.mark.parametrize(("q", "needed"), profile.SAMPLES_FOR.items())
def test_a_percentile_counts_from_the_fewest_samples_that_bound_it_with_99_percent(q, needed):
    def chance_of_two_above(n):  # the second largest of n is at or above the q-th percentile
        p = q / 100
        return 1 - p**n - n * (1 - p) * p ** (n - 1)

    assert chance_of_two_above(needed) >= 0.99 > chance_of_two_above(needed - 1)
    assert profile.percentile([1.0] * needed, q) == (1.0, True)
    assert profile.percentile([1.0] * (needed - 1), q) == (1.0, False)
    assert math.isclose(profile.percentile([0.0, 1.0], 90)[0], 0.9)
