"""Meters of energy, on folders laid out as the kernel lays out /sys."""

import os
import sys
import time
from types import SimpleNamespace

import pytest

from edgegen.devices import meters
from edgegen.devices.meters import energy, hwmon, nvml, powercap


def folder(path, **files):
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(f"{text}\n")
    return path


@pytest.fixture
def rapl(tmp_path):
    """Two packages, memory, cores, psys; a counter wraps at 1 J."""
    root = tmp_path / "sys/class/powercap"
    for name, label in (
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:0:1", "dram"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl:2", "psys"),
    ):
        folder(root / name, name=label, energy_uj=100, max_energy_range_uj=1_000_000)
    for n in (0, 1):
        (root / f"intel-rapl:{n}/constraint_0_max_power_uw").write_text("65000000\n")
    return tmp_path


def test_packages_and_memory_are_counted_once(rapl):
    found, problem = powercap.zones(rapl)
    assert sorted(zone.name for zone in found) == ["dram", "package-0", "package-1"]
    assert problem == ""


def test_a_counter_that_wraps_goes_on(rapl):
    (zone, *_), _ = powercap.zones(rapl)
    spent = powercap.counter([zone])
    assert spent(0.0) == 0
    zone.file.write_text("600100\n")
    assert spent(1.0) == pytest.approx(0.6)
    zone.file.write_text("200000\n")  # past a million, and from 0 again
    assert spent(1.0) == pytest.approx(0.5999)


def test_a_counter_that_may_not_be_read_is_named_with_the_command(rapl):
    file = rapl / "sys/class/powercap/intel-rapl:0/energy_uj"
    file.unlink()
    file.mkdir()  # what not even root can read as a file
    found, problem = powercap.zones(rapl)
    assert found == []
    assert problem == f"{file} may not be read (run: sudo chmod a+r {file})"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_counter_is_none(rapl):
    (rapl / "sys/class/powercap/intel-rapl:0/energy_uj").chmod(0)
    assert powercap.zones(rapl)[0] == []


def test_powercap_without_a_package_is_none(tmp_path):
    folder(tmp_path / "sys/class/powercap/intel-rapl:0", name="psys", energy_uj=1)
    assert powercap.zones(tmp_path) == ([], "no package in powercap")


def test_rapl_is_the_first_choice(rapl):
    meter = meters.find("cpu", watts=5.0, root=rapl)
    assert meter.source.startswith("measured by powercap: package-0, dram")


def test_what_rapl_counted_between_start_and_stop_is_the_answer(rapl):
    meter = meters.find("cpu", root=rapl)
    meter.least_s = 0.0
    meter.start()
    for zone in powercap.zones(rapl)[0]:
        zone.file.write_text("500100\n")
    joules, source = meter.stop()
    assert joules == pytest.approx(1.5)
    assert source == meter.source


def test_a_measurement_shorter_than_the_meter_can_say_is_refused(rapl):
    meter = meters.find("cpu", root=rapl)
    meter.least_s = 1e6
    meter.start()
    joules, source = meter.stop()
    assert joules is None
    assert source.startswith("not measured: ") and "too short for measured by powercap" in source
    assert source.endswith("give more --repeats")


@pytest.fixture
def board(tmp_path):
    """hwmon of a board: a temperature sensor, an INA that gives power, one that gives current."""
    root = tmp_path / "sys/class/hwmon"
    folder(root / "hwmon0", name="cpu_thermal", temp1_input=50000, power1_input=9)
    folder(root / "hwmon1", name="ina226", power1_input=2_500_000)
    folder(root / "hwmon2", name="ina3221", curr1_input=300, in1_input=5000, in1_label="VDD_SOC")
    return tmp_path


def test_the_rails_of_a_board_are_added_up(board):
    found = hwmon.sensor(board)
    assert found.name == "ina226 + ina3221 VDD_SOC"
    assert found.watts() == pytest.approx(2.5 + 0.3 * 5)


def test_where_one_rail_feeds_all_others_it_alone_counts(board):
    chip = board / "sys/class/hwmon/hwmon2"
    for name, value in (("curr2_input", 2000), ("in2_input", 5000), ("in2_label", "VDD_IN")):
        (chip / name).write_text(f"{value}\n")
    found = hwmon.sensor(board)
    assert (found.name, found.watts()) == ("ina3221 VDD_IN", pytest.approx(10.0))


def test_other_sensors_are_no_meter(tmp_path):
    folder(tmp_path / "sys/class/hwmon/hwmon0", name="nvme", power1_input=5)
    assert hwmon.sensor(tmp_path) is None


def test_a_board_without_rapl_takes_its_ina(board):
    assert meters.find("cpu", root=board).source == "measured by hwmon: ina226 + ina3221 VDD_SOC"


def test_power_is_added_up_over_time():
    watts = iter([2.0, 4.0, 4.0])
    spent = energy._of_power(lambda: next(watts))
    assert [spent(0.0), spent(1.0), spent(0.5)] == [0.0, 3.0, 2.0]


def test_without_a_meter_given_watts_make_a_model_that_says_so(tmp_path):
    meter = meters.find("cpu", watts=15.0, root=tmp_path)
    assert meter.source.startswith("modelled by 15 W (given) by the busy share of ")
    assert meter.source.endswith("; no powercap")
    meter.least_s = 0.0
    meter.start()
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    joules, _ = meter.stop()
    cores = int(meter.source.split("share of ")[1].split()[0])
    assert joules >= 15 * 0.03 / cores  # the system counts in hundredths of a second


def test_a_rating_that_can_be_read_where_the_counter_cannot_makes_a_model(rapl):
    for name in ("intel-rapl:0", "intel-rapl:1"):
        (rapl / f"sys/class/powercap/{name}/energy_uj").write_text("\n")
    meter = meters.find("cpu", root=rapl)
    assert meter.source.startswith("modelled by 130 W (the CPU's own rating)")
    assert "may not be read (run: sudo chmod" in meter.source


def test_with_nothing_to_go_by_the_reasons_and_the_fix_are_said(tmp_path):
    said = meters.find("cpu", root=tmp_path)
    assert said == (
        "not measured: no powercap, no INA sensor in hwmon, no power rating: "
        "give --watts for a model"
    )
    assert meters.find("npu", root=tmp_path) == "not measured: no meter for npu"


def test_what_nvidia_smi_prints_is_read():
    found = nvml.parse("71.35, 1980, 1024, 41\n")
    assert found == nvml.Reading(71.35, 1980.0, 1024 * 2**20 / 1e6, 41.0)
    assert nvml.parse("[N/A], 1980, [Not Supported], 41") == nvml.Reading(None, 1980.0, None, 41.0)
    assert nvml.parse("No devices were found") == "nvidia-smi answered 'No devices were found'"


def program(tmp_path, text, code=0):
    """A real nvidia-smi, as far as we talk to it."""
    file = tmp_path / "nvidia-smi"
    file.write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
    file.chmod(0o755)
    return file


def test_nvidia_smi_is_asked_and_its_refusal_passed_on(tmp_path):
    assert nvml.of_smi("0", str(program(tmp_path, "50, 1000, 2, 30"))).watts == 50.0
    refused = program(tmp_path, "NVIDIA-SMI has failed: no driver", 9)
    assert nvml.of_smi("0", str(refused)) == "nvidia-smi: NVIDIA-SMI has failed: no driver"
    assert "nvidia-smi: " in nvml.of_smi("0", str(tmp_path / "missing"))
    assert nvml.of_smi("0", "") == "no NVIDIA GPU: neither pynvml nor nvidia-smi is here"


def test_a_gpu_that_nvidia_smi_knows_has_a_meter_and_a_state(tmp_path, monkeypatch):
    program(tmp_path, "50, 1000, 2, 30")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert meters.find("gpu:1").source == "measured by NVML: GPU 1"
    assert nvml.reader(0)() == 50.0
    assert nvml.state(0, "end") == {
        "gpu_clock_mhz_end": 1000.0, "gpu_memory_mb_end": 2.097152, "gpu_heat_c_end": 30.0,
    }  # fmt: skip
    program(tmp_path, "[N/A], 1000, 2, 30")
    assert nvml.reader(0) == "GPU 0 does not say what power it draws"


def test_without_a_gpu_the_reason_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert meters.find("gpu") == (
        "not measured: no NVIDIA GPU: neither pynvml nor nvidia-smi is here"
    )
    assert nvml.state(0, "start") == {}


class NVMLError(Exception):
    pass


def unsupported(*_):
    raise NVMLError("Not Supported")


def library(**changes):
    """A library with pynvml's functions."""
    return SimpleNamespace(
        **{
            "NVMLError": NVMLError,
            "NVML_CLOCK_SM": 1,
            "NVML_TEMPERATURE_GPU": 0,
            "nvmlInit": lambda: None,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetHandleByUUID": lambda name: name,
            "nvmlDeviceGetPowerUsage": lambda gpu: 71350,
            "nvmlDeviceGetClockInfo": lambda gpu, kind: 1980,
            "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(used=3_000_000),
            "nvmlDeviceGetTemperature": lambda gpu, kind: 41,
        }
        | changes
    )


def test_pynvml_counts_in_milliwatts_and_bytes(monkeypatch):
    assert nvml.of_pynvml(library(), "0") == nvml.Reading(71.35, 1980.0, 3.0, 41.0)
    without = library(nvmlDeviceGetPowerUsage=unsupported)
    assert nvml.of_pynvml(without, "GPU-1a2b") == nvml.Reading(None, 1980.0, 3.0, 41.0)
    monkeypatch.setitem(sys.modules, "pynvml", library(nvmlInit=unsupported))
    assert nvml.read(0) == "NVML: Not Supported"


@pytest.mark.parametrize(
    ("index", "listed", "name"),
    [(0, "", "0"), (1, "2,3", "3"), (0, "GPU-1a2b", "GPU-1a2b"), (5, "2,3", "5")],
)
def test_nvml_is_asked_for_the_gpu_that_cuda_is_shown(index, listed, name):
    assert nvml.visible(index, listed) == name
