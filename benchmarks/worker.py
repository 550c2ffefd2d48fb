"""One peer in a fresh process: a JSON request on stdin, a JSON answer as the last line of stdout.

    PYTHON -P benchmarks/worker.py benchmarks/peers/NAME < request.json

Runs in the peer's own environment, so it needs numpy and nothing else. `peers/NAME.py` defines

    build(model, output, precision, options) -> str      writes what it runs; says its precision
    open_model(path, threads, context, options) -> an object with
        generate(ids, count) -> ids                       greedy, never ending before `count`
        logits(ids) -> (vocabulary,)                      of the last position; left out where the
                                                          peer does not give them away

`context` is the largest number of tokens that one call will hold. Modules in `peers/shared` can be
imported.
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

FIRST_ID = 300  # below are special tokens and single bytes


def main() -> None:
    """Answer the one request; what a peer prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.read())
    try:
        answer = {"build": build, "check": check, "run": run}[request["do"]](request)
    except Exception as error:  # a peer's errors share no base but Exception
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = (lines or ["no message"])[0].replace(str(Path.home()), "~")[:300]
        answer = {"error": f"{type(error).__name__}: {told}"}
    out.write(json.dumps(answer) + "\n")
    out.flush()
    os._exit(0)  # some engines crash or hang when Python takes them down


def adapter() -> tuple[Any, float]:
    """The module of the peer, and how long importing it and its engine took, in ms."""
    start = time.perf_counter()
    # Behind everything else: nothing in there may hide a package.
    sys.path.append(str(Path(__file__).parent / "peers" / "shared"))
    spec = importlib.util.spec_from_file_location("peer", f"{sys.argv[1]}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, (time.perf_counter() - start) * 1e3


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Turn a Hugging Face folder into what the peer runs."""
    peer, _ = adapter()
    output = Path(request["output"])
    told = peer.build(Path(request["model"]), output, request["precision"], request["options"])
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return {"precision_class": told, "size_mb": size / 1e6}


def opened(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model, and what importing and loading took."""
    peer, import_ms = adapter()
    context = request["context"]
    start = time.perf_counter()
    model = peer.open_model(Path(request["path"]), request["threads"], context, request["options"])
    return model, {"import_ms": import_ms, "load_ms": (time.perf_counter() - start) * 1e3}


def check(request: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens and, where it gives them, the logits after a prompt; the same for everyone."""
    model, _ = opened(request)
    ids = prompt(np.random.default_rng(0), request["vocabulary"], request["prompt"])
    answer: dict[str, Any] = {"tokens": [int(i) for i in model.generate(ids, request["new"])]}
    if hasattr(model, "logits"):
        np.save(request["logits"], np.asarray(model.logits(ids), np.float32).ravel())
        answer["logits"] = request["logits"]
    return answer


def run(request: dict[str, Any]) -> dict[str, Any]:
    """TTFT and TPOT of each repeat in ms, by prompt length, each repeat with a new prompt.

    TTFT is the time of generating one token. TPOT is (T(new) - T(1)) / (new - 1), for which two
    prompts are taken: it is the same for peers that give tokens one by one and all at once.
    """
    model, answer = opened(request)
    rng, new = np.random.default_rng(request["seed"]), request["new"]
    lengths = request["prompts"]

    def timed(length: int, count: int) -> float:
        ids = prompt(rng, request["vocabulary"], length)
        start = time.perf_counter()
        found = model.generate(ids, count)
        taken = time.perf_counter() - start
        if len(found) != count:
            raise ValueError(f"asked for {count} tokens, {len(found)} came")
        return taken * 1e3

    for length in lengths:
        for _ in range(request["warmup"]):
            timed(length, new)
    times: dict[str, dict[str, list[float]]] = {}
    for length in lengths:
        first = times.setdefault(str(length), {"ttft_ms": [], "tpot_ms": []})
        for _ in range(request["repeats"]):
            one = timed(length, 1)
            first["ttft_ms"].append(one)
            first["tpot_ms"].append((timed(length, new) - one) / (new - 1))
    return answer | {"times": times, "peak_rss_mb": peak_rss_mb()}


def prompt(rng: np.random.Generator, vocabulary: int, length: int) -> list[int]:
    """Random token ids."""
    return [int(i) for i in rng.integers(FIRST_ID, vocabulary, length)]


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
