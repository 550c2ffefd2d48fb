"""Flags: raised by samples made to deserve them, and silent on sound ones."""

import numpy as np
import pytest

from edgegen import validity
from edgegen.spec import Operator


def flagged(profile):
    return {flag.partition(":")[0] for flag in validity.flags(profile)}


def with_runs(make_profile, values):
    return make_profile(first_ms=tuple(values), steps_ms=((),) * len(values), repeats=len(values))


def test_a_sound_profile_has_no_flags(make_profile):
    assert validity.flags(make_profile(repeats=700)) == ()


def test_too_few_samples_name_what_each_percentile_needs(make_profile):
    assert validity.flags(make_profile()) == ("few samples: 20; p90 needs 64, p99 needs 662",)
    assert "few samples: 5; p50 needs 11" in validity.flags(make_profile(repeats=5))[0]


def test_text_counts_its_tokens(make_profile):
    assert validity.flags(make_profile(tokens=40)) == ()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_drift_is_found_and_measured(make_profile, sign):
    rising = (
        10
        * (1 + sign * np.linspace(0, 0.2, 30))
        * np.exp(np.random.default_rng(0).normal(0, 0.01, 30))
    )
    flag = next(f for f in validity.flags(with_runs(make_profile, rising)) if "drift" in f)
    change = float(flag.split()[1].rstrip("%"))
    assert sign * change == pytest.approx(20, abs=4)


def test_drift_of_a_straight_line_is_exact():
    change, p = validity.drift([10.0, 11.0, 12.0, 13.0, 14.0])
    assert change == pytest.approx(4 / 12)
    assert p == pytest.approx(0.0275, abs=1e-3)  # S = 10, variance 16.67, continuity corrected


def test_two_values_have_no_drift():
    assert validity.drift([1.0, 2.0]) == (0.0, 1.0)


def test_false_alarms_of_drift_are_as_rare_as_promised(make_profile):
    alarms = sum("drift" in flagged(make_profile(seed, repeats=30)) for seed in range(200))
    assert alarms <= 6


def test_one_outlier_is_no_drift(make_profile):
    assert "drift" not in flagged(with_runs(make_profile, [10.0] * 29 + [100.0]))


def test_two_modes_are_found(make_profile):
    rng = np.random.default_rng(0)
    runs = np.where(np.arange(40) % 3 == 0, 14, 10) + rng.uniform(-0.04, 0.04, 40)
    found = validity.flags(with_runs(make_profile, runs))[-1]
    assert found == "two modes: repeats gather at 10 and 14 ms"


def test_one_mode_is_not_taken_for_two(make_profile):
    assert not any("two modes" in flagged(make_profile(seed)) for seed in range(200))


def test_two_modes_need_more_than_a_handful():
    assert validity.modes([1.0, 1.0, 9.0]) is None
    assert validity.modes([1.0, 1.0, 1.0, 9.0, 9.0, 9.0]) == (1.0, 9.0)


def test_a_falling_clock_is_throttling(make_profile):
    clocks = {"clock_mhz_start": 3000.0, "clock_mhz_end": 2000.0}
    assert "throttled" in flagged(make_profile(environment=clocks))
    assert "throttled" not in flagged(make_profile(environment=clocks | {"clock_mhz_end": 2900.0}))
    assert "throttled" not in flagged(make_profile(environment=clocks | {"clock_mhz_start": 0.0}))


def test_a_hot_device_is_named_with_both_readings(make_profile):
    hot = {"heat_c_start": 60.0, "heat_c_end": 91.0}
    found = validity.flags(make_profile(environment=hot))
    assert "hot: 91 °C at the end, 60 °C at the start" in found
    assert "hot" not in flagged(make_profile(environment=hot | {"heat_c_end": 70.0}))
    assert "hot" not in flagged(make_profile())


def test_a_busy_machine_is_named(make_profile):
    busy = {"load_1min": 3.0, "usable_cores": 2.0}
    assert validity.flags(make_profile(environment=busy))[-1] == (
        "busy machine: load average 3.0 on 2 cores before the first run"
    )
    assert "busy machine" not in flagged(make_profile(environment=busy | {"load_1min": 0.2}))


def test_operators_that_fell_back_are_named_with_their_share(make_profile):
    operators = (Operator("a", "Conv", "cuda", 1, 3.0), Operator("b", "Loop", "cpu", 1, 1.0))
    found = validity.flags(make_profile(device="gpu", operators=operators))
    assert found[-1] == "fallback: 25% of operator time on cpu (Loop)"
    assert "fallback" not in flagged(make_profile(device="cpu", operators=operators))
    assert "fallback" not in flagged(make_profile(device="auto", operators=operators))
    assert "fallback" not in flagged(make_profile(device="gpu", operators=operators[:1]))


def test_of_a_gpu_its_own_clock_and_heat_count(make_profile):
    environment = {"clock_mhz_start": 3000.0, "clock_mhz_end": 1000.0}
    environment |= {"gpu_clock_mhz_start": 1980.0, "gpu_clock_mhz_end": 1980.0}
    environment |= {"gpu_heat_c_start": 40.0, "gpu_heat_c_end": 90.0}
    found = validity.flags(make_profile(device="gpu:1", environment=environment))
    assert not any(flag.startswith("throttled") for flag in found)
    assert "hot: 90 °C at the end, 40 °C at the start" in found
    environment["gpu_clock_mhz_end"] = 990.0
    found = validity.flags(make_profile(device="gpu", environment=environment))
    assert "throttled: the clock went from 1980 to 990 MHz" in found
