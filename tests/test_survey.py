"""Which engine can use which device."""

import sys

import pytest

from edgegen import devices, rooms, survey
from edgegen.devices import Device
from edgegen.survey import Engine, Survey


def test_devices_are_joined_to_the_engines_that_take_them_by_name():
    found = Survey(
        (Device("cpu", "cpu", "x"), Device("npu", "npu", "y")),
        (
            Engine("one", "1", "onnx", ("cpu", "gpu")),
            Engine("two", "2", "openvino", ("cpu", "npu", "auto")),
            Engine("three", problem="not installed", fix="pip install three"),
        ),
    )
    assert found.users("cpu") == ["one", "two"]
    assert found.users("npu") == ["two"]
    assert found.users("gpu:1") == []


@pytest.mark.slow
def test_the_survey_of_this_machine_has_its_devices_and_every_engine_but_the_one_in_memory():
    found = survey.survey()
    assert [d.name for d in found.devices] == [d.name for d in devices.probe()]
    names = [name for name in rooms.names("edgegen.runtimes") if name != "callable"]
    assert [engine.name for engine in found.engines] == names
    for engine in found.engines:
        assert "cpu" in engine.devices if engine.version else engine.fix.startswith("pip install")


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A room on disk that can be given plug-ins."""
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "engines_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").touch()
    yield folder
    for name in [n for n in sys.modules if n.startswith(folder.name)]:
        del sys.modules[name]


def test_an_engine_that_is_not_installed_is_listed_with_its_pip_command(room):
    (room / "fast.py").write_text("import fast_engine_that_nobody_has\n")
    assert survey.ask("fast", room.name) == Engine(
        "fast", problem="not installed", fix="pip install fast_engine_that_nobody_has"
    )


def test_an_engine_that_is_installed_but_broken_says_what_it_said(room):
    (room / "bad.py").write_text("raise ImportError('libGL.so.1: cannot open shared object')\n")
    engine = survey.ask("bad", room.name)
    assert engine.problem == "installed, but broken: libGL.so.1: cannot open shared object"
    assert engine.fix == "pip install --force-reinstall bad"
