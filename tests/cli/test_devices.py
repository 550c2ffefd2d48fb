"""`edgegen devices`."""

import json

import pytest

from edgegen import peaks
from edgegen.cli import app
from edgegen.cli import devices as command
from edgegen.devices import Device
from edgegen.doctor import Finding
from edgegen.errors import NotFoundError, UsageError
from edgegen.roofs import Bandwidth, Peak, Peaks
from edgegen.survey import Engine, Survey


def devices(*args):
    app(["devices", *map(str, args)], standalone_mode=False)


def test_devices_engines_and_what_is_not_installed_are_shown(capsys):
    cpu = Device(
        "cpu",
        "cpu",
        "4x Cortex-A76",
        memory_mb=8000.4,
        free_memory_mb=6000,
        physical_cores=4,
        logical_cores=4,
        isa=("asimd", "asimddp"),
        caches_kib={"L1d": 64},
        governor="ondemand",
        max_mhz=2400,
        notes=("limited to 2 of 4 cores",),
    )
    npu = Device("npu", "npu", "Intel NPU")
    engines = (
        Engine("onnxruntime", "1.31.1", "onnx", ("cpu",)),
        Engine("openvino", problem="not installed", fix="pip install 'edgegen[openvino]'"),
    )
    command._print_survey(Survey((cpu, npu), engines))
    out = capsys.readouterr().out
    for expected in (
        "4x Cortex-A76",
        "8000 (6000)",
        "not known",
        "cpu cores: 4 physical, 4 logical",
        "cpu instruction sets: asimd asimddp",
        "cpu caches: L1d 64 KiB",
        "cpu clock: 2400 MHz ondemand",
        "cpu note: limited to 2 of 4 cores",
        "not installed",
        "run: pip install 'edgegen[openvino]'",
    ):
        assert expected in out


@pytest.mark.slow
def test_json_is_the_survey_of_this_machine(capsys):
    devices("--json")
    found = json.loads(capsys.readouterr().out)
    assert found["devices"][0]["name"] == "cpu"
    assert {engine["name"] for engine in found["engines"]} >= {"onnxruntime", "openvino", "torch"}


def test_the_table_of_this_machine_is_drawn(capsys):
    devices()
    assert "devices by its own names" in capsys.readouterr().out


def test_findings_are_printed_with_the_command_that_mends_them(capsys):
    command._print_findings([Finding("it is broken", "mend it"), Finding("no plots", "get", True)])
    assert capsys.readouterr().out.splitlines() == [
        "problem: it is broken",
        "  run: mend it",
        "optional: no plots",
        "  run: get",
    ]
    command._print_findings([])
    assert capsys.readouterr().out == "nothing to mend\n"


def test_the_doctors_json_is_a_list_of_findings(capsys):
    devices("--doctor", "--json")
    assert all(
        {"problem", "fix", "optional"} == set(f) for f in json.loads(capsys.readouterr().out)
    )


def test_keys_are_made_and_it_is_said_where_each_goes(tmp_path, capsys):
    pytest.importorskip("cryptography", reason="needs the fleet extra")
    devices("keys", "pi5", "-o", tmp_path)
    out, err = capsys.readouterr()
    assert out.split() == [str(tmp_path / name) for name in ("hub", "client", "pi5")]
    assert err == f"copy each board its own: scp -r {tmp_path}/pi5 pi5:.config/edgegen/fleet/\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["join", "pi5:8786", "--name", "pi5"], "'pi5:8786' is no address of a hub"),
        (["join", "tcp://pi5", "--name", "pi5"], "neither encrypted nor authenticated"),
        (["join", "tls://pi5", "--name", "../pi5"], "'../pi5' cannot name a device"),
        (["hub", "--port", "-1"], "--port is -1"),
        (["hub", "--lost-after", "1"], "--lost-after is 1"),
        (["--fleet", "http://pi5"], "is no address of a hub"),
    ],
)
def test_a_fleet_is_not_built_on_a_bad_address_or_number(args, said):
    with pytest.raises(UsageError, match=said) as error:
        devices(*args)
    assert error.value.hint


def test_keys_that_are_missing_are_said_before_anything_is_tried(tmp_path):
    for args in (["join", "tls://pi5", "--name", "pi5"], ["--fleet", "tls://pi5"]):
        with pytest.raises(NotFoundError, match=r"has no ca\.pem, cert\.pem, key\.pem"):
            devices(*args, "--keys", tmp_path)


def test_peaks_are_measured_anew_and_shown(capsys, monkeypatch):
    found = Peaks(
        "cpu", "a processor", 2, "2026-11-21T00:00:00+00:00", (Peak("fp32", 31.4, "numpy 2"),),
        (Bandwidth("DRAM", 9.5, 4096, 0, "numpy 2"),), ("bf16 is not measured",),
    )  # fmt: skip
    asked = []
    monkeypatch.setattr(peaks, "find", lambda **options: asked.append(options) or found)
    devices("--measure", "--threads", 2)
    out, err = capsys.readouterr()
    assert "a processor, 2 threads" in out and "31.4 GFLOP/s" in out and "9.50 GB/s" in out
    assert err == "bf16 is not measured\n"
    assert (asked[0]["threads"], asked[0]["fresh"]) == (2, True)
    devices("--measure", "--json")
    assert json.loads(capsys.readouterr().out)["peaks"][0]["gflops"] == 31.4


def test_a_senseless_number_of_threads_is_refused():
    with pytest.raises(UsageError, match="--threads is -1"):
        devices("--measure", "--threads", -1)
