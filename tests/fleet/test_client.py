"""A hub and two boards, in processes of their own, over TLS on loopback."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest

from edgegen import bundle as bundles
from edgegen import measure, records
from edgegen import profile as profiles_on_disk
from edgegen.cli import app
from edgegen.errors import (
    EdgeGenError,
    FormatError,
    NotFoundError,
    ParityError,
    UnsupportedError,
    UsageError,
)
from edgegen.fleet import address, board, client, hub, line
from edgegen.fleet.board import Arrived, Told
from edgegen.fleet.line import Line, send
from edgegen.tasks import Task

pytestmark = pytest.mark.slow
QUICK = ["--warmup", "0", "--repeats", "2"]


def profile(*args):
    app(["profile", *map(str, args)], standalone_mode=False)


def task(path, board, **options):
    return Task(measure.job(path, **{"warmup": 0, "repeats": 2} | options), board)


def test_all_devices_prove_and_measure_a_bundle_and_only_what_is_missing_again(
    fleet, bundle, tmp_path, capsys
):
    output = tmp_path / "out"
    args = [bundle, *fleet.options, "--device", "all", *QUICK, "-o", output, "--resume"]
    profile(*args)
    out, err = capsys.readouterr()
    assert "images/s" in out
    assert "a: verify and measure toy-onnx" in err
    found = {file.name: profiles_on_disk.read(file) for file in output.iterdir()}
    assert sorted(found) == ["toy-onnx-a-cpu.json", "toy-onnx-b-cpu.json"]
    for one in found.values():
        assert [drift.ok for drift in one.drifts] == [True]
        assert one.request == found["toy-onnx-a-cpu.json"].request
        assert one.bundle_sha256 == bundles.open_bundle(bundle).sha256()
    assert found["toy-onnx-a-cpu.json"].name() == "toy-onnx onnxruntime a/cpu"
    for name in "ab":  # each has a cache of its own
        cached = fleet.caches / name / "edgegen/fleet/bundles" / one.bundle_sha256
        assert bundles.sums(cached) == bundles.sums(bundle)
    kept = (output / "toy-onnx-a-cpu.json").stat().st_mtime_ns
    (output / "toy-onnx-b-cpu.json").unlink()
    profile(*args)
    err = capsys.readouterr().err
    assert "1 of 2 profiles are there already" in err
    assert "b: verify and measure" in err
    assert "a: verify" not in err
    assert "send" not in err  # it is in the cache
    assert (output / "toy-onnx-a-cpu.json").stat().st_mtime_ns == kept
    assert (output / "toy-onnx-b-cpu.json").exists()
    profile(*args, "--json")
    assert json.loads(capsys.readouterr().out) == []


def test_two_bundles_take_turns_on_a_board(fleet, bundle, tmp_path):
    other = tmp_path / "other"
    other.symlink_to(bundle)
    args = [bundle, other, *fleet.options, "--device", "a/cpu", *QUICK, "--rounds", 2]
    profile(*args, "-o", tmp_path / "turns", "--interleave", "--json")
    one, two = map(profiles_on_disk.read, (tmp_path / "turns").iterdir())
    assert one.block == two.block != ""
    assert one.rounds == two.rounds == 2


def test_what_is_there_is_listed_with_its_probe(fleet, capsys):
    app(["devices", *fleet.options], standalone_mode=False)
    out = capsys.readouterr().out
    assert "onnxruntime" in out
    assert "free" in out
    app(["devices", *fleet.options, "--json"], standalone_mode=False)
    members = json.loads(capsys.readouterr().out)
    assert [member["name"] for member in members] == ["a", "b"]
    assert members[0]["survey"]["devices"][0]["name"] == "cpu"


def test_an_unknown_device_is_refused_with_those_there_are(fleet, bundle):
    with pytest.raises(NotFoundError, match=r"no device 'aa' in .*; there are: a, b") as error:
        profile(bundle, *fleet.options, "-d", "aa", "-d", "b")
    assert error.value.hint == "did you mean 'a'?"


def test_a_bundle_that_computes_something_else_there_is_not_timed(fleet, bundle, tmp_path):
    golden = bundles.read_golden(bundles.open_bundle(bundle))[0]
    off = msgspec.structs.replace(golden, outputs={"image": golden.outputs["image"] + 1})
    bundles.write_golden([off], bundle / bundles.GOLDEN)
    manifest = bundles.open_bundle(bundle).manifest
    changed = msgspec.structs.replace(manifest, files=bundles.sums(bundle))
    records.write(changed, bundle / bundles.MANIFEST)
    output = tmp_path / "out"
    with pytest.raises(ParityError, match="a: toy-onnx: 1 of 1 outputs are out of tol") as error:
        profile(bundle, *fleet.options, "-d", "a", *QUICK, "-o", output)
    assert error.value.exit_code == 3
    assert not output.exists()


def test_a_time_out_is_called_a_time_out(fleet, bundle):
    with pytest.raises(EdgeGenError, match=r"a: toy-onnx on .*: time-out, not done after 0\.2 s"):
        profile(bundle, *fleet.options, "-d", "a", *QUICK, "--timeout", 0.2)


def test_one_job_at_a_time_and_one_that_is_stopped_frees_the_device(fleet, bundle):
    stop, manifest = threading.Event(), (bundle / bundles.MANIFEST).read_bytes()
    with client.connect(fleet.address, fleet.keys) as dask, ThreadPoolExecutor(1) as pool:
        there = client.members(dask)["a"]
        one, other, third = (
            Line(dask, "a", there, event, lambda *_: None)
            for event in (stop, threading.Event(), threading.Event())
        )
        try:
            send(one, bundles.open_bundle(bundle), 60)
            endless = task(bundle, "a", repeats=1_000_000)
            order = pool.submit(client._order, one, [endless], 1, 600)
            # "busy" alone may still be of what was sent before: a board says so now and then.
            while not any("carry_out" in key for key in dask.processing()[there.address]):
                assert not order.done()
            while not client.members(dask)["a"].busy:
                assert not order.done()
            with pytest.raises(
                EdgeGenError, match=r"a: time-out, no answer in 0\.1 s to: ask"
            ) as e:
                other.ask(Told, board.wanted, manifest, 0.1, "ask")
            assert e.value.hint.startswith("another job may be running there")
            with pytest.raises(EdgeGenError, match="a: time-out"):  # a lost line stays lost
                other.ask(Told, board.wanted, manifest, 60, "ask")
            assert not order.done()
        finally:
            stop.set()
        with pytest.raises(EdgeGenError, match="a: stopped"):
            order.result(60)
        assert third.ask(Told, board.wanted, manifest, 60, "ask").wanted.complete


def test_sending_goes_on_where_it_broke_off(fleet, bundle, monkeypatch):
    noise = np.random.default_rng(0).bytes(50_000)
    (bundle / "noise.bin").write_bytes(noise)
    manifest = bundles.open_bundle(bundle).manifest
    changed = msgspec.structs.replace(manifest, files=bundles.sums(bundle))
    records.write(changed, bundle / bundles.MANIFEST)
    monkeypatch.setattr(line, "PIECE_BYTES", 10_000)
    stop, said = threading.Event(), []

    def report(what, done, total):
        said.append(done)
        if done >= 20:
            stop.set()

    with client.connect(fleet.address, fleet.keys) as dask:
        broken = Line(dask, "b", client.members(dask)["b"], stop, report)
        with pytest.raises(EdgeGenError, match="b: stopped"):
            send(broken, bundles.open_bundle(bundle), 60)
        again = Line(dask, "b", client.members(dask)["b"], threading.Event(), report)
        said.clear()
        send(again, bundles.open_bundle(bundle), 60)
    assert said[0] >= 10
    cached = fleet.caches / "b/edgegen/fleet/bundles" / bundles.open_bundle(bundle).sha256()
    assert (cached / "noise.bin").read_bytes() == noise


def test_what_a_board_refuses_is_raised_here_with_its_name(fleet):
    with client.connect(fleet.address, fleet.keys) as dask:
        there = Line(dask, "a", client.members(dask)["a"], threading.Event(), lambda *_: None)
        with pytest.raises(FormatError, match=r"a: manifest\.json: not valid JSON"):
            there.ask(Told, board.wanted, b"x", 60, "ask")
        with pytest.raises(EdgeGenError, match="a: ValidationError"):
            there.ask(Arrived, board.put, b"x", 60, "ask")


def test_a_device_that_left_or_has_another_version_fails_alone(fleet, bundle, monkeypatch):
    gone, there = task(bundle, "c"), task(bundle, "b")
    outcomes = client.profile(fleet.address, fleet.keys, [[gone], [there]], rounds=1, timeout_s=60)
    found = {one.task.board: one for one in outcomes}
    assert str(found["c"].error) == "c: went away"
    assert found["b"].profile.board == "b"
    monkeypatch.setattr(line, "__version__", "9.9")
    (outcome,) = client.profile(fleet.address, fleet.keys, [[there]], rounds=1, timeout_s=60)
    assert isinstance(outcome.error, UnsupportedError)
    assert "here is 9.9" in str(outcome.error)


def test_a_damaged_bundle_never_leaves_this_machine(fleet, bundle):
    (bundle / "decoder/model.onnx").write_bytes(b"")
    with pytest.raises(FormatError, match="altered or truncated"):
        client.profile(fleet.address, fleet.keys, [[task(bundle, "a")]], rounds=1, timeout_s=60)


def test_keys_of_another_fleet_are_refused_by_both_sides(fleet, bundle, tmp_path, pki):
    from edgegen.fleet import keys

    keys.make(tmp_path, ["c"])
    with pytest.raises(UnsupportedError, match="its certificate is not of the CA in"):
        client.look(fleet.address, tmp_path / "client")
    (tmp_path / "client/ca.pem").write_bytes((pki / "client/ca.pem").read_bytes())
    with pytest.raises(UnsupportedError, match=r"refuses the certificate in .*UNKNOWN_CA"):
        client.look(fleet.address, tmp_path / "client")
    stranger = fleet.start("join", fleet.where, "--name", "c", "--keys", tmp_path / "c")
    stranger.until("error: .* its certificate is not of the CA")
    assert stranger.process.wait(20) == 1
    assert sorted(client.look(fleet.address, fleet.keys)) == ["a", "b"]


def test_a_second_device_of_one_name_is_refused(fleet):
    second = fleet.join("a")
    assert "a device called 'a' has joined already" in second.until("^error: .*")[0]
    assert second.process.wait(20) == 2


def test_a_hub_without_tls_keeps_to_this_machine(tmp_path, monkeypatch, fleet, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=r"--host 0\.0\.0\.0: without keys") as error:
        app(["devices", "hub", "--host", "0.0.0.0"], standalone_mode=False)
    assert error.value.hint == "run: edgegen devices keys NAME..."
    assert hub.bind("127.0.0.1", 0, None) == (address.Address("tcp", "127.0.0.1", 0), None)
    with pytest.raises(UsageError, match="--port is 70000"):
        hub.bind("127.0.0.1", 70000, None)
    with pytest.raises(UsageError, match="--lost-after is 1"):
        app(["devices", "hub", "--lost-after", "1"], standalone_mode=False)
    plain = fleet.start("hub", "--port", 0, XDG_CONFIG_HOME=str(tmp_path))
    where = address.parse(plain.until(r"hub: (tcp://\S+)")[1])
    with pytest.raises(NotFoundError, match="no device has joined tcp://127") as error:
        client.choose(where, None, ["all"])
    assert "edgegen devices join tcp://127" in error.value.hint
    app(["devices", "--fleet", str(where)], standalone_mode=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert f"no device has joined; on a board run: edgegen devices join {where}" in err
    assert plain.end() == 0
