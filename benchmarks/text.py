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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peers
import text_models
from answers import RESULTS, Log, say
from peers import PeerError
from text_ready import Plan, Ready, forget, prepare, reference_of
from text_tables import table, weight_mb

from edgegen import peaks
from edgegen.devices.cpu import environment

READING_S = 0.5  # of measuring how fast memory is read


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


def one_table(plan: Plan, asked: argparse.Namespace, log: Log) -> list[str]:
    """Everything about one model at one precision, as Markdown."""
    cache = asked.cache
    source = text_models.folder_of(plan.model, cache)
    reference = reference_of(plan.model, cache)
    ready, refused = [], []
    for peer in asked.peers:
        if asked.fresh and not peer.installs:
            forget(peer, plan, cache)
        try:
            ready.append(prepare(peer, plan, cache, reference))
        except PeerError as error:
            refused.append(f"{peer.name}: {error}")
            say(f"{plan.model} {plan.precision} {peer.name}: {error}")
    lines = [f"## {plan.model}, {plan.precision}", ""]
    for threads in asked.threads if ready and not asked.build_only else ():
        sizes = {r.peer.name: weight_mb(source, plan.precision, r.peer.bits) for r in ready}
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
                *table(found, ready, prompt, limits),
                "",
            ]
        lines += [f"- {name}: failed while it was timed" for name in sorted(lost)]
    lines += [f"- {one.peer.name}: {one.told} ({one.agreement})" for one in ready]
    lines += [f"- not timed: {reason}" for reason in refused]
    return [*lines, ""]


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
    parser.add_argument("--fresh", action="store_true", help="export EdgeGen's own bundles anew")
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
