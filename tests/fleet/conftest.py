"""Real schedulers and workers in processes of their own, with real TLS; nothing waits for ever."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import msgspec
import numpy as np
import pytest

from edgegen import bundle as bundles
from edgegen import records
from edgegen.bundle import Case
from edgegen.fleet import address, keys

LIKE_A_BOARD = Path(__file__).parent / "board"  # where torch and OpenVINO are not installed
PATHS = os.pathsep.join(filter(None, [str(LIKE_A_BOARD), os.environ.get("PYTHONPATH")]))
LONGEST_S = 90  # of anything a test waits for


class Service:
    """`edgegen devices ...` in a process, killed when it says nothing for too long."""

    def __init__(self, *args, prefix=(), **env):
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "edgegen", "devices", *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS} | env,
        )

    def until(self, pattern):
        """The first line it prints that matches."""
        clock = Timer(LONGEST_S, self.process.kill)
        clock.start()
        said = []
        try:
            for line in self.process.stdout:
                said.append(line)
                if found := re.search(pattern, line):
                    return found
        finally:
            clock.cancel()
        raise AssertionError(f"no {pattern!r} in: {''.join(said)}")

    def end(self, number=signal.SIGTERM):
        """Its exit code."""
        self.process.send_signal(number)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.process.stdout.close()


@contextmanager
def services():
    """Start services; all that still run are killed at the end."""
    started = []

    def start(*args, **kwargs):
        started.append(Service(*args, **kwargs))
        return started[-1]

    try:
        yield start
    finally:
        for one in started:
            one.process.kill()
            one.process.wait()
            one.process.stdout.close()


@pytest.fixture
def start():
    """`start("join", ...)`: a service that is killed when the test is over."""
    with services() as starting:
        yield starting


@pytest.fixture(scope="session")
def pki(tmp_path_factory):
    """A folder of keys: ca, hub, client, and the boards a, b and c."""
    pytest.importorskip("cryptography", reason="needs the fleet extra")
    folder = tmp_path_factory.mktemp("pki")
    keys.make(folder, ["a", "b", "c"])
    return folder


class Fleet:
    """A hub and boards on loopback."""

    def __init__(self, where, pki, caches, start):
        self.where, self.pki, self.caches, self.start = where, pki, caches, start
        self.address, self.keys = address.parse(where), pki / "client"
        self.options = ["--fleet", where, "--keys", str(self.keys)]

    def join(self, name, keys="", **options):
        cache = {"XDG_CACHE_HOME": str(self.caches / name)}
        args = ["join", self.where, "--name", name, "--keys", self.pki / (keys or name)]
        return self.start(*args, **cache, **options)


@pytest.fixture(scope="session")
def fleet(pki, tmp_path_factory):
    """The boards "a" and "b" have joined a hub on loopback."""
    pytest.importorskip("distributed", reason="needs the fleet extra")
    with services() as start:
        hub = start("hub", "--port", 0, "--keys", pki / "hub", "--lost-after", 5)
        where = hub.until(r"hub: (tls://\S+)")[1]
        made = Fleet(where, pki, tmp_path_factory.mktemp("caches"), start)
        for board in [made.join("a"), made.join("b")]:
            board.until("joined")
        yield made


@pytest.fixture
def bundle(onnx_bundle):
    """A bundle with golden data that ONNX Runtime can open in any process."""
    return prove(onnx_bundle)


def prove(path, off=0.0):
    """Give a bundle golden data; `off` is added to what is right."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnxruntime extra")
    latent = np.arange(8, dtype=np.float32).reshape(2, 4) / 8
    session = onnxruntime.InferenceSession(path / "decoder/model.onnx")
    image = session.run(None, {"latent": latent})[0] + np.float32(off)
    bundles.write_golden(
        [Case("decoder", "batch-2", {"latent": latent}, {"image": image})], path / bundles.GOLDEN
    )
    manifest = bundles.open_bundle(path).manifest
    records.write(
        msgspec.structs.replace(manifest, files=bundles.sums(path)), path / bundles.MANIFEST
    )
    return path
