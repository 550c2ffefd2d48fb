"""GPUs, read from sample answers."""

import os
import stat

import pytest

from edgegen.devices import gpu

SMI = """\
NVIDIA GeForce RTX 4090, 24564, 24111, 570.86.10, 8.9
Orin (nvgpu), [N/A], [N/A], 540.4.0, 8.7
"""


def node(root, name, **files):
    folder = root / "sys/class/drm" / name / "device"
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(text)


def test_nvidia_smi_gives_names_memory_architecture_and_driver():
    card, orin = gpu.parse_smi(SMI)
    assert card.description == "NVIDIA GeForce RTX 4090"
    assert card.memory_mb == 24564 * 1.048576
    assert card.isa == ("sm_89",)
    assert card.driver == "nvidia 570.86.10"
    assert (orin.description, orin.memory_mb) == ("NVIDIA Orin (nvgpu)", None)


def test_an_answer_that_is_not_a_table_is_no_gpu():
    assert gpu.parse_smi("No devices were found\n") == []
    assert gpu.parse_smi("") == []


def test_render_nodes_are_gpus_in_the_kernels_order(tmp_path):
    node(tmp_path, "renderD128", vendor="0x8086\n", device="0x56a0\n", uevent="DRIVER=i915\n")
    node(
        tmp_path,
        "renderD129",
        vendor="0x1002\n",
        device="0x744c\n",
        uevent="DRIVER=amdgpu\nPCI_ID=1002:744C\n",
        mem_info_vram_total="25753026560\n",
    )
    node(tmp_path, "renderD130", uevent="DRIVER=v3d\n")
    node(tmp_path, "card0", vendor="0x8086\n")  # a display, not a place to compute
    intel, amd, pi = gpu.nodes(tmp_path)
    assert (intel.description, intel.driver) == ("Intel 0x56a0", "i915")
    assert (amd.description, amd.memory_mb) == ("AMD 0x744c", 25753.02656)
    assert pi.description == "v3d"
    assert "renderD128 is missing" in intel.notes[0]


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Install a program called nvidia-smi that does what the given shell line does."""

    def install(line):
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return install


def test_nvidia_gpus_come_first_and_their_render_nodes_are_not_counted_twice(tmp_path, smi):
    smi("echo 'NVIDIA L4, 23034, 22000, 570.86, 8.9'")
    node(tmp_path, "renderD128", vendor="0x8086\n", device="0x4680\n")
    node(tmp_path, "renderD129", vendor="0x10de\n", device="0x27b8\n")
    found = [(device.name, device.description) for device in gpu.probe(tmp_path)]
    assert found == [("gpu", "NVIDIA L4"), ("gpu:1", "Intel 0x4680")]


def test_a_driver_that_does_not_answer_leaves_the_kernels_view(tmp_path, smi):
    smi("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    node(tmp_path, "renderD128", vendor="0x10de\n", device="0x27b8\n")
    assert [device.description for device in gpu.probe(tmp_path)] == ["NVIDIA 0x27b8"]


def test_a_machine_without_gpu_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.probe(tmp_path) == []
