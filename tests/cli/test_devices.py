"""`edgegen devices`."""

import json

import pytest

from edgegen.cli import devices as command
from edgegen.devices import Device
from edgegen.doctor import Finding
from edgegen.survey import Engine, Survey


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
    command.devices(json=True, doctor=False)
    found = json.loads(capsys.readouterr().out)
    assert found["devices"][0]["name"] == "cpu"
    assert {engine["name"] for engine in found["engines"]} >= {"onnxruntime", "openvino", "torch"}


def test_the_table_of_this_machine_is_drawn(capsys):
    command.devices(json=False, doctor=False)
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
    command.devices(json=True, doctor=True)
    assert all(
        {"problem", "fix", "optional"} == set(f) for f in json.loads(capsys.readouterr().out)
    )
