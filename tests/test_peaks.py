"""Peaks: what is read of each level, the cache of what was measured, and its refusals."""

import sys

import msgspec
import pytest

from edgegen import peaks
from edgegen.devices import Device
from edgegen.errors import EdgeGenError, UnsupportedError
from edgegen.peaks import Found, Trial

EPYC = Device("cpu", "cpu", "x", caches_kib={"L1d": 32, "L1i": 32, "L2": 1024, "L3": 32768})
QUICK = {"size": 64, "seconds": 0.001}


def test_half_of_each_level_is_read_and_beyond_the_last():
    assert peaks.working_sets(EPYC, 2) == [
        ("L1", 32, 64),  # each core has its own
        ("L2", 1024, 2048),
        ("L3", 16384, 32768),  # one for all
        ("DRAM", 131072, 0),
    ]


def test_a_board_without_l3_shares_its_l2():
    pi4 = Device("cpu", "cpu", "x", caches_kib={"L1d": 32, "L1i": 48, "L2": 1024})
    assert [w[2] for w in peaks.working_sets(pi4, 4)] == [128, 1024, 0]


def test_without_caches_only_dram_is_read():
    bare = Device("cpu", "cpu", "x")
    assert peaks.working_sets(bare, 2) == [("DRAM", peaks.NO_CACHE_KIB, 0)]


@pytest.mark.parametrize(
    ("physical", "logical", "usable", "wanted"),
    [(4, 8, 8.0, 4), (4, 8, 2.0, 2), (4, 8, 0.5, 1), (None, 8, None, 8), (None, None, None, 1)],
)
def test_a_thread_a_core_that_may_be_used(physical, logical, usable, wanted):
    machine = Device("cpu", "cpu", "x", None, None, physical, logical, usable)
    assert peaks.cores(machine) == wanted


def test_another_device_is_refused():
    with pytest.raises(UnsupportedError, match="gpu: peaks, and so a roofline") as error:
        peaks.find("gpu")
    assert "--device cpu" in error.value.hint


@pytest.mark.slow
def test_a_measurement_is_kept_until_it_is_asked_for_anew(tmp_path, monkeypatch):
    seen = []
    first = peaks.find(threads=1, folder=tmp_path, report=lambda *a: seen.append(a), **QUICK)
    assert [b.level for b in first.bandwidths][-1] == "DRAM"
    assert first.gflops("fp32") > 0 and first.gflops("fp8") is None
    assert first.threads == 1
    assert seen[0][1] == 0 and seen[-1][1] == seen[-1][2]
    assert all(b.gb_s > 0 and b.by for b in first.bandwidths)
    kept = msgspec.structs.replace(first, device_name="kept")
    (file,) = tmp_path.iterdir()
    file.write_bytes(msgspec.json.encode(kept))
    assert peaks.find(threads=1, folder=tmp_path, **QUICK) == kept
    monkeypatch.setattr(peaks, "measure", lambda *_, **__: first)
    assert peaks.find(threads=1, folder=tmp_path, fresh=True, **QUICK) == first
    file.write_bytes(b"{")  # cut short
    assert peaks.find(threads=1, folder=tmp_path, **QUICK) == first


def test_the_key_is_the_devices_not_the_moments():
    other = msgspec.structs.replace(EPYC, free_memory_mb=3.0, notes=("a note",))
    assert peaks._key(EPYC, 2, 64) == peaks._key(other, 2, 64)
    assert peaks._key(EPYC, 2, 64) != peaks._key(EPYC, 1, 64)


def test_the_users_cache_is_where_they_lie_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert peaks.default().name == "peaks" and peaks.default().parent.name == "edgegen"


def test_reading_is_faster_than_nothing_with_several_threads():
    assert peaks.carry_out(Trial(2, kib=64, seconds=0.001)).rates["read"] > 0


def test_a_product_of_every_precision_an_engine_has():
    rates = peaks.carry_out(Trial(1, "numpy", size=32, seconds=0.001)).rates
    assert rates["fp32"] > 0


def test_an_engine_that_fails_is_left_out_and_named():
    found = peaks._apart(Trial(1, "nosuch", size=8, seconds=0.001))
    assert found.rates == {} and found.problem.startswith("nosuch is left out, it failed: ")


def test_a_process_that_cannot_start_says_so(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EdgeGenError, match="reading memory failed: it said nothing"):
        peaks._apart(Trial(1, kib=64))


def test_one_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(peaks, "TIMEOUT_S", 0.01)
    with pytest.raises(EdgeGenError, match=r"numpy was not done after 0\.01 s"):
        peaks._apart(Trial(1, "numpy", size=64))


def test_the_best_engine_counts_for_each_precision(monkeypatch):
    rates = {
        "numpy": Found({"fp32": 1.0}),
        "onnxruntime": Found({"fp32": 3.0, "int8": 4.0}),
        "openvino": Found(problem="openvino is left out"),
        "": Found({"read": 5.0}),
    }
    monkeypatch.setattr(peaks, "_apart", lambda trial: rates[trial.engine])
    monkeypatch.setattr(peaks, "_version", lambda name: f"{name} 1")
    found = peaks.measure(EPYC, 1, size=8, seconds=0)
    assert [(p.precision, p.gflops) for p in found.peaks] == [("fp32", 3.0), ("int8", 4.0)]
    assert found.peaks[0].by == "onnxruntime 1, product of 8 x 8"
    assert found.notes == (
        "openvino is left out",
        "bf16 is not measured: no engine here computes in it",
    )
    bare = peaks.measure(Device("cpu", "cpu", "x"), 1, size=8, seconds=0)
    assert bare.notes[-1] == "caches are not readable here: only DRAM was measured"
