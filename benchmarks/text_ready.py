"""Peers that are ready to be timed: installed, the model built, checked against torch in fp32."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peers
import text_models
from answers import say
from msgspec import Struct
from peers import Peer, PeerError

from edgegen.verify import sqnr_db

CHECK_PROMPT, CHECK_TOKENS = 32, 16
# What a peer must reach to be doing the same work. Weights drawn at random, at 4 bit, keep about
# 17 dB however well they are rounded; what is wrong altogether stays near 0.
LEAST_DB = {"fp32": 30.0, "int8": 20.0, "int4": 8.0}


class Ready(Struct, frozen=True):
    """A peer that has the model built and computes it. `agreement` is what the table says."""

    peer: Peer
    python: Path
    path: Path
    told: str
    agreement: str


class Plan(Struct, frozen=True):
    """What is timed of one model at one precision."""

    model: str
    precision: str
    prompts: tuple[int, ...]
    new: int
    repeats: int
    warmup: int

    @property
    def context(self) -> int:
        """Tokens that one call will hold."""
        return max(self.prompts) + self.new


def prepare(peer: Peer, plan: Plan, cache: Path, reference: Path) -> Ready:
    """Install, build and check; raises `PeerError` with the reason."""
    if plan.precision not in peer.precisions:
        raise PeerError(peer.lacks.format(precision=plan.precision))
    say(f"{plan.model} {plan.precision} {peer.name}: install, build, check")
    python = peers.install(peer, cache)
    path, told = build(peer, python, plan, cache)
    source = text_models.folder_of(plan.model, cache)
    agreement = check(peer, python, plan, path, text_models.vocabulary_of(source), reference)
    return Ready(peer, python, path, told, agreement)


def build(peer: Peer, python: Path, plan: Plan, cache: Path) -> tuple[Path, str]:
    """What the peer runs, and what it says of its precision; kept from one run to the next."""
    if peer.script == "openvino-genai":  # reads what another one writes
        maker = next(p for p in peers.PEERS if p.name == "optimum-intel")
        return build(maker, peers.install(maker, cache), plan, cache)
    output, told = places(peer, plan, cache)
    if not told.is_file() or not output.is_dir():
        shutil.rmtree(output, ignore_errors=True)
        source = text_models.folder_of(plan.model, cache)
        request = {"do": "build", "model": str(source), "output": str(output)}
        answer = peers.ask(peer, python, request | {"precision": plan.precision})
        told.write_text(json.dumps(answer))
    return output, str(json.loads(told.read_text())["precision_class"])


def places(peer: Peer, plan: Plan, cache: Path) -> tuple[Path, Path]:
    """The folder of what the peer runs, and the file of what it said of it."""
    output = cache / "models" / plan.model / f"{peer.name}-{plan.precision}"
    return output, output.parent / f"{output.name}.json"  # with_suffix would cut llama.cpp short


def forget(peer: Peer, plan: Plan, cache: Path) -> None:
    """So that it is built anew."""
    places(peer, plan, cache)[1].unlink(missing_ok=True)


def check(
    peer: Peer, python: Path, plan: Plan, path: Path, vocabulary: int, reference: Path
) -> str:
    """How near the peer is to torch in fp32; raises `PeerError` when it computes something else."""
    with tempfile.TemporaryDirectory() as folder:
        request = check_request(path, vocabulary, f"{folder}/logits.npy")
        answer = peers.ask(peer, python, request, threads=1)
        want = json.loads(reference.with_suffix(".json").read_text())["tokens"]
        same = sum(a == b for a, b in zip(answer["tokens"], want, strict=True))
        tokens = f"{same} of {len(want)} greedy tokens"
        if "logits" not in answer:
            if same == 0:
                raise PeerError(f"too far from torch in fp32: {tokens} are torch's")
            return tokens
        decibels = sqnr_db(np.load(reference), np.load(answer["logits"]))
    if not decibels >= LEAST_DB[plan.precision]:
        raise PeerError(f"too far from torch in fp32: {decibels:.1f} dB, {tokens}")
    return f"{decibels:.1f} dB, {tokens}"


def check_request(path: Path, vocabulary: int, logits: str) -> dict[str, Any]:
    """The question that every peer is asked about one prompt."""
    asked = {"prompt": CHECK_PROMPT, "new": CHECK_TOKENS, "context": CHECK_PROMPT + CHECK_TOKENS}
    return {"do": "check", "path": str(path), "vocabulary": vocabulary, "logits": logits} | asked


def reference_of(model: str, cache: Path) -> Path:
    """Logits of torch in fp32 after the prompt of the check, its greedy tokens beside them."""
    file = cache / "models" / model / "reference.npy"
    if not file.with_suffix(".json").is_file():
        torch = next(p for p in peers.PEERS if p.name == "torch")
        python = peers.install(torch, cache)
        path, _ = build(torch, python, Plan(model, "fp32", (), 0, 0, 0), cache)
        vocabulary = text_models.vocabulary_of(text_models.folder_of(model, cache))
        answer = peers.ask(torch, python, check_request(path, vocabulary, str(file)), threads=1)
        file.with_suffix(".json").write_text(json.dumps(answer))
    return file
