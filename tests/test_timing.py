"""The measurement itself, in this process, with an engine in memory."""

import msgspec
import pytest

from edgegen import __version__, records, timing
from edgegen import bundle as bundles
from edgegen.devices import meters
from edgegen.devices.meters import Meter
from edgegen.profile import SCHEMA_VERSION
from edgegen.runtimes import callable as in_memory
from edgegen.spec import Operator, Options
from edgegen.workload import Job, request_for


def job(path, *, warmup=2, repeats=3, **more):
    return Job(str(path), "callable", "cpu", request_for(path), Options(), warmup, repeats, **more)


def three_steps():
    yield
    yield
    yield
    return "sample"


def test_a_loop_is_timed_step_by_step_and_its_sample_kept():
    sample, laps = timing.timed(three_steps())
    assert sample == "sample"
    assert len(laps) == 3
    assert all(ms >= 0 for ms in laps)


def test_images_have_one_step_a_repeat(image_bundle):
    found = timing.measure(job(image_bundle))
    assert (len(found.first_ms), found.steps_ms) == (3, ((), (), ()))
    assert (found.bundle, found.family, found.precision) == ("toy-vae", "vae", "fp32")
    assert (found.engine, found.format, found.device) == ("callable", "callable", "cpu")
    assert (found.warmup, found.repeats) == (2, 3)
    assert found.schema_version == SCHEMA_VERSION
    assert found.load_ms > 0
    assert found.cold_ms > 0


def test_text_has_a_first_and_later_tokens(text_bundle):
    found = timing.measure(job(text_bundle))
    assert [len(steps) for steps in found.steps_ms] == [31, 31, 31]  # of 32, the first apart


def test_peak_memory_and_environment_come_along(image_bundle):
    found = timing.measure(job(image_bundle))
    assert found.peak_rss_mb is None or found.peak_rss_mb > 10
    for key in ("cpu", "isa", "python", "os", "load_1min", "clock_mhz_end", "peak_rss_source"):
        assert key in found.environment
    assert found.environment["edgegen"] == __version__


def test_variables_that_change_threads_are_kept(image_bundle, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    kept = timing.measure(job(image_bundle)).environment["threading_variables"]
    assert kept["OMP_WAIT_POLICY"] == "PASSIVE"


def test_operators_are_the_engine_s_own(image_bundle):
    (operator,) = timing.measure(job(image_bundle)).operators
    assert (operator.kind, operator.calls) == ("function", timing.PROFILED_RUNS)
    assert timing.measure(job(image_bundle, operators=False)).operators == ()


def test_golden_data_is_run_when_asked_for(image_bundle):
    drifts = timing.measure(job(image_bundle, verify=True)).drifts
    assert {d.graph for d in drifts} == {"decoder", "encoder"}
    assert all(d.ok and d.max_abs_error == 0 for d in drifts)
    assert timing.measure(job(image_bundle)).drifts == ()


def test_progress_covers_warm_up_and_repeats(image_bundle):
    said = []
    timing.measure(job(image_bundle), lambda *line: said.append(line))
    what = "toy-vae callable cpu"
    assert said[:6] == [(what, n, 5) for n in range(6)]
    assert said[-1] == ("operators", 1, 1)


def test_no_two_repeats_have_the_same_latents_and_everybody_the_same_ones(image_bundle, toys):
    seen = []

    def noted(feed):
        seen.append(feed["latent"].tobytes())
        return toys.toy_decoder(feed)

    in_memory.register("noted", noted)
    records.write(in_memory.File("noted"), image_bundle / "decoder/model.callable")
    manifest = bundles.open_bundle(image_bundle).manifest
    fresh = msgspec.structs.replace(manifest, files=bundles.sums(image_bundle))
    records.write(fresh, image_bundle / bundles.MANIFEST)
    timing.measure(job(image_bundle, repeats=6, operators=False))
    alone, seen = seen, []
    timing.measure(job(image_bundle, operators=False))
    timing.measure(job(image_bundle, operators=False, first=3))
    assert len(set(alone)) == 9  # cold, two to warm up, six timed
    assert alone[3:] == seen[3:6] + seen[9:12]


def test_without_a_name_the_first_engine_that_fits_is_taken(image_bundle):
    anyone = msgspec.structs.replace(job(image_bundle), runtime=None)
    assert timing.measure(anyone).engine == "callable"


def test_nodes_are_summed_by_kind_the_most_expensive_first():
    nodes = [
        Operator("a", "Conv", "cpu", 2, 1.0),
        Operator("b", "MatMul", "cpu", 2, 5.0),
        Operator("c", "Conv", "cpu", 2, 3.0),
        Operator("d", "Conv", "gpu", 2, 0.5),
    ]
    assert timing.by_kind(nodes) == (
        Operator("b", "MatMul", "cpu", 2, 5.0),
        Operator("c", "Conv", "cpu", 4, 4.0),
        Operator("d", "Conv", "gpu", 2, 0.5),
    )


def test_a_device_that_only_its_engine_knows_keeps_its_name():
    assert timing._device_name("hetero:cpu", {}) == "hetero:cpu"
    assert timing._device_name("cpu", {"cpu": "a processor"}) == "a processor"


def test_a_clock_that_cannot_be_read_is_zero(monkeypatch):
    def unreadable():
        raise NotImplementedError

    monkeypatch.setattr(timing.psutil, "cpu_freq", unreadable)
    assert timing._clock_mhz() == 0
    monkeypatch.setattr(timing.psutil, "cpu_freq", lambda: None)
    assert timing._clock_mhz() == pytest.approx(0)


def counting(joules):
    """A meter that reads `joules` after whatever it measured."""
    return Meter("measured by a test", lambda s: joules * (s > 0), period_s=60.0, least_s=0.0)


def test_joules_are_of_one_token_or_image(text_bundle, image_bundle, monkeypatch):
    monkeypatch.setattr(meters, "find", lambda device, watts: counting(192.0))
    found = timing.measure(job(text_bundle))
    assert (found.energy_j, found.energy_source) == (192 / (3 * 32), "measured by a test")
    request = request_for(image_bundle, batch=4)
    found = timing.measure(msgspec.structs.replace(job(image_bundle), request=request))
    assert found.energy_j == 192 / (3 * 4)


def test_where_energy_is_not_measured_the_reason_stands_in_the_profile(image_bundle, monkeypatch):
    monkeypatch.setattr(meters, "find", lambda device, watts: "not measured: no meter")
    found = timing.measure(job(image_bundle))
    assert (found.energy_j, found.energy_source) == (None, "not measured: no meter")
