"""`edgegen history`."""

import json

import pytest

from edgegen import records
from edgegen.cli import app
from edgegen.errors import NotFoundError

pytest.importorskip("duckdb", reason="needs the history extra")


@pytest.fixture
def history():
    def run(*args):
        app(["history", *map(str, args)], standalone_mode=False)

    return run


@pytest.fixture
def folder(make_profile, tmp_path):
    for n in range(3):
        day = f"2026-11-0{n + 1}T10:00:00+00:00"
        records.write(make_profile(n, created=day), tmp_path / f"{n}.json")
    (tmp_path / "manifest.json").write_text("{}")
    return tmp_path


def test_the_trend_is_a_line_of_the_table_and_the_rest_is_said(history, folder, capsys):
    history(folder)
    out, err = capsys.readouterr()
    assert "toy fp32 onnxruntime cpu" in out
    assert "2026-11-03" in out
    assert "1 JSON files are no profiles or have no p50" in err


def test_json_is_the_history(history, folder, capsys):
    history(folder, "--json", "--since", "2026-11-02")
    found = json.loads(capsys.readouterr().out)
    assert found["unit"] == "ms"
    assert len(found["trends"][0]["points"]) == 2


def test_a_picture_is_written(history, folder, capsys):
    pytest.importorskip("vl_convert", reason="needs the report extra")
    history(folder, "--plot", folder / "x.png")
    assert (folder / "x.png").is_file()
    assert f"wrote {folder / 'x.png'}" in capsys.readouterr().err


def test_what_is_not_there_comes_through(history, folder):
    with pytest.raises(NotFoundError, match="no profile of engine"):
        history(folder, "--engine", "x")
