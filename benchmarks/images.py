"""Image models with EdgeGen and with its peers: the same weights, side by side.

    .venv/bin/python benchmarks/images.py                      everything: about two hours
    .venv/bin/python benchmarks/images.py --models vae --rounds 5

Every peer is installed into an environment of its own, builds the same model and is checked: its
image for the same input against torch in fp32. Then all take turns in fresh processes, forwards
and backwards, a new input for each repeat. Models of half the channels are other models: they are
checked against themselves, and timed beside the whole ones. A peer that cannot be installed, does
not take the model or computes something else is listed with the reason.

Raw answers are appended to results/images.jsonl, one line a process, with the environment in the
first; started again with the same settings it goes on from there. The tables go to
results/image-MODEL.md.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import peers
from msgspec import Struct
from peers import TORCH, Peer, PeerError
from text import RESULTS, Log, record, say

from edgegen import bootstrap
from edgegen.devices.cpu import environment
from edgegen.verify import sqnr_db

MODELS = {
    "dcgan": "DCGAN 64x64",
    "vae": "VAE decoder 64x64 (SiLU)",
    "unet": "U-Net step 32x32",
    "latent": "latent decoder 512x512",
    "tiny": "tiny decoder 16x16 (to try the script)",
}
HALF = "_half"
WORKER = "image_worker"
INPUTS = 16  # different ones in a process
LEAST_DB = {"fp32": 30.0, "int8": 15.0}  # OpenVINO's own fp32 is bf16 where the chip has it


def ours(runtime: str, precision: str, half: bool = False) -> Peer:
    """EdgeGen on one engine."""
    name = f"{'half, ' if half else ''}edgegen {runtime} {precision}"
    given = {"runtime": runtime, "precision": precision} | ({"half": "yes"} if half else {})
    return Peer(name, "image-ours", (precision,), options=given)


def other(name: str, script: str, precision: str = "fp32", **more: Any) -> Peer:
    """An engine without EdgeGen."""
    options = {"precision": precision} | more.pop("options", {})
    return Peer(name, f"image-{script}", (precision,), options=options, **more)


OPENVINO, ORT = "openvino default", "onnxruntime fp32"  # what ratios are told against
PEERS = [
    other(OPENVINO, "openvino"),
    other(ORT, "onnxruntime"),
    other("onnxruntime int8", "onnxruntime", "int8"),
    other("nncf int8", "openvino", "int8"),
    other("torch eager", "torch"),
    other("torch compiled", "torch", options={"compile": "yes"}),
    *(ours(runtime, p) for runtime in ("onnxruntime", "openvino") for p in ("fp32", "int8")),
    *(ours(runtime, "int8", half=True) for runtime in ("onnxruntime", "openvino")),
    other("ncnn", "ncnn", installs=(TORCH, ("ncnn==1.0.20261020", "pnnx==20261020"))),
    other("litert", "litert", installs=(TORCH, ("litert-torch==0.10.0",))),
    other("executorch", "executorch", installs=(TORCH, ("executorch==1.5.1",))),
]
# Its models are those of transformers and diffusers; a plain torch module has no way in.
ABSENT = ["optimum-onnx: exports no model that is not from transformers or diffusers"]


class Ready(Struct, frozen=True):
    """A peer that has a model built and computes it."""

    peer: Peer
    python: Path
    path: Path
    told: str
    decibels: float


class Plan(Struct, frozen=True):
    """What is timed of one model."""

    model: str
    repeats: int
    warmup: int

    def of(self, peer: Peer) -> str:
        """The model that a peer runs: the whole one, or the one of half the channels."""
        return self.model + (HALF if peer.options.get("half") else "")


def reference_of(model: str, cache: Path) -> tuple[Path, float, int]:
    """Inputs and torch's first image for them; its GFLOP a step, and its parameters."""
    folder = cache / "images" / model
    told = folder / "reference.json"
    if not told.is_file():
        import image_models
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        folder.mkdir(parents=True, exist_ok=True)
        net, drawn = image_models.made(model), image_models.drawn(model, 1, INPUTS)
        first = [torch.from_numpy(array[:1]) for array in drawn]
        with torch.inference_mode():
            image = net(*first).numpy()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(*first)
        np.savez(folder / "inputs.npz", **{f"in{n}": array for n, array in enumerate(drawn)})
        np.save(folder / "image.npy", image)
        count = sum(parameter.numel() for parameter in net.parameters())
        told.write_text(json.dumps([counter.get_total_flops() / 1e9, count]))
    gflop, count = json.loads(told.read_text())
    return folder, gflop, count


def prepare(peer: Peer, plan: Plan, cache: Path) -> Ready:
    """Install, build and check; raises `PeerError` with the reason."""
    model = plan.of(peer)
    say(f"{model} {peer.name}: install, build, check")
    python = peers.install(peer, cache)
    output = cache / "images" / model / peer.name.replace(", ", "-").replace(" ", "-")
    told = output.with_suffix(".json")
    if not told.is_file() or not output.is_dir():
        shutil.rmtree(output, ignore_errors=True)
        request = {"do": "build", "model": model, "output": str(output)}
        told.write_text(json.dumps(peers.ask(peer, python, request, worker=WORKER)))
    reference, _, _ = reference_of(model, cache)
    with tempfile.TemporaryDirectory() as folder:
        image = f"{folder}/image.npy"
        request = run_request(output, reference, image, Plan(plan.model, 1, 0))
        peers.ask(peer, python, request, threads=1, worker=WORKER)
        want, found = np.load(reference / "image.npy"), np.load(image)
    if want.shape != found.shape:
        raise PeerError(f"computes something else: {found.shape} instead of {want.shape}")
    decibels = float(sqnr_db(want, found))
    if not decibels >= LEAST_DB[peer.precisions[0]]:
        raise PeerError(f"computes something else: {decibels:.1f} dB")
    return Ready(peer, python, output, str(json.loads(told.read_text())["precision"]), decibels)


def run_request(path: Path, reference: Path, image: str, plan: Plan) -> dict[str, Any]:
    """One turn: the same inputs for everybody."""
    return {
        "do": "run",
        "path": str(path),
        "inputs": str(reference / "inputs.npz"),
        "image": image,
        "count": INPUTS,
        "repeats": plan.repeats,
        "warmup": plan.warmup,
    }


def take_turns(
    ready: Sequence[Ready], plan: Plan, threads: int, asked: argparse.Namespace, log: Log
) -> dict[str, list[dict[str, Any]]]:
    """The answers of each peer, one a round; nobody is always the first. A peer that fails while
    it is timed is out, and said so."""
    found: dict[str, list[dict[str, Any]]] = {one.peer.name: [] for one in ready}
    for turn in range(asked.rounds):
        for one in ready if turn % 2 == 0 else ready[::-1]:
            name = one.peer.name
            key = {"peer": name, "model": plan.model, "threads": threads, "round": turn}
            key |= {"repeats": plan.repeats, "warmup": plan.warmup}
            if name not in found:
                continue
            answer = log.get(key)
            try:
                answer = answer or log.add(key, one_turn(one, plan, threads, asked.cache))
            except PeerError as error:
                say(f"{plan.model} {name}: {error}")
                del found[name]
                continue
            found[name].append(answer)
            middle = median(answer["step_ms"])
            say(f"{plan.model} {threads} threads round {turn + 1}: {name} {middle:.3f} ms")
    return found


def one_turn(one: Ready, plan: Plan, threads: int, cache: Path) -> dict[str, Any]:
    """A fresh process of one peer."""
    reference, _, _ = reference_of(plan.of(one.peer), cache)
    with tempfile.TemporaryDirectory() as folder:
        request = run_request(one.path, reference, f"{folder}/image.npy", plan)
        return peers.ask(one.peer, one.python, request, threads, WORKER)


def table(
    found: dict[str, list[dict[str, Any]]], ready: Sequence[Ready], gflop: dict[str, float]
) -> Iterator[str]:
    """One line a peer: medians, and how many times faster than the two that people start from."""
    yield (
        f"| | ms | {OPENVINO} / it | {ORT} / it | GFLOP/s | load ms | peak RSS MB | "
        "against torch fp32 |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for one in ready:
        answers = found.get(one.peer.name)
        if answers is None:
            continue
        step_ms = median(median(answer["step_ms"]) for answer in answers)
        load, rss = (median(a[name] for a in answers) for name in ("load_ms", "peak_rss_mb"))
        speed = gflop[HALF if one.peer.options.get("half") else ""] / step_ms * 1e3
        ratios = [ratio(found.get(name), answers) for name in (OPENVINO, ORT)]
        yield (
            f"| {one.peer.name} | {step_ms:.3f} | {ratios[0]} | {ratios[1]} | {speed:.0f} | "
            f"{load:.0f} | {rss:.0f} | {one.decibels:.1f} dB |"
        )


def ratio(base: Sequence[Any] | None, answers: Sequence[Any]) -> str:
    """How many times faster than `base`, round by round, with the 95 % interval."""
    if base is None or base is answers:
        return "-" if base is None else "1"
    logs = [
        math.log(median(a["step_ms"]) / median(b["step_ms"]))
        for a, b in zip(base, answers, strict=True)
    ]
    middle, reach = bootstrap.location(np.array(logs))
    if reach is None:
        return f"{math.exp(middle):.2f} (too few rounds)"
    low, high = math.exp(middle - reach), math.exp(middle + reach)
    return f"{math.exp(middle):.2f} ({low:.2f} to {high:.2f})"


def section(plan: Plan, asked: argparse.Namespace, log: Log) -> list[str]:
    """Everything about one model, as Markdown."""
    ready, refused = [], list(ABSENT)
    for peer in asked.peers:
        try:
            ready.append(prepare(peer, plan, asked.cache))
        except PeerError as error:
            refused.append(f"{peer.name}: {error}")
            say(f"{plan.model} {peer.name}: {error}")
    facts = {end: reference_of(plan.model + end, asked.cache)[1:] for end in ("", HALF)}
    gflop = {end: fact[0] for end, fact in facts.items()}
    size = f"{facts[''][1] / 1e6:.1f}M parameters, {gflop['']:.3g} GFLOP"
    lines = [f"## {MODELS[plan.model]}: {size}", ""]
    for threads in asked.threads:
        found = take_turns(ready, plan, threads, asked, log)
        lines += [f"{threads} thread{'s' * (threads > 1)}", "", *table(found, ready, gflop), ""]
        lost = [one.peer.name for one in ready if one.peer.name not in found]
        lines += [f"- {name}: failed while it was timed" for name in lost]
    lines += [f"- {one.peer.name}: {one.told}" for one in ready]
    lines += [f"- not timed: {reason}" for reason in refused]
    return [*lines, ""]


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    many = {"type": lambda text: text.split(",")}
    parser.add_argument("--models", default=[n for n in MODELS if n != "tiny"], **many)
    parser.add_argument("--peers", help="names, parted by ';'; all unless given")
    parser.add_argument("--threads", default=["1", "2"], **many)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=0, help="in one process; 0: by the model")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=peers.default_cache())
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    known = {peer.name: peer for peer in PEERS}
    names = asked.peers.split(";") if asked.peers else list(known)
    for name, have in [(n, known) for n in names] + [(n, MODELS) for n in asked.models]:
        if name not in have:
            parser.error(f"no {name!r}; have: {'; '.join(have)}")
    asked.peers = [known[name] for name in names]
    asked.threads = [int(n) for n in asked.threads]
    return asked


def main() -> None:
    """One section a model; the file is written as soon as one is known."""
    asked = arguments()
    log = Log(asked.results / "images.jsonl")
    record(asked, log)
    machine = environment()
    for model in asked.models:
        repeats = asked.repeats or (12 if model == "latent" else 100)
        lines = [
            f"`benchmarks/images.py --models {model} --rounds {asked.rounds}` on "
            f"{machine['cpu']}, {machine['usable_cores']:g} cores; batch 1; medians of "
            f"{asked.rounds} rounds of fresh processes in turns, {repeats} repeats each; ratios "
            "with 95 % intervals.",
            "",
            *section(Plan(model, repeats, asked.warmup), asked, log),
        ]
        (asked.results / f"image-{model}.md").write_text("\n".join(lines))
        say("\n".join(lines))


if __name__ == "__main__":
    main()
