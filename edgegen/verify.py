"""Golden data through an engine: how far is it from torch fp32, and is that within tolerance?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from msgspec import Struct

from edgegen import rooms
from edgegen.bundle import (
    CACHE,
    EXACT,
    ROUNDED,
    Bundle,
    Case,
    Drift,
    OneShot,
    Text,
    read_golden,
    worst,
)
from edgegen.errors import FormatError
from edgegen.runtimes import Deployment, deploy
from edgegen.runtimes.loops.autoregressive import forward, full_forward
from edgegen.spec import Array, CachedForward, Options, Session

# A decode case holds prompts and torch's greedy tokens instead of one forward's tensors.
DECODE = "decode"
LAST_POSITION = "last-position"
BEST_DB = 200.0  # the most that is said of an exact result: infinity is not valid JSON
# What quantized caches must reach: their error counts where it reaches the logits, but a cache
# below this is another one. And the logits after a cache of a few positions repeated a hundred
# times, which is no text: there the last position is on trial, not the weights.
INNER_DB = 10.0


class Tolerance(Struct, frozen=True):
    """Same numbers on another engine: allclose and SQNR. Other numbers: SQNR and a quality figure.

    `atol` is in units of the largest magnitude in the tensor: rounding errors of a sum grow with
    its terms, not with its value, so a logit near 0 among logits of 30 is off by more. `top1` is
    the share of positions of real text whose most likely token is torch's; `psnr_db` is of images
    at fixed latents.
    """

    rtol: float = 0.0
    atol: float = 0.0
    sqnr_db: float = 0.0
    top1: float = 0.0
    psnr_db: float = 0.0


# The last three are for graphs of a quantized checkpoint, held to the quantized net itself: with
# fp32 arithmetic they give its very numbers. Kernels that round activations may not: ONNX Runtime's
# 8-bit MatMulNBits does it by blocks (36 to 46 dB), and its fused convolutions add their bias in
# whole steps of int32. Biases lie on those steps where they can be told from the net; where not,
# about one rounding in 500 is tipped (60 dB), and tips others in the layers behind it.
TOLERANCES = {
    "fp32": Tolerance(rtol=1e-3, atol=1e-4, sqnr_db=80),
    "fp16": Tolerance(rtol=1e-2, atol=1e-2, sqnr_db=40),
    "bf16": Tolerance(rtol=4e-2, atol=4e-2, sqnr_db=30),  # 8 bits of mantissa where fp16 has 11
    "int8": Tolerance(sqnr_db=20, top1=0.8, psnr_db=25),
    "int4": Tolerance(sqnr_db=15, top1=0.6, psnr_db=20),
    EXACT: Tolerance(rtol=1e-3, atol=1e-4, sqnr_db=80),
    ROUNDED: Tolerance(sqnr_db=25, top1=0.8, psnr_db=30),
    CACHE: Tolerance(sqnr_db=30, top1=0.9),
}
SAME_NUMBERS = ("fp32", EXACT)  # the rules that promise the reference's tokens, too


def verify(
    bundle: Bundle, engine: str, device: str = "cpu", options: Options | None = None
) -> list[Drift]:
    """Run every golden case on an engine; one row for each output, caches as their worst.

    Raises:
        FormatError: the bundle has no golden data to verify against.
    """
    cases = read_golden(bundle)
    if not cases:
        raise FormatError(f"{bundle.path}: no golden data in it", "export the bundle again")
    deployment = deploy(bundle.path, engine, device, options)
    try:
        return [row for case in cases for row in check_case(deployment, case)]
    finally:
        deployment.close()


def check_case(deployment: Deployment, case: Case) -> list[Drift]:
    """One case on an open deployment."""
    deployment.use(case.adapter)
    session = deployment.session(case.graph)
    precision = rule_of(deployment, case.graph)
    loop = deployment.bundle.manifest.loop
    if case.name.startswith(DECODE):
        return [_decode_drift(deployment.engine, session, case, precision)]
    found = session.run(case.inputs)
    rows = list(_worst_of_caches(drifts(deployment.engine, case, found, precision)))
    quality = _quality(deployment.engine, loop, case, found, precision)
    return rows + ([quality] if quality else [])


def rule_of(deployment: Deployment, graph: str) -> str:
    """Which of `TOLERANCES` a graph is held to."""
    manifest = deployment.bundle.manifest
    reads = rooms.load("edgegen.runtimes", deployment.engine).READS
    own = (a.tolerance for a in manifest.artifacts if (a.graph, a.format) == (graph, reads))
    return next((rule for rule in own if rule), manifest.precision)


def drifts(engine: str, case: Case, found: dict[str, Array], precision: str) -> Iterator[Drift]:
    """How far each output is from the case's, and whether `TOLERANCES[precision]` allows it."""
    limit = TOLERANCES[precision]
    for name, want in case.outputs.items():
        got = found.get(name)
        if rule := _unlike(want, got):
            yield Drift(engine, case.graph, case.name, name, None, None, rule, ok=False)
            continue
        assert got is not None
        error = np.abs(got.astype(np.float64) - want)
        sqnr = sqnr_db(want, got)
        inner = name.startswith("present.") or case.title == LAST_POSITION
        least = INNER_DB if inner and not limit.rtol else limit.sqnr_db
        rule, ok = f"SQNR >= {least:g} dB", sqnr >= least
        if limit.rtol:
            atol = limit.atol * max(1.0, float(np.abs(want).max(initial=0.0)))
            rule += f", allclose rtol {limit.rtol:g} atol {atol:.1g}"
            ok = ok and bool((error <= atol + limit.rtol * np.abs(want)).all())
        largest = float(error.max(initial=0.0))
        yield Drift(engine, case.graph, case.name, name, largest, sqnr, rule, ok)


def _unlike(want: Array, found: Array | None) -> str:
    """Why two outputs cannot be compared as numbers; empty when they can."""
    if found is None or found.shape != want.shape:
        what = "nothing" if found is None else list(found.shape)
        return f"shape {list(want.shape)}, found {what}"
    if not np.isfinite(want).all():
        return "the reference is not finite, which proves nothing"
    return "" if np.isfinite(found).all() else "finite numbers"


def sqnr_db(want: Array, found: Array) -> float:
    """Signal to quantization-noise ratio, 10 log10(sum want^2 / sum (found - want)^2), in dB."""
    want = want.astype(np.float64)
    noise = float(np.square(found - want).sum())
    signal = float(np.square(want).sum())
    if noise == 0:
        return BEST_DB
    return min(BEST_DB, 10 * float(np.log10(signal / noise))) if signal else 0.0


def _worst_of_caches(rows: Iterator[Drift]) -> Iterator[Drift]:
    """All `present.*` rows as the one furthest from its limit: sixty of them say one thing."""
    caches = []
    for row in rows:
        if row.output.startswith("present."):
            caches.append(row)
        else:
            yield row
    if caches:
        yield worst(caches)


def _quality(
    engine: str, loop: Text | OneShot, case: Case, found: dict[str, Array], precision: str
) -> Drift | None:
    """The figure of the family, where numbers are meant to differ."""
    limit = TOLERANCES[precision]
    if any(_unlike(want, found.get(name)) for name, want in case.outputs.items()):
        return None  # the rows of these outputs say so already
    if isinstance(loop, Text) and limit.top1 and case.title == "text" and "logits" in found:
        share = top1_agreement(case.outputs["logits"], found["logits"])
        rule = f"top-1 agreement {share:.3f} >= {limit.top1:g}"
        return _figure(engine, case, "logits", rule, share >= limit.top1)
    if isinstance(loop, OneShot) and limit.psnr_db and loop.image in case.outputs:
        low, high = loop.pixels
        psnr = psnr_db(case.outputs[loop.image], found[loop.image], high - low)
        rule = f"PSNR {psnr:.1f} >= {limit.psnr_db:g} dB"
        return _figure(engine, case, loop.image, rule, psnr >= limit.psnr_db)
    return None


def _figure(engine: str, case: Case, output: str, rule: str, ok: bool) -> Drift:
    """A row whose figure stands in its rule: it is neither an error nor an SQNR."""
    name = f"{output} (quality)"
    return Drift(engine, case.graph, case.name, name, None, None, rule, ok)


def top1_agreement(want: Array, found: Array) -> float:
    """Share of positions whose largest logit is at the same token; (..., vocabulary)."""
    return float((want.argmax(-1) == found.argmax(-1)).mean())


def psnr_db(want: Array, found: Array, span: float) -> float:
    """Peak signal to noise ratio in dB of images whose values span `span`."""
    mse = float(np.square(found.astype(np.float64) - want).mean())
    return BEST_DB if mse == 0 else min(BEST_DB, 10 * float(np.log10(span**2 / mse)))


def _decode_drift(engine: str, session: Session, case: Case, precision: str) -> Drift:
    """Greedy decode through the cache, against this engine's own full forward; and in the
    precisions that promise torch's numbers, against torch's tokens."""
    prompt, want = case.inputs["input_ids"], case.outputs["tokens"]
    mask = case.inputs["attention_mask"]
    found = greedy(forward(session), prompt, mask, want.shape[1])
    near = 1e-3 if precision in SAME_NUMBERS else 2e-2
    off = contradictions(session, prompt, mask, found, near)
    told = "this engine's full forward"
    if precision in SAME_NUMBERS:
        off += int((found != want).sum())
        told += " and torch"
    rule = f"cached decode equals {told}, {want.size} tokens: {off} differ"
    return _figure(engine, case, "tokens", rule, off == 0)


def greedy(step: CachedForward, prompt: Array, mask: Array, count: int) -> Array:
    """The `count` most likely next tokens of left-padded prompts, (batch, count)."""
    ids, tokens = prompt, []
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    for index in range(count):
        logits = step(ids, mask, positions, fresh=index == 0)
        ids = logits.argmax(-1)[:, None].astype(np.int64)
        tokens.append(ids)
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        positions = mask.sum(1, keepdims=True) - 1
    return np.concatenate(tokens, axis=1)


def contradictions(session: Session, prompt: Array, mask: Array, tokens: Array, near: float) -> int:
    """How many `tokens` the full forward does not also put first, ties within `near` aside."""
    ids = np.concatenate([prompt, tokens[:, :-1]], axis=1)
    mask = np.concatenate([mask, np.ones_like(tokens[:, :-1])], axis=1)
    logits = full_forward(session, ids, mask)[:, prompt.shape[1] - 1 :]
    chosen = np.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return int((chosen < logits.max(-1) - near * np.abs(logits).max()).sum())
