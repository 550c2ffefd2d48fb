"""Text of a deployment: prompts in, text out, piece by piece or whole."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from edgegen.runtimes.loops import _limits, _sampling
from edgegen.spec import Array, Request
from edgegen.text import TextStream

if TYPE_CHECKING:
    from edgegen.runtimes import Deployment

NEW_TOKENS = 64
Pieces = Generator[list[str | None], None, list[str]]


def request(
    deployment: Deployment,
    prompts: Sequence[str],
    batch: int,
    max_new_tokens: int | None,
    seed: int,
    *,
    chat: bool = False,
    **sampling: float | None,
) -> Request:
    """The ids of the prompts, each `batch` times, and how many are wanted after them."""
    loop = deployment.text_loop()
    options = _sampling.sampling(**sampling)
    encoded = [deployment.tokenizer.encode(prompt, chat=chat) for prompt in prompts]
    longest = max(map(len, encoded), default=0)
    room = _limits.positions(deployment.session("model"), loop)
    if max_new_tokens is None:
        max_new_tokens = max(1, min(NEW_TOKENS, room - longest + 1))
    _limits.check_room(loop, room, batch * len(encoded), longest, max_new_tokens)
    ids = tuple(prompt for prompt in encoded for _ in range(batch))
    return Request(
        batch=len(ids), seed=seed, new_tokens=max_new_tokens, sampling=options, prompts=ids
    )


def pieces(
    deployment: Deployment, steps: Iterable[Array], asked: Request, stop: Sequence[str]
) -> Pieces:
    """One yield a step: what became certain of each text, None where it has ended; returns all."""
    loop = deployment.text_loop()
    texts = [TextStream(deployment.tokenizer, stop, loop.eos) for _ in asked.prompts]
    for count, ids in enumerate(steps, 1):
        pairs = zip(texts, ids.tolist(), strict=True)
        last = count == asked.new_tokens
        yield [None if text.done else text.feed(token, last=last) for text, token in pairs]
        if all(text.done for text in texts):
            break
    return [text.text for text in texts]


def generate(
    deployment: Deployment,
    prompts: Sequence[str],
    tell: Callable[[int, str], None] | None,
    *,
    batch: int = 1,
    max_new_tokens: int | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    **options: Any,
) -> list[str]:
    """The texts; `tell` hears of each new piece with its number. Token by token where somebody
    listens or a string may end a text, else in one go."""
    asked = request(deployment, prompts, batch, max_new_tokens, seed, **options)
    alone = tell is None and not stop
    steps = deployment.tokens(asked) if alone else deployment.steps(asked)
    return _drain(pieces(deployment, steps, asked, stop), tell)


def _drain(found: Pieces, tell: Callable[[int, str], None] | None) -> list[str]:
    while True:
        try:
            step = next(found)
        except StopIteration as end:
            texts: list[str] = end.value
            return texts
        for number, piece in enumerate(step):
            if tell and piece:
                tell(number, piece)
