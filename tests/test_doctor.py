"""Made-up inventories in, exact findings out."""

import subprocess
import sys
from pathlib import Path

import pytest

from edgegen import doctor
from edgegen.devices import Device
from edgegen.doctor import Finding, Inventory, findings

L4 = Device("gpu", "gpu", "NVIDIA L4")
ARC = Device("gpu", "gpu", "Intel 0x56a0")


def test_a_sound_environment_has_no_findings():
    requires = ("numpy>=1.26", 'onnxruntime>=1.23; extra == "onnxruntime"')
    packages = {"numpy": "2.4.6", "onnxruntime": "1.31.1"}
    assert findings(Inventory(packages, requires=requires, tested=packages)) == []


@pytest.mark.parametrize(
    ("found", "gpus", "keep"),
    [
        (["onnxruntime", "onnxruntime-gpu"], (L4,), "onnxruntime-gpu"),
        (["onnxruntime", "onnxruntime-gpu"], (ARC,), "onnxruntime"),
        (["onnxruntime", "onnxruntime-directml"], (), "onnxruntime-directml"),
        (["onnxruntime-gpu", "onnxruntime-openvino"], (), "onnxruntime-openvino"),
    ],
)
def test_two_flavours_of_onnx_runtime_are_both_removed_and_one_put_back(found, gpus, keep):
    have = Inventory(dict.fromkeys(found, "1.31.1"), gpus)
    assert findings(have) == [
        Finding(
            "2 flavours of ONNX Runtime share one folder and overwrite each other: "
            f"{found[0]} 1.31.1, {found[1]} 1.31.1",
            f"pip uninstall -y {found[0]} {found[1]} && pip install {keep}",
        )
    ]


def test_a_cpu_wheel_beside_an_nvidia_gpu_is_found():
    assert findings(Inventory({"onnxruntime": "1.31.1"}, (L4,))) == [
        Finding(
            "NVIDIA L4 is there, but onnxruntime 1.31.1 is the CPU wheel and cannot use it",
            "pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
        )
    ]
    assert findings(Inventory({"onnxruntime": "1.31.1"}, (ARC,))) == []
    assert findings(Inventory({"onnxruntime-gpu": "1.31.1"}, (L4,))) == []


def test_a_cpu_build_of_torch_beside_an_nvidia_gpu_is_found():
    assert findings(Inventory({"torch": "2.13.0+cpu"}, (L4,))) == [
        Finding(
            "NVIDIA L4 is there, but torch 2.13.0+cpu is the CPU build: training will not use it",
            "pip uninstall -y torch && pip install torch==2.13.0 "
            "--index-url https://download.pytorch.org/whl/cu130",
        )
    ]
    assert findings(Inventory({"torch": "2.13.0+cu130"}, (L4,))) == []
    assert findings(Inventory({"torch": "2.13.0+cpu"})) == []


def test_missing_extras_are_optional_and_name_purpose_packages_and_command():
    requires = (
        'tokenizers>=0.21; extra == "text"',
        'jinja2>=3.1; extra == "text"',
        'edgegen[text]; extra == "gguf"',
    )
    assert findings(Inventory({"tokenizers": "0.23.3"}, requires=requires)) == [
        Finding("running language models needs jinja2", "pip install 'edgegen[text]'", True)
    ]


def test_any_flavour_of_onnx_runtime_is_the_onnxruntime_extra():
    requires = ('onnxruntime>=1.23; extra == "onnxruntime"',)
    assert findings(Inventory({"onnxruntime-qnn": "1.31.1"}, requires=requires)) == []


def test_a_package_older_than_needed_is_found():
    requires = ("numpy>=1.26", 'onnx>=1.19; extra == "build"')
    have = Inventory({"numpy": "1.26", "onnx": "1.9.1"}, requires=requires)
    assert findings(have) == [
        Finding(
            "onnx 1.9.1 is older than 1.19, which EdgeGen needs",
            "pip install --upgrade 'onnx>=1.19'",
        )
    ]


def test_versions_other_than_the_tested_ones_are_one_finding_and_patch_releases_none():
    tested = {"torch": "2.13.0", "onnx": "1.23.2", "numpy": "2.4.6"}
    packages = {"torch": "2.14.1", "onnx": "1.23.9", "numpy": "2.0.0"}
    assert findings(Inventory(packages, tested=tested)) == [
        Finding(
            "not the versions EdgeGen was tested with: torch 2.14.1 (tested: 2.13.0)",
            "pip install torch==2.13.0",
            True,
        )
    ]


def test_where_openvino_has_no_wheel_it_is_said_and_not_advised():
    requires = ('openvino>=2025.4; extra == "openvino"',)
    old = Inventory({}, requires=requires, machine="aarch64", glibc="2.31")
    assert findings(old) == [
        Finding(
            "openvino has no wheel for this system: on aarch64 it needs glibc 2.35, here is 2.31",
            "pip install 'edgegen[onnxruntime]'",
        )
    ]
    new = Inventory({}, requires=requires, machine="aarch64", glibc="2.36")
    assert [finding.fix for finding in findings(new)] == ["pip install 'edgegen[openvino]'"]


def test_the_real_inventory_knows_the_requirements_and_what_was_tested():
    have = doctor.inventory()
    assert any(line.startswith("numpy>=") for line in have.requires)
    assert have.has("msgspec")
    pins = doctor.pins((Path(doctor.__file__).parent.parent / "constraints.txt").read_text())
    assert have.tested == pins
    assert set(doctor.PINNED) <= set(pins)


def test_every_extra_the_doctor_speaks_of_exists():
    extras = {extra for _, _, extra in doctor._requirements(doctor.inventory())}
    assert set(doctor.EXTRAS) <= extras


def test_a_diagnosis_imports_no_engine():
    code = (
        "import sys; from edgegen.doctor import diagnose; diagnose(); "
        "assert not {'torch', 'onnxruntime', 'openvino', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
