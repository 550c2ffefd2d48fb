"""What is to be measured: a bundle, how it is opened, the request, and how often it is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from edgegen import rooms
from edgegen.bundle import Manifest, Text, open_bundle
from edgegen.errors import UsageError
from edgegen.spec import Options, Request

MOST = 1_000_000  # of anything one can ask for: more is a slip of the keyboard


class Job(Struct, frozen=True, forbid_unknown_fields=True):
    """One measurement: what to open, how, and how often to run it.

    `first` is the number of the first timed repeat: repeat n runs with seed `request.seed + n`, so
    that no two prompts or latents are alike, but the n-th is the same for everybody. `roofline`
    says afterwards why it is slow. `watts` is what the device takes when it is busy, for a model of
    energy where there is no meter.
    """

    path: str
    runtime: str | None
    device: str
    request: Request
    options: Options
    warmup: int
    repeats: int
    first: int = 0
    operators: bool = True
    verify: bool = False
    roofline: bool = False
    watts: float = 0.0


def request_for(
    path: Path | str,
    *,
    batch: int = 1,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Request:
    """The workload for a bundle; for text 32 random tokens in and 32 out, greedy, unless told.

    Raises:
        UsageError: out of range, more than the model's positions, or not of this kind of model.
    """
    loop = open_bundle(path).manifest.loop
    if not isinstance(loop, Text):
        given = {"--prompt-tokens": prompt_tokens, "--new-tokens": new_tokens}
        for option, value in given.items():
            if value is not None:
                raise UsageError(
                    f"{option} {value}: {path} is no text model", f"leave {option} out"
                )
        return Request(batch=batch, seed=seed, sizes=dict(sizes or {}))
    most = loop.max_positions
    prompt = min(32, max(1, most // 2)) if prompt_tokens is None else prompt_tokens
    new = max(1, min(32, most - prompt)) if new_tokens is None else new_tokens
    return Request(
        batch=batch,
        seed=seed,
        prompt_tokens=prompt,
        new_tokens=new,
        ignore_eos=True,
        sizes=dict(sizes or {}),
    )


def check(job: Job) -> None:
    """Raise `UsageError` unless every number of `job` makes sense for its bundle.

    Raises also:
        NotFoundError: no bundle there, or no engine of that name ("did you mean").
    """
    if job.runtime is not None and job.runtime not in rooms.names("edgegen.runtimes"):
        rooms.load("edgegen.runtimes", job.runtime)
    request, manifest = job.request, open_bundle(job.path).manifest
    text = isinstance(manifest.loop, Text)
    for option, value, least in (
        ("--repeats", job.repeats, 1),
        ("--warmup", job.warmup, 0),
        ("--threads", job.options.threads, 0),
        ("--batch", request.batch, 1),
        ("--seed", request.seed, 0),
        ("--prompt-tokens", request.prompt_tokens, int(text and not request.prompts)),
        ("--new-tokens", request.new_tokens, int(text)),
        *((f"--size {name}", size, 1) for name, size in request.sizes.items()),
    ):
        if not least <= value <= MOST:
            raise UsageError(f"{option} is {value}", f"give a number from {least} to {MOST}")
    if not 0 <= job.watts <= MOST:
        raise UsageError(f"--watts is {job.watts:g}", f"give a number from 0 to {MOST}")
    _check_sizes(request, manifest)
    if isinstance(manifest.loop, Text):
        _check_positions(request, manifest.loop.max_positions, job.path)


def _check_sizes(request: Request, manifest: Manifest) -> None:
    """Every `--size` names a free dimension."""
    shapes = [spec.shape for graph in manifest.graphs for spec in graph.inputs]
    free = {n for shape in shapes for n in shape if isinstance(n, str)} - {"batch"}
    for name in request.sizes:
        if name not in free:
            raise UsageError(
                f"--size {name}: {manifest.name} has no free dimension {name!r}",
                rooms.nearest(name, sorted(free)),
            )


def _check_positions(request: Request, most: int, path: str) -> None:
    prompt = max(map(len, request.prompts), default=request.prompt_tokens)
    if prompt + request.new_tokens > most:
        raise UsageError(
            f"{prompt} prompt tokens and {request.new_tokens} new ones are "
            f"{prompt + request.new_tokens}, {path} has {most} positions",
            f"give --prompt-tokens and --new-tokens that add up to {most} or less",
        )
