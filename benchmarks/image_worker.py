"""One way of running an image model, in a fresh process: a JSON request on stdin, a JSON answer as
the last line of stdout.

    PYTHON -P benchmarks/image_worker.py benchmarks/peers/image-NAME < request.json

Runs in the peer's own environment; only building may need torch. `peers/image-NAME.py` defines

    build(models, name, output, options) -> str            writes what it runs; says its precision
    open_model(path, threads, options) -> a function of the inputs as arrays, giving the image

where `models` is the module `image_models`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Answer the one request; what a peer prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.read())
    try:
        answer = {"build": build, "run": run}[request["do"]](request)
    except Exception as error:  # a peer's errors share no base but Exception
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        answer = {"error": f"{type(error).__name__}: {' '.join(lines[:3])[:300] or 'no message'}"}
    out.write(json.dumps(answer) + "\n")
    out.flush()
    os._exit(0)  # some engines crash or hang when Python takes them down


def module(path: Path) -> Any:
    """A file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem.replace("-", "_"), path)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Turn a model into what the peer runs."""
    peer = module(Path(f"{sys.argv[1]}.py"))
    models = module(Path(__file__).with_name("image_models.py"))
    output = Path(request["output"])
    told = peer.build(models, request["model"], output, request["options"])
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return {"precision": told, "size_mb": size / 1e6}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """ms of each repeat, every one with inputs of its own; the first image, to be looked at."""
    start = time.perf_counter()
    peer = module(Path(f"{sys.argv[1]}.py"))
    imported = time.perf_counter()
    model = peer.open_model(Path(request["path"]), request["threads"], request["options"])
    loaded = time.perf_counter()
    with np.load(request["inputs"]) as file:
        feeds = [[file[name][n : n + 1] for name in sorted(file)] for n in range(request["count"])]
    np.save(request["image"], np.asarray(model(feeds[0]), np.float32))
    for feed in feeds[: request["warmup"]]:
        model(feed)
    times = []
    for turn in range(request["repeats"]):
        feed = feeds[turn % len(feeds)]
        begin = time.perf_counter()
        model(feed)
        times.append((time.perf_counter() - begin) * 1e3)
    return {
        "step_ms": times,
        "import_ms": (imported - start) * 1e3,
        "load_ms": (loaded - imported) * 1e3,
        "peak_rss_mb": peak_rss_mb(),
    }


def peak_rss_mb() -> float:
    """The high-water mark of this process."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes, on macOS


if __name__ == "__main__":
    main()
