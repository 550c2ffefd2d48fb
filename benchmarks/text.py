"""Decoding text with EdgeGen and with its peers: the same weights, side by side.

    .venv/bin/python benchmarks/text.py                        everything: hours
    .venv/bin/python benchmarks/text.py --models 15m --peers edgegen-native,llama.cpp --rounds 5

Every peer is installed into an environment of its own, builds the same model at the same precision
class, and is checked: its logits after a prompt (or, where it does not give them away, its greedy
tokens) against torch in fp32. Then all take turns in fresh processes, forwards and backwards, a
new prompt for each repeat. A peer that cannot be installed, does not take the model or computes
something else is listed with the reason.

Raw answers are appended to results/text.jsonl, one line a process, with the environment in the
first; started again with the same settings it goes on from there. The table goes to
results/text-MODEL.md.
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
import text_models
from msgspec import Struct
from peers import Peer, PeerError

from edgegen import bootstrap, peaks
from edgegen.devices.cpu import environment
from edgegen.verify import sqnr_db

RESULTS = Path(__file__).parent / "results"
CHECK_PROMPT, CHECK_TOKENS = 32, 16
# What a peer must reach to be doing the same work. Weights drawn at random, at 4 bit, keep about
# 17 dB however well they are rounded; what is wrong altogether stays near 0.
LEAST_DB = {"fp32": 30.0, "int8": 20.0, "int4": 8.0}
READING_S = 0.5  # of measuring how fast memory is read
GROUP_BITS = {"fp32": (32.0, 32.0), "int8": (8.5, 8.5), "int4": (4.5, 8.5)}  # scales in fp16


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
        raise PeerError(f"has no {plan.precision} of its own")
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
    output = cache / "models" / plan.model / f"{peer.name}-{plan.precision}"
    told = output.with_suffix(".json")
    if not told.is_file() or not output.is_dir():
        shutil.rmtree(output, ignore_errors=True)
        source = text_models.folder_of(plan.model, cache)
        request = {"do": "build", "model": str(source), "output": str(output)}
        answer = peers.ask(peer, python, request | {"precision": plan.precision})
        told.write_text(json.dumps(answer))
    return output, str(json.loads(told.read_text())["precision_class"])


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
                raise PeerError(f"computes something else: {tokens} are torch's")
            return tokens
        decibels = sqnr_db(np.load(reference), np.load(answer["logits"]))
    if not decibels >= LEAST_DB[plan.precision]:
        raise PeerError(f"computes something else: {decibels:.1f} dB, {tokens}")
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


def take_turns(
    ready: Sequence[Ready], plan: Plan, threads: int, rounds: int, vocabulary: int, log: Log
) -> dict[str, list[dict[str, Any]]]:
    """The answers of each peer, one a round; nobody is always the first. A peer that fails while
    it is timed is out, and said so."""
    found: dict[str, list[dict[str, Any]]] = {one.peer.name: [] for one in ready}
    out: set[str] = set()
    for turn in range(rounds):
        for one in ready if turn % 2 == 0 else ready[::-1]:
            name = one.peer.name
            if name in out:
                continue
            key = {"peer": name, "threads": threads, "round": turn} | as_dict(plan)
            try:
                answer = log.get(key) or log.add(
                    key,
                    peers.ask(
                        one.peer, one.python, run_request(one, plan, turn, vocabulary), threads
                    ),
                )
            except PeerError as error:
                say(f"{plan.model} {plan.precision} {name}: {error}")
                out.add(name)
                continue
            found[name].append(answer)
            say(f"{plan.model} {plan.precision} {threads} threads round {turn + 1}: {name}")
    return {name: answers for name, answers in found.items() if len(answers) == rounds}


def run_request(one: Ready, plan: Plan, turn: int, vocabulary: int) -> dict[str, Any]:
    """One turn: the same prompts for everybody."""
    return {
        "do": "run",
        "path": str(one.path),
        "vocabulary": vocabulary,
        "context": plan.context,
        "prompts": plan.prompts,
        "new": plan.new,
        "repeats": plan.repeats,
        "warmup": plan.warmup,
        "seed": 1 + turn,
    }


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan as it stands in the log."""
    return {name: getattr(plan, name) for name in plan.__struct_fields__} | {
        "prompts": list(plan.prompts)
    }


class Log:
    """results/text.jsonl: what was measured before is not measured again."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        for text in path.read_text().splitlines() if path.is_file() else ():
            line = json.loads(text)
            if "answer" in line:
                self._known[json.dumps(line["key"], sort_keys=True)] = line["answer"]

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to `key`, where there is one."""
        return self._known.get(json.dumps(key, sort_keys=True))

    def add(self, key: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        """Keep an answer."""
        self.write({"key": key, "answer": answer})
        return answer

    def write(self, line: dict[str, Any]) -> None:
        """One line more."""
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def weight_mb(source: Path, precision: str, head_bits: dict[str, float]) -> float:
    """The least that one token must read: every matrix once, the head at its own precision."""
    from safetensors import safe_open

    inner, outer = GROUP_BITS[precision]
    outer = head_bits.get(precision, outer)
    bits = 0.0
    with safe_open(source / "model.safetensors", "numpy") as file:
        for name in file.keys():  # noqa: SIM118
            shape = file.get_slice(name).get_shape()
            outside = "embed_tokens" in name or "wte" in name or "lm_head" in name
            if len(shape) == 2 and "wpe" not in name:
                bits += math.prod(shape) * (outer if outside else inner)
    return bits / 8e6


def table(
    found: dict[str, list[dict[str, Any]]],
    ready: Sequence[Ready],
    plan: Plan,
    prompt: int,
    limits_ms: dict[str, float],
) -> Iterator[str]:
    """One line a peer: medians, and ratios to the first with their 95 % intervals.

    `limits_ms` is how long each takes to read its weights once.
    """
    yield (
        "| engine | TTFT ms | TPOT ms | TPOT of it / first | TTFT of it / first | of the "
        "bandwidth | load ms | peak RSS MB | against torch fp32 |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    first = found[next(iter(found))]
    for one in ready:
        if one.peer.name not in found:
            continue
        answers = found[one.peer.name]
        ttft, tpot = (
            [by_round(a, prompt, what) for a in answers] for what in ("ttft_ms", "tpot_ms")
        )
        ratios = [ratio(first, answers, prompt, what) for what in ("tpot_ms", "ttft_ms")]
        load, rss = (median(a[name] for a in answers) for name in ("load_ms", "peak_rss_mb"))
        share = f"{limits_ms[one.peer.name] / median(tpot):.0%}"
        yield (
            f"| {one.peer.name} | {median(ttft):.2f} | {median(tpot):.3f} | {ratios[0]} | "
            f"{ratios[1]} | {share} | {load:.0f} | {rss:.0f} | {one.agreement} |"
        )


def by_round(answer: dict[str, Any], prompt: int, what: str) -> float:
    """The median of one process."""
    return median(answer["times"][str(prompt)][what])


def ratio(first: Sequence[Any], other: Sequence[Any], prompt: int, what: str) -> str:
    """The median ratio, round by round, and its interval."""
    if first is other:
        return "the first"
    pairs = [
        (by_round(a, prompt, what), by_round(b, prompt, what))
        for a, b in zip(first, other, strict=True)
    ]
    if min(min(pair) for pair in pairs) <= 0:
        return "below the clock"
    middle, reach = bootstrap.location(np.log([b / a for a, b in pairs]))
    if reach is None:
        return f"{math.exp(middle):.2f} (too few rounds)"
    return (
        f"{math.exp(middle):.2f} ({math.exp(middle - reach):.2f} to {math.exp(middle + reach):.2f})"
    )


def one_table(plan: Plan, asked: argparse.Namespace, log: Log) -> list[str]:
    """Everything about one model at one precision, as Markdown."""
    cache = asked.cache
    source = text_models.folder_of(plan.model, cache)
    reference = reference_of(plan.model, cache)
    ready, refused = [], []
    for peer in asked.peers:
        try:
            ready.append(prepare(peer, plan, cache, reference))
        except PeerError as error:
            refused.append(f"{peer.name}: {error}")
            say(f"{plan.model} {plan.precision} {peer.name}: {error}")
    lines = [f"## {plan.model}, {plan.precision}", ""]
    for threads in asked.threads if ready and not asked.build_only else ():
        sizes = {r.peer.name: weight_mb(source, plan.precision, r.peer.head_bits) for r in ready}
        megabytes = max(sizes.values())
        speed = peaks.reading_gb_s(int(megabytes * 1e6 / 1024), threads, READING_S)
        limits = {name: size / speed for name, size in sizes.items()}
        log.write({"bandwidth_gbs": speed, "megabytes": megabytes, "threads": threads})
        vocabulary = text_models.vocabulary_of(source)
        found = take_turns(ready, plan, threads, asked.rounds, vocabulary, log)
        lost = {one.peer.name for one in ready} - set(found)
        for prompt in plan.prompts if found else ():
            lines += [
                f"{threads} thread{'s' * (threads > 1)}, prompt {prompt}, {plan.new} new tokens; "
                f"reading {megabytes:.1f} MB of weights takes {megabytes / speed:.3f} ms "
                f"({speed:.0f} GB/s)",
                "",
                *table(found, ready, plan, prompt, limits),
                "",
            ]
        lines += [f"- {name}: failed while it was timed" for name in sorted(lost)]
    lines += [f"- {one.peer.name}: {one.told} ({one.agreement})" for one in ready]
    lines += [f"- not timed: {reason}" for reason in refused]
    return [*lines, ""]


def say(text: str) -> None:
    """Progress."""
    print(text, flush=True)  # noqa: T201


def record(asked: argparse.Namespace, log: Log) -> None:
    """The machine and every environment that is about to be used, into the log."""
    installed = {}
    for peer in asked.peers:
        try:
            installed[peer.name] = peers.packages(peers.install(peer, asked.cache))
        except PeerError as error:
            installed[peer.name] = {"error": str(error)}
    log.write({"environment": environment(), "installed": installed})


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    many = {"type": lambda text: text.split(",")}
    parser.add_argument("--models", default=list(text_models.NAMES), **many)
    parser.add_argument("--precisions", default=["int8", "int4", "fp32"], **many)
    parser.add_argument("--peers", default=[p.name for p in peers.PEERS], **many)
    parser.add_argument("--threads", default=["1", "2"], **many)
    parser.add_argument("--prompts", default=["32", "256"], **many)
    parser.add_argument("--new", type=int, default=64, help="tokens that TPOT is taken over")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=5, help="in one process")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=peers.default_cache())
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--build-only", action="store_true", help="install, build and check")
    asked = parser.parse_args()
    known = {peer.name: peer for peer in peers.PEERS}
    for name in asked.peers:
        if name not in known:
            parser.error(f"no peer {name!r}; have: {', '.join(known)}")
    for name in asked.models:
        if name not in text_models.NAMES:
            parser.error(f"no model {name!r}; have: {', '.join(text_models.NAMES)}")
    asked.peers = [known[name] for name in asked.peers]
    asked.threads = [int(n) for n in asked.threads]
    asked.prompts = tuple(int(n) for n in asked.prompts)
    return asked


def main() -> None:
    """One table a model and precision; each file is written as soon as it is known."""
    asked = arguments()
    log = Log(asked.results / "text.jsonl")
    record(asked, log)
    machine = environment()
    for model in asked.models:
        lines = [
            f"`benchmarks/text.py --models {model} --rounds {asked.rounds}` on {machine['cpu']}, "
            f"{machine['usable_cores']:g} cores; batch 1, greedy; medians of {asked.rounds} "
            f"rounds of fresh processes in turns, {asked.repeats} repeats each; ratios with 95 % "
            "intervals.",
            "",
        ]
        for precision in asked.precisions:
            plan = Plan(model, precision, asked.prompts, asked.new, asked.repeats, asked.warmup)
            lines += one_table(plan, asked, log)
            (asked.results / f"text-{model}.md").write_text("\n".join(lines))
        say("\n".join(lines))


if __name__ == "__main__":
    main()
