"""NPUs, read from sample trees of /sys."""

from edgegen.devices import npu


def node(root, name, driver, chip=""):
    folder = root / "sys/class/accel" / name / "device"
    folder.mkdir(parents=True)
    (folder / "uevent").write_text(f"DRIVER={driver}\n")
    if chip:
        (folder / "device").write_text(f"{chip}\n")


def test_accelerators_are_named_by_their_driver(tmp_path):
    node(tmp_path, "accel0", "intel_vpu", "0x7d1d")
    node(tmp_path, "accel1", "amdxdna")
    node(tmp_path, "accel2", "newcomer")
    found = [(device.name, device.description) for device in npu.probe(tmp_path)]
    assert found == [
        ("npu", "Intel NPU 0x7d1d"),
        ("npu:1", "AMD XDNA NPU"),
        ("npu:2", "newcomer"),
    ]


def test_an_accelerator_that_is_not_passed_into_the_container_says_so(tmp_path):
    node(tmp_path, "accel0", "intel_vpu")
    assert "dev/accel/accel0 is missing" in npu.probe(tmp_path)[0].notes[0]
    (tmp_path / "dev/accel").mkdir(parents=True)
    (tmp_path / "dev/accel/accel0").touch()
    assert npu.probe(tmp_path)[0].notes == ()


def test_a_machine_without_npu_has_none(tmp_path):
    assert npu.probe(tmp_path) == []
