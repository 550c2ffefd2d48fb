"""The room of devices."""

import pytest

from edgegen import devices, rooms
from edgegen.errors import NotFoundError

KINDS = rooms.names("edgegen.devices")


def test_the_kinds_are_the_files_and_the_meters_are_none():
    assert KINDS == ["cpu", "gpu", "npu"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_probes_to_devices_of_its_kind(kind):
    found = rooms.load("edgegen.devices", kind).probe()
    assert all(device.kind == kind for device in found)
    assert [d.name for d in found] == [devices.numbered(kind, i) for i in range(len(found))]


def test_the_cpu_comes_first_and_is_found_by_name():
    assert devices.probe()[0].name == "cpu"
    assert devices.find("cpu").kind == "cpu"
    assert devices.find("cpu:0").name == "cpu"


def test_an_unknown_device_is_refused_with_the_nearest_name():
    with pytest.raises(NotFoundError, match="no device 'cpuu' in this machine") as error:
        devices.find("cpuu")
    assert "did you mean 'cpu'?" in error.value.hint
    assert "edgegen devices" in error.value.hint
