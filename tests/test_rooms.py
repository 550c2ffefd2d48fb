"""Rooms of plug-ins: a file's name is the plug-in's name."""

import ast
import sys
from importlib import metadata
from pathlib import Path

import pytest

from edgegen import rooms
from edgegen.errors import MissingExtraError, NotFoundError

ROOT = Path(rooms.__file__).parent


@pytest.fixture
def room(tmp_path, monkeypatch):
    """The folder of a room on disk, importable by its name."""
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "room_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").touch()
    yield folder
    for name in [n for n in sys.modules if n.startswith(folder.name)]:
        del sys.modules[name]


def test_plug_ins_are_the_files_but_not_packages_nor_underscored_ones(room):
    for name in ("b.py", "a.py", "_c.py"):
        (room / name).touch()
    (room / "d").mkdir()
    (room / "d" / "__init__.py").touch()
    assert rooms.names(room.name) == ["a", "b"]


def test_listing_a_room_imports_no_plug_in(room):
    (room / "a.py").write_text("raise SystemExit('imported')")
    assert rooms.names(room.name) == ["a"]


def test_a_plug_in_is_imported_by_its_name(room):
    (room / "a.py").write_text("READS = 'x'")
    assert rooms.load(room.name, "a").READS == "x"


def test_an_unknown_plug_in_is_refused_with_the_nearest_name(room):
    (room / "onnxruntime.py").touch()
    with pytest.raises(NotFoundError, match=r"no 'onnxruntim' in room_of_a_test") as error:
        rooms.load(room.name, "onnxruntim")
    assert error.value.hint == "did you mean 'onnxruntime'?"


def test_where_nothing_is_near_all_names_are_shown(room):
    (room / "a.py").touch()
    with pytest.raises(NotFoundError) as error:
        rooms.load(room.name, "zzzz")
    assert error.value.hint == "have: a"
    assert rooms.nearest("x", []) == "have: none"


@pytest.mark.parametrize(
    ("library", "command"),
    [
        ("torch", "pip install 'edgegen[build]'"),
        ("tokenizers.models", "pip install 'edgegen[text]'"),
        ("PIL", "pip install 'edgegen[images]'"),
        ("sklearn", "pip install 'edgegen[data]'"),
        ("of_a_third_party", "pip install of_a_third_party"),
    ],
)
def test_a_missing_library_names_the_command_that_brings_it(room, monkeypatch, library, command):
    monkeypatch.setitem(sys.modules, library.partition(".")[0], None)
    (room / "a.py").write_text(f"import {library}")
    with pytest.raises(MissingExtraError) as error:
        rooms.load(room.name, "a")
    assert str(error.value) == f"a needs {library.partition('.')[0]}"
    assert error.value.hint == f"run: {command}"


def test_a_fault_of_our_own_is_not_taken_for_a_missing_library(room):
    (room / "a.py").write_text("import edgegen.not_there")
    with pytest.raises(ModuleNotFoundError):
        rooms.load(room.name, "a")


def test_a_third_party_adds_a_plug_in_by_an_entry_point(room, tmp_path):
    (tmp_path / "their_engine.py").write_text("READS = 'theirs'")
    info = tmp_path / "their_engine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-engine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{room.name}]\ntheirs = their_engine\n")
    assert rooms.names(room.name) == ["theirs"]
    assert rooms.load(room.name, "theirs").READS == "theirs"
    del sys.modules["their_engine"]


def test_the_rooms_own_file_is_not_replaced_by_an_entry_point(room, tmp_path):
    (room / "own.py").write_text("WHOSE = 'ours'\n")
    (tmp_path / "their_engine.py").write_text("WHOSE = 'theirs'\n")
    info = tmp_path / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{room.name}]\nown = their_engine\n")
    assert rooms.load(room.name, "own").WHOSE == "ours"


def test_every_extra_that_a_hint_names_exists():
    extras = set(metadata.metadata("edgegen").get_all("Provides-Extra"))
    assert set(rooms.EXTRA_OF.values()) <= extras


def test_every_optional_library_that_is_imported_has_an_extra():
    """Else the advice would be to install a library by a name that may be another's."""
    core = {"numpy", "msgspec", "typer", "rich", "psutil", "platformdirs", "edgegen"}
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.partition(".")[0])
    assert found - core - set(sys.stdlib_module_names) <= set(rooms.EXTRA_OF)
