"""Whether a request for text fits: positions and ids of the model, shapes, memory."""

from __future__ import annotations

from edgegen.bundle import Text
from edgegen.errors import UsageError
from edgegen.runtimes._memory import afford
from edgegen.runtimes.loops import _sampling
from edgegen.spec import Request, Session


def check(request: Request, loop: Text, positions: int) -> None:
    """Raise `UsageError` unless the request is sound and fits `positions` and the memory."""
    _sampling.check(request.sampling)
    longest = max(map(len, request.prompts), default=request.prompt_tokens)
    if request.prompts and len(request.prompts) != request.batch:
        raise UsageError(f"{len(request.prompts)} prompts for a batch of {request.batch}")
    if longest < 1 or not all(request.prompts):
        raise UsageError("an empty prompt", "give at least one token")
    ids = [i for prompt in request.prompts for i in prompt]
    if ids and not 0 <= min(ids) <= max(ids) < loop.vocab_size:
        raise UsageError(
            f"token ids go from 0 to {loop.vocab_size - 1}, found {min(ids)} to {max(ids)}"
        )
    check_room(loop, positions, request.batch, longest, request.new_tokens)


def check_room(loop: Text, positions: int, batch: int, prompt_tokens: int, new_tokens: int) -> None:
    """Raise `UsageError` for more tokens than positions, or than the free memory holds."""
    if new_tokens < 1:
        raise UsageError(f"new_tokens is {new_tokens}, wanted 1 or more")
    _check_positions(prompt_tokens, new_tokens, positions)
    # The cache twice, as past and as present, and the logits of the whole prompt; 4 bytes each.
    cache = 4 * loop.layers * loop.kv_heads * loop.head_dim * (prompt_tokens + new_tokens)
    need_bytes = 4 * batch * (cache + prompt_tokens * loop.vocab_size)
    afford(f"batch {batch}", need_bytes, "ask for a smaller batch or a shorter prompt")


def check_batch(session: Session, batch: int) -> None:
    fixed = next(s.shape[0] for s in session.graph.inputs if s.name == "input_ids")
    if isinstance(fixed, int) and fixed != batch:
        raise UsageError(f"batch is {batch}, the graph was exported for batch {fixed}")


def _check_positions(prompt_tokens: int, new_tokens: int, positions: int) -> None:
    # The last new token is never read back, so it takes no position.
    if prompt_tokens > positions:
        raise UsageError(
            f"the prompt has {prompt_tokens} tokens, the model has {positions} positions",
            f"shorten the prompt by {prompt_tokens - positions} tokens or more",
        )
    if prompt_tokens + new_tokens - 1 > positions:
        raise UsageError(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones do not fit the model's "
            f"{positions} positions",
            f"ask for {positions - prompt_tokens + 1} new tokens or fewer (--max-new-tokens)",
        )


def window(session: Session) -> int | None:
    """The sequence length that the graph was fixed to; None when it is free."""
    length = next(s.shape[1] for s in session.graph.inputs if s.name == "input_ids")
    return length if isinstance(length, int) else None


def positions(session: Session, loop: Text) -> int:
    """How many tokens, prompt and text together, the graph can look at."""
    return window(session) or loop.max_positions
