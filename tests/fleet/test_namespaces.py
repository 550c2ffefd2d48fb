"""Three boards, each a host of its own: a network namespace joined to the hub's by a cable."""

import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from edgegen import measure
from edgegen.cli import app
from edgegen.errors import EdgeGenError
from edgegen.fleet import address, client
from edgegen.tasks import Task

pytestmark = pytest.mark.slow
MARK = f"eg{os.getpid() % 100_000}"  # a name of an interface has at most 15 letters
NET = f"10.{100 + os.getpid() % 100}"  # not that of a suite beside this one, or of a killed one
HUB = {name: f"{NET}.{number}.1" for number, name in enumerate("abc", 1)}  # as each sees it


def ip(*args, check=True):
    return subprocess.run(
        ["ip", *map(str, args)], check=check, capture_output=True, text=True, timeout=20
    )


def plug(name):
    """A namespace with one cable, from MARKname0 here to MARKname1 there."""
    space, near, far = MARK + name, f"{MARK}{name}0", f"{MARK}{name}1"
    ip("netns", "add", space)
    ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", space)
    ip("address", "add", f"{HUB[name]}/30", "dev", near)
    ip("link", "set", near, "up")
    ip("-n", space, "address", "add", f"{HUB[name][:-1]}2/30", "dev", far)
    ip("-n", space, "link", "set", far, "up")
    ip("-n", space, "link", "set", "lo", "up")


@pytest.fixture
def hosts():
    if not shutil.which("ip"):
        pytest.skip("network namespaces need iproute2")
    try:
        for name in HUB:
            plug(name)
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
    finally:
        for name in HUB:
            ip("link", "del", f"{MARK}{name}0", check=False)
            ip("netns", "del", MARK + name, check=False)


@pytest.fixture
def boards(hosts, pki, tmp_path, start):
    """(port of the hub, the service of each board)."""
    pytest.importorskip("distributed", reason="needs the fleet extra")
    hub = start("hub", "--host", "0.0.0.0", "--port", 0, "--keys", pki / "hub", "--lost-after", 5)
    port = hub.until(r"hub: tls://.*:(\d+)")[1]
    joined = {}
    for name, host in HUB.items():
        args = ["join", f"tls://{host}:{port}", "--name", name, "--keys", pki / name]
        prefix = ("ip", "netns", "exec", MARK + name)
        joined[name] = start(*args, prefix=prefix, XDG_CACHE_HOME=str(tmp_path / name))
    for service in joined.values():
        service.until("joined")
    return port, joined


def test_one_board_is_cut_off_and_one_is_killed_mid_run_and_the_third_goes_on(
    boards, bundle, pki, tmp_path
):
    port, services = boards
    where = address.parse(f"tls://127.0.0.1:{port}")
    harm = {
        "b": lambda: ip("link", "set", f"{MARK}b0", "down"),
        "c": lambda: services["c"].process.send_signal(signal.SIGKILL),
    }
    repeats = {"a": 20, "b": 1_000_000, "c": 1_000_000}
    groups = [[Task(measure.job(bundle, warmup=0, repeats=n), name)] for name, n in repeats.items()]
    with client.connect(where, pki / "client") as dask, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.profile, where, pki / "client", groups, rounds=1, timeout_s=60)
        while harm:
            assert not running.done()
            members = client.members(dask)
            for name in [name for name in harm if members[name].busy]:
                harm.pop(name)()
        found = {one.task.board: one for one in running.result(90)}
    assert found["a"].profile.board == "a"
    assert len(found["a"].profile.first_ms) == 20
    for lost in "bc":  # and nobody did their work for them
        assert found[lost].profile is None
        assert f"{lost}: went away" in str(found[lost].error)
        assert "--resume" in found[lost].error.hint
    # The cable is back, and so is the board, by itself; what is missing is done.
    ip("link", "set", f"{MARK}b0", "up")
    services["b"].until("joined")
    args = ["--fleet", str(where), "--keys", str(pki / "client"), "-d", "b", "-o", str(tmp_path)]
    options = ["--warmup", "0", "--repeats", "2", "--json", "--resume"]
    app(["profile", str(bundle), *args, *options], standalone_mode=False)
    with pytest.raises(EdgeGenError, match=r"no device 'c' in .*; there are: a, b"):
        client.choose(where, pki / "client", ["a", "c"])
