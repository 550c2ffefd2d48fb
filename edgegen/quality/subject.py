"""A model under judgement: a bundle on an engine, or a net in memory; its graphs are sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgegen.bundle import NONE, Bundle, OneShot, Text
from edgegen.errors import NotComparableError, UnsupportedError
from edgegen.quality.bound import Decode, Encode
from edgegen.quality.images import scale
from edgegen.quality.text import LogitsOf
from edgegen.runtimes import Deployment, _pictures
from edgegen.runtimes.loops import _limits, autoregressive
from edgegen.spec import Array, GraphSpec, Request, Session
from edgegen.text import FILE, Tokenizer, open_tokenizer

TEXTS = 8  # written at once


class Subject(NamedTuple):
    """What a judge has to know. `tokens_of` names the tokenizer: equal for equal ones."""

    name: str
    family: str
    precision: str
    engine: str
    device: str
    loop: Text | OneShot
    config: Mapping[str, Any]
    graphs: Mapping[str, GraphSpec]
    session: Callable[[str], Session]
    tokenizer: Callable[[], Tokenizer]
    tokens_of: str = ""


def of_deployment(deployment: Deployment) -> Subject:
    """A bundle on an engine and device; with another adapter than it begins with, another name."""
    subject = _subject(
        deployment.bundle,
        deployment.engine,
        deployment.device,
        deployment.session,
        lambda: deployment.tokenizer,
    )
    if deployment.adapter == deployment.bundle.manifest.adapter:
        return subject
    return subject._replace(name=f"{subject.name}+{deployment.adapter or NONE}")


def of_bundle(bundle: Bundle, engine: str, device: str) -> Subject:
    """A bundle that is not opened here: what `engine` made of it on `device` has been stored."""

    def closed(graph: str) -> Session:
        raise UnsupportedError(
            f"{bundle.path}: only its samples are here, {graph} is not opened",
            "evaluate where the engine runs, without --samples",
        )

    return _subject(bundle, engine, device, closed, lambda: open_tokenizer(bundle))


def _subject(
    bundle: Bundle,
    engine: str,
    device: str,
    session: Callable[[str], Session],
    tokenizer: Callable[[], Tokenizer],
) -> Subject:
    manifest = bundle.manifest
    return Subject(
        manifest.name,
        manifest.family,
        manifest.precision,
        engine,
        device,
        manifest.loop,
        manifest.config,
        {graph.name: graph for graph in manifest.graphs},
        session,
        tokenizer,
        manifest.files[FILE].sha256 if FILE in manifest.files else "",
    )


def check_alike(subject: Subject, against: Subject | None) -> None:
    """Raise unless the two can be given the same inputs.

    Raises:
        NotComparableError: another family, tokenizer, latent or image.
    """
    if against is None:
        return
    facts = {
        "family": (subject.family, against.family),
        "tokenizer": (subject.tokens_of[:12], against.tokens_of[:12]),
        "latent": (_shapes(subject, 0), _shapes(against, 0)),
        "image": (_shapes(subject, 1), _shapes(against, 1)),
    }
    for what, (mine, other) in facts.items():
        if mine != other:
            raise NotComparableError(
                f"{subject.name} has the {what} {mine}, {against.name} has {other}",
                "give the model it was made from: --against BUNDLE",
            )


def _shapes(subject: Subject, side: int) -> str:
    """The shapes of a picture graph's inputs (0) or outputs (1), without the batch."""
    if isinstance(subject.loop, Text):
        return ""
    graph = subject.graphs[subject.loop.graph]
    specs = (graph.inputs, graph.outputs)[side]
    return ", ".join("x".join(map(str, spec.shape[1:])) for spec in specs)


def positions(subject: Subject) -> tuple[int, bool]:
    """How many tokens a text model reads at once, and whether it can read no other number."""
    assert isinstance(subject.loop, Text)
    session = subject.session("model")
    return _limits.positions(session, subject.loop), bool(_limits.window(session))


def logits_of(subject: Subject) -> LogitsOf:
    """Logits of every position of token ids (batch, time), read with an empty cache.

    Raises:
        UnsupportedError: a graph with a past of fixed length.
    """
    session = subject.session("model")
    if _limits.window(session):
        autoregressive.WindowForward(session)  # says what is wrong with a fixed past
    fixed = _fixed_batch(session)

    def run(ids: Array) -> Array:
        pieces = []
        for rows, count in _pieces(len(ids), fixed, len(ids)):
            found = autoregressive.full_forward(session, ids[rows], np.ones_like(ids[rows]))
            pieces.append(found[:count])
        return np.concatenate(pieces)

    return run


def write(subject: Subject, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> list[str]:
    """What the model goes on with after each prompt, greedily, in `new_tokens` or up to its end."""
    assert isinstance(subject.loop, Text)
    session, tokenizer = subject.session("model"), subject.tokenizer()
    texts: list[str] = []
    for rows, count in _pieces(len(prompts), _fixed_batch(session), TEXTS):
        few = tuple(prompts[n] for n in rows)
        request = Request(batch=len(few), new_tokens=new_tokens, prompts=few)
        rng = np.random.default_rng(0)
        steps = autoregressive.steps({"model": session}, subject.loop, request, rng)
        texts += [tokenizer.decode(ids) for ids in _last(steps)[:count]]
    return texts


def _last(steps: Any) -> list[list[int]]:
    """The return value of a loop that is run to its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: list[list[int]] = end.value
            return found


def _fixed_batch(session: Session) -> int:
    """The batch that a text graph was exported for; 0 when it is free."""
    size = next(s.shape[0] for s in session.graph.inputs if s.name == "input_ids")
    return size if isinstance(size, int) else 0


def _pieces(count: int, fixed: int, most: int) -> Iterator[tuple[Array, int]]:
    """(rows, how many of them count): up to `most` rows, or `fixed`, filled up with copies."""
    size = fixed or most
    for start in range(0, count, size):
        rows = np.arange(start, min(start + size, count))
        yield np.pad(rows, (0, size - len(rows) if fixed else 0), mode="edge"), len(rows)


def generate(subject: Subject, num: int, seed: int) -> Array:
    """Images in 0..1 from the latents of `seed`, (num, channels, height, width).

    Raises:
        UnsupportedError: the model makes no images.
        MismatchError: a pixel that is not finite.
    """
    loop = pictured(subject)
    session = subject.session(loop.graph)
    latents = _pictures.latents(session.graph, num, seed)
    return scale(_pictures.render(session, latents, loop.image), loop.pixels)


def pictured(subject: Subject) -> OneShot:
    """The loop of a model that makes images."""
    if isinstance(subject.loop, Text) or not subject.loop.image:
        raise UnsupportedError(
            f"{subject.name} makes no images and no text: nothing is known of what is good",
            "export it with --pixels LOW,HIGH if its output is images",
        )
    return subject.loop


def encode(subject: Subject) -> Encode:
    """The encoder: images in 0..1 to the mean and log variance of their latents.

    Raises:
        UnsupportedError: no encoder, or one without a log variance.
    """
    loop = pictured(subject)
    graph = subject.graphs.get(loop.encoder)
    if graph is None or len(graph.inputs) != 1 or len(graph.outputs) < 2:
        what = "no encoder" if graph is None else "an encoder without mean and log variance"
        raise UnsupportedError(f"{subject.name} has {what}", "leave out elbo, kl, reconstruction")
    session, (low, high) = subject.session(loop.encoder), loop.pixels
    source, names = graph.inputs[0], [spec.name for spec in graph.outputs[:2]]

    def run(images: Array) -> tuple[Array, Array]:
        feed = {source.name: (images * (high - low) + low).astype(source.dtype)}
        mean, logvar = (_pictures.render(session, feed, name) for name in names)
        return mean, logvar

    return run


def decode(subject: Subject) -> Decode:
    """The decoder: latents to images in 0..1.

    Raises:
        UnsupportedError: it takes more than a latent.
    """
    loop = pictured(subject)
    session = subject.session(loop.graph)
    if len(session.graph.inputs) != 1:
        names = ", ".join(spec.name for spec in session.graph.inputs)
        raise UnsupportedError(
            f"{subject.name}: the decoder takes {names}, wanted the latent alone",
            "leave out elbo, kl, reconstruction",
        )
    source = session.graph.inputs[0]

    def run(latents: Array) -> Array:
        feed = {source.name: latents.astype(source.dtype)}
        return scale(_pictures.render(session, feed, loop.image), loop.pixels)

    return run
