"""`--runtime auto`: the fastest engine that proves the bundle, found once and kept."""

from statistics import median

import msgspec
import pytest

from edgegen import auto, cli, records
from edgegen.bundle import open_bundle
from edgegen.cli import profile
from edgegen.errors import UnsupportedError, UsageError
from edgegen.spec import Options
from edgegen.verify import verify


@pytest.fixture(autouse=True)
def kept(monkeypatch, tmp_path):
    monkeypatch.setattr(auto.platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    monkeypatch.setattr(auto, "BUDGET_S", 0.01)
    return tmp_path / "cache/auto"


def test_the_one_engine_that_there_is_is_taken_with_its_times(image_bundle, kept):
    choice = auto.choose(image_bundle)
    assert choice.engine == "callable"
    assert auto.TURNS <= len(choice.candidates[0].ms) <= auto.TURNS * auto.MOST
    assert choice.why().startswith("auto: callable for toy-vae on cpu (a run of batch 1: callable ")
    assert records.read(auto.Choice, next(kept.iterdir())) == choice


def test_what_was_found_is_kept_by_bundle_and_options(image_bundle, kept):
    first = auto.choose(image_bundle)
    (file,) = kept.iterdir()
    other = msgspec.structs.replace(first, engine="a-tale")
    records.write(other, file)
    assert auto.choose(image_bundle) == other
    assert auto.choose(image_bundle, options=Options(threads=1)).engine == "callable"
    assert len(list(kept.iterdir())) == 2
    file.write_text("{}")  # an older version's
    assert auto.choose(image_bundle).engine == "callable"


def test_an_engine_that_computes_another_model_is_not_taken(image_bundle, toys):
    toys.in_memory.register(
        "toy-decoder", lambda feed: {"image": 2 * toys.toy_decoder(feed)["image"]}
    )
    try:
        with pytest.raises(UnsupportedError, match="callable not taken: decoder batch-2 image is"):
            auto.choose(image_bundle)
    finally:
        toys.in_memory.register("toy-decoder", toys.toy_decoder)


def test_an_engine_that_fails_while_it_is_timed_is_not_taken(image_bundle, toys):
    calls = []

    def limited(feed):
        calls.append(1)
        if len(calls) > proofs:
            raise UnsupportedError("it has had enough")
        return toys.toy_decoder(feed)

    proofs = 1000
    toys.in_memory.register("toy-decoder", limited)
    try:
        verify(open_bundle(image_bundle), "callable")
        proofs = len(calls)
        calls.clear()
        with pytest.raises(UnsupportedError, match="callable not taken: it has had enough"):
            auto.choose(image_bundle)
    finally:
        toys.in_memory.register("toy-decoder", toys.toy_decoder)


def test_a_device_that_no_engine_has_is_said_engine_by_engine(image_bundle):
    with pytest.raises(UnsupportedError, match="no engine proves it on npu: callable not taken"):
        auto.choose(image_bundle, "npu")


def test_run_and_profile_say_why(image_bundle, capsys, tmp_path):
    arguments = (image_bundle, "--num", 1, "-o", tmp_path / "grid.png", "--runtime", "auto")
    cli.app(["run", *map(str, arguments)], standalone_mode=False)
    assert "auto: callable for toy-vae on cpu" in capsys.readouterr().err
    for devices in (["cpu"], []):
        assert profile._engine(image_bundle, "auto", devices, "", Options()) == "callable"
    assert "auto: callable for toy-vae on cpu" in capsys.readouterr().err
    assert profile._engine(image_bundle, "openvino", ["cpu"], "", Options()) == "openvino"


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--provider", "kernels=plain"], "--provider kernels is for one engine"),
        (["-d", "cpu", "-d", "gpu"], "--runtime auto looks for the fastest engine on one device"),
    ],
)
def test_what_auto_cannot_do_is_refused(image_bundle, extra, said):
    with pytest.raises(UsageError, match=said):
        cli.app(["profile", str(image_bundle), "--runtime", "auto", *extra], standalone_mode=False)


@pytest.mark.slow
def test_of_two_engines_that_prove_it_the_faster_is_taken(exports):
    choice = auto.choose(exports("gpt", "fp32"))
    assert {one.engine for one in choice.candidates} == {"onnxruntime", "openvino"}
    assert all(one.ms for one in choice.candidates)
    best = min(choice.candidates, key=lambda one: median(one.ms))
    assert choice.engine == best.engine
    assert "tokens in, " in choice.why()
