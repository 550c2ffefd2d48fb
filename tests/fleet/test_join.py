"""The board's side and the hub's, each run in this process against real others."""

import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from edgegen import measure
from edgegen.errors import EdgeGenError
from edgegen.fleet import client, hub, join
from edgegen.fleet.address import Address, parse
from edgegen.tasks import Task

pytestmark = pytest.mark.slow


def stop_when(done):
    """Run `done` beside the main thread, then end the service in it."""
    caught = []

    def run():
        try:
            done()
        except BaseException as error:
            caught.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, caught


def test_a_board_serves_until_it_is_told_to_stop(fleet, bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    joined, said, outcomes = threading.Event(), [], []

    def note(line):
        said.append(line)
        joined.set()

    def ask():
        assert joined.wait(60)
        job = measure.job(bundle, warmup=0, repeats=1)
        bad = measure.job(bundle, warmup=0, repeats=1, device="gpu:7")
        groups = [[Task(job, "c")], [Task(bad, "c")]]
        outcomes.extend(client.profile(fleet.address, fleet.keys, groups, rounds=1, timeout_s=60))

    thread, caught = stop_when(ask)
    join.join(fleet.address, "c", fleet.pki / "c", note)
    thread.join()
    assert caught == []
    assert said == [f"c: joined {fleet.where}"]
    good, bad = outcomes
    assert good.profile.board == "c"
    assert "has no device 'gpu:7'" in str(bad.error)


def test_a_board_joins_again_when_the_hub_is_back(pki, tmp_path, fleet, monkeypatch):
    monkeypatch.setattr(join, "AGAIN_S", 0.1)
    monkeypatch.setattr(join, "look", lambda: join.Survey((), ()))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    first = fleet.start("hub", "--port", port, "--keys", pki / "hub")
    where = Address("tls", "127.0.0.1", port)
    first.until("hub: ")
    said, twice, gone = [], threading.Event(), threading.Event()

    def note(line):
        said.append(line)
        if "joined" in line and len(said) == 1:
            first.process.kill()
        if "is gone" in line:
            gone.set()
        if "joined" in line and len(said) > 1:
            twice.set()

    def back():
        assert gone.wait(60)
        fleet.start("hub", "--port", port, "--keys", pki / "hub").until("hub: ")
        assert twice.wait(60)

    thread, caught = stop_when(back)
    join.join(where, "c", pki / "c", note)
    thread.join()
    assert caught == []
    assert said[0] == said[-1] == f"c: joined {where}"
    assert any("trying again every 0.1 s" in line for line in said)


def test_a_hub_lets_boards_and_clients_meet(pki, fleet, monkeypatch):
    monkeypatch.setattr(join, "look", lambda: join.Survey((), ()))
    started, where = threading.Event(), []

    def tell(text):
        where.append(text)
        started.set()

    def meet():
        assert started.wait(60)
        board = fleet.start("join", where[0], "--name", "c", "--keys", pki / "c")
        board.until("joined")
        found = client.look(parse(where[0]), pki / "client")
        assert list(found) == ["c"]
        assert board.end(signal.SIGINT) == 0

    thread, caught = stop_when(meet)
    hub.hub(Address("tls", "127.0.0.1", 0), pki / "hub", started=tell)
    thread.join()
    assert caught == []


def test_a_hub_that_dies_mid_run_is_named_and_the_board_stops_working(
    pki, start, bundle, tmp_path, fleet
):
    hub_process = start("hub", "--port", 0, "--keys", pki / "hub")
    where = hub_process.until(r"hub: (tls://\S+)")[1]
    board = start("join", where, "--name", "c", "--keys", pki / "c", XDG_CACHE_HOME=str(tmp_path))
    board.until("joined")
    task = Task(measure.job(bundle, warmup=0, repeats=1_000_000), "c")
    with client.connect(parse(where), pki / "client") as dask, ThreadPoolExecutor(1) as pool:
        args = [parse(where), pki / "client", [[task]]]
        running = pool.submit(client.profile, *args, rounds=1, timeout_s=60)
        while not client.members(dask)["c"].busy:
            assert not running.done()
        hub_process.process.kill()
        (outcome,) = running.result(60)
    assert "c: the hub went away" in str(outcome.error)
    board.until("c: the hub at tls://.* is gone; trying again")
    assert psutil.Process(board.process.pid).children(recursive=True) == []
    assert board.end() == 0


def test_a_port_that_is_taken_is_said(fleet):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        service = fleet.start("hub", "--port", port, "--keys", fleet.pki / "hub")
        service.until(r"error: .*cannot listen there: .*in use")
    assert service.process.wait(20) == 1


def test_an_address_of_another_machine_is_said(fleet):
    nobodys = "192.0.2.77"  # of the addresses for documentation
    service = fleet.start("hub", "--host", nobodys, "--port", 0, "--keys", fleet.pki / "hub")
    service.until("hint: *give an address of this machine: --host 0.0.0.0")
    assert service.process.wait(20) == 1


def test_a_survey_that_fails_or_hangs_is_said(monkeypatch):
    monkeypatch.setattr(join, "SURVEY_S", 0.01)
    with pytest.raises(EdgeGenError, match=r"time-out: no survey in 0\.01 s"):
        join.look()
    monkeypatch.setattr(join, "SURVEY_S", 60)
    monkeypatch.setattr(join.sys, "executable", "/bin/false")
    with pytest.raises(EdgeGenError, match="the survey failed: nothing said"):
        join.look()
