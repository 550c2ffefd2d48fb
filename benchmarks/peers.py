"""The peers: what each is installed from, in an environment of its own, and how it is talked to.

They cannot share one: onnxruntime-genai's builder wants transformers 5, optimum-onnx 4.57. What
speaks to a peer is `peers/NAME.py`, run by `worker.py` with that environment's Python.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import platformdirs
from msgspec import Struct

HERE = Path(__file__).parent
CONSTRAINTS = HERE.parent / "constraints.txt"
TIMEOUT_S = 1800.0


class Peer(Struct, frozen=True):
    """One engine that text is run on.

    `installs` are the arguments of one pip call each; without any it runs in EdgeGen's own
    environment. `script` is the file in `peers/`, `options` what that file is told besides.
    """

    name: str
    script: str
    precisions: tuple[str, ...]
    installs: tuple[tuple[str, ...], ...] = ()
    options: dict[str, str] = {}
    environment: str = ""  # where two peers are two ways of using one installation
    build_variables: dict[str, str] = {}
    # A weight of the layers, and one of the embedding and the head, by precision; where not `BITS`.
    bits: dict[str, tuple[float, float]] = {}
    lacks: str = "has no {precision} of its own"  # of a precision that is not in `precisions`


class PeerError(Exception):
    """A peer that cannot be installed, cannot take the model or did not answer; the reason."""


TORCH = ("torch==2.13.0",)
ALL = ("fp32", "int8", "int4")
BITS = {
    "fp32": (32.0, 32.0),
    "int8": (8.5, 8.5),
    "int4": (4.5, 8.5),
}  # groups of 32, scales in fp16
ROWS = {
    "int8": (8.0, 8.0),
    "int4": (4.5, 8.0),
}  # 8 bits with a scale a row, which is next to nothing
LLAMA_CPP = "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" + "".join(
    f" -DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "TOOLS", "SERVER")
)
PEERS = [
    *(
        Peer(f"edgegen-{runtime}", "ours", ALL, options={"runtime": runtime}, bits=bits)
        for runtime, bits in (
            ("native", {"int4": ROWS["int4"]}),
            ("fused", {}),
            ("onnxruntime", {}),
            ("openvino", {"int8": ROWS["int8"]}),
        )
    ),
    Peer(
        "edgegen-native-row",
        "ours",
        ("int8",),
        options={"runtime": "native", "group_size": "-1"},
        bits=ROWS,
    ),
    # The embedding and the head at 4 bits as well, as onnxruntime-genai's builder rounds them.
    Peer(
        "edgegen-native-head4",
        "ours",
        ("int4",),
        options={"runtime": "native", "embedding_bits": "4"},
        bits={"int4": (4.5, 4.5)},
    ),
    Peer(
        "onnxruntime-genai",
        "onnxruntime-genai",
        ALL,
        (
            TORCH,
            (
                "onnxruntime-genai==0.18.0",
                "onnxruntime==1.31.1",
                "transformers==5.23.0",
                "onnx==1.23.2",
                "onnx-ir==1.1.0",
                "numpy==2.4.6",
                "accelerate==1.15.0",
            ),
        ),
        bits={"int4": (4.5, 4.5)},
    ),
    Peer(
        "openvino-genai",
        "openvino-genai",
        ALL,
        (("openvino-genai==2026.4.1.0", "openvino==2026.4.1", "numpy==2.4.6"),),
        bits=ROWS,
    ),
    Peer(
        "llama.cpp",
        "llama-cpp",
        ALL,
        (("llama-cpp-python==0.3.36", "gguf==0.19.0", "safetensors==0.8.0", "numpy==2.4.6"),),
        environment="llama-cpp",
        build_variables={"CMAKE_ARGS": LLAMA_CPP},
    ),
    Peer(
        "torch",
        "torch-hf",
        ("fp32", "int8"),
        (TORCH, ("transformers==5.23.0", "accelerate==1.15.0", "numpy==2.4.6")),
        bits=ROWS,
    ),
    Peer(
        "torch-compiled",
        "torch-hf",
        ("fp32",),
        (TORCH, ("transformers==5.23.0", "accelerate==1.15.0", "numpy==2.4.6")),
        {"compile": "yes"},
        "torch",
    ),
    Peer(
        "optimum-onnx",
        "optimum-onnx",
        ("fp32", "int8"),
        (
            TORCH,
            (
                "optimum-onnx[onnxruntime]==0.1.0",
                "onnxruntime==1.31.1",
                "onnx==1.23.2",
                "numpy==2.4.6",
                "accelerate==1.15.0",
            ),
        ),
        bits=ROWS,
    ),
    Peer(
        "optimum-intel",
        "optimum-intel",
        ALL,
        (
            TORCH,
            # It names torchvision, whose build for the CPU is not on PyPI and which text never
            # needs; so its own requirements follow by hand, without it.
            ("--no-deps", "optimum-intel==2.2.0"),
            (
                "optimum~=2.3.0",
                "transformers<5.6,>=4.51",
                "huggingface-hub<1.22",
                "setuptools",
                "nncf==3.4.0",
                "openvino==2026.4.1",
                "openvino-tokenizers==2026.4.1.0",
                "requests>=2.33",
                "accelerate==1.15.0",
            ),
        ),
        bits=ROWS,
    ),
    Peer(
        "ctranslate2",
        "ctranslate2",
        ("fp32", "int8"),
        (TORCH, ("ctranslate2==4.8.5", "transformers==5.23.0", "numpy==2.4.6")),
        bits=ROWS,
    ),
    Peer(
        "executorch",
        "executorch",
        ALL,
        (TORCH, ("executorch==1.5.1", "safetensors==0.8.0")),
        bits=ROWS,
    ),
    Peer("litert", "litert", ALL, (TORCH, ("litert-torch==0.10.0",)), bits=ROWS),
    Peer(
        "ncnn",
        "ncnn",
        ("fp32",),
        (TORCH, ("ncnn==1.0.20261020", "pnnx==20261020", "safetensors==0.8.0")),
        lacks="the wheels of ncnn and pnnx bring no tool that rounds weights to {precision}",
    ),
]


def default_cache() -> Path:
    """Where environments and built models lie: outside the repository, kept between runs."""
    return Path(platformdirs.user_cache_dir("edgegen")) / "peers"


def install(peer: Peer, cache: Path) -> Path:
    """The Python of a peer, installed where it is not yet; raises `PeerError` with pip's reason.

    torch alone is constrained: a peer's loose requirements would bring a build for CUDA.
    """
    if not peer.installs:
        return Path(sys.executable)
    folder = cache / (peer.environment or peer.name)
    python, done = folder / "bin" / "python", folder / "installed.json"
    wanted = json.dumps(peer.installs)
    if done.is_file() and done.read_text() == wanted:
        return python
    pin = next(x for x in CONSTRAINTS.read_text().splitlines() if x.startswith("torch=="))
    cache.mkdir(parents=True, exist_ok=True)
    constraint = cache / "torch.txt"
    constraint.write_text(f"{pin}\n")
    if not python.is_file():
        venv.create(folder, with_pip=True)
    variables = os.environ | peer.build_variables | {"PIP_CONSTRAINT": str(constraint)}
    for arguments in peer.installs:
        command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
        run = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        if run.returncode:
            raise PeerError(f"pip install {' '.join(arguments)}: {_last_line(run.stderr)}")
    done.write_text(wanted)
    return python


def ask(
    peer: Peer, python: Path, request: dict[str, Any], threads: int = 0, worker: str = "worker"
) -> dict[str, Any]:
    """What a fresh process of the peer answers; raises `PeerError` with its reason."""
    variables = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not peer.installs:
        variables |= {"PYTHONPATH": str(HERE.parent)}  # the EdgeGen that these scripts belong to
    if threads:
        variables |= {"OMP_NUM_THREADS": str(threads)}
    # -P: the folder of the scripts would hide the very packages that they are called after.
    command = [str(python), "-P", str(HERE / f"{worker}.py"), str(HERE / "peers" / peer.script)]
    asked = json.dumps(request | {"options": peer.options, "threads": threads})
    start = time.perf_counter()
    try:
        run = subprocess.run(
            command,
            input=asked,
            env=variables,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"no answer within {TIMEOUT_S:g} s") from error
    lines = run.stdout.strip().splitlines()
    if run.returncode or not lines or not lines[-1].startswith("{"):
        raise PeerError(f"exit code {run.returncode}: {_last_line(run.stderr)}")
    answer: dict[str, Any] = json.loads(lines[-1])
    if "error" in answer:
        raise PeerError(answer["error"])
    return answer | {"wall_s": round(time.perf_counter() - start, 2)}


def packages(python: Path) -> dict[str, str]:
    """Every package of an environment with its version."""
    command = [str(python), "-m", "pip", "list", "--format", "json"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {row["name"]: row["version"] for row in json.loads(found)}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "rror" in line]
    return (told or lines or ["it said nothing"])[-1][:300]
