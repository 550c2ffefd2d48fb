"""The quality of a bundle on data it was not trained on, the same numbers on every engine.

Text: the last tenth of it. Images: the part that `data.split` holds out. A net in memory is
judged by the same code: `judge(nets.subject(model), Question("digits"))`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from edgegen import data as sets
from edgegen import records
from edgegen.bundle import MANIFEST, Text, open_bundle
from edgegen.errors import MismatchError, UsageError
from edgegen.quality import Figure, Quality, sheet
from edgegen.quality import samples as files
from edgegen.quality.judge import Question, beginnings, judge
from edgegen.quality.samples import About, Samples, identity
from edgegen.quality.subject import Subject, generate, of_bundle, of_deployment, write
from edgegen.runtimes import deploy
from edgegen.spec import Options, Report, silent

__all__ = ["Figure", "Quality", "Question", "evaluate", "judge", "record", "write_samples"]

FILE = "quality.json"  # beside the manifest: figures with their errors, counts and protocol


def evaluate(
    path: Path | str,
    data: str,
    *,
    runtime: str | None = None,
    device: str = "cpu",
    adapter: str = "",
    against: Path | str | None = None,
    num: int | None = None,
    seed: int = 0,
    metrics: Sequence[str] = (),
    samples: Path | str | None = None,
    report: Report = silent,
) -> Quality:
    """The figures of the bundle at `path` on the held-out part of `data`; see `judge`.

    `against` is the bundle it was made from, opened on the same engine. `samples` are images that
    the bundle made elsewhere, see `write_samples`; they are judged without opening it. `adapter` is
    one of the bundle's, or "none".

    Raises:
        UsageError: data of the other kind; `num` below 1 or more than there is.
        NotFoundError: no such bundle, engine, data set or metric.
        MismatchError: data or samples of another shape or bundle, or numbers that are not finite.
        NotComparableError: `against` a model of another family, tokenizer or latent.
        MissingExtraError, UnsupportedError: a metric asked for by name cannot be had here.
    """
    with ExitStack() as stack:
        made = files.load(samples, open_bundle(path)) if samples else None
        subject = (
            of_bundle(open_bundle(path), made.about.engine, made.about.device)
            if made
            else of_deployment(
                stack.enter_context(deploy(path, runtime, device, Options(adapter=adapter)))
            )
        )
        other = None
        if against:
            other = of_deployment(stack.enter_context(deploy(against, runtime, device)))
        question = Question(data, other, num, seed, tuple(metrics), made)
        return judge(subject, question, report)


def record(path: Path | str, quality: Quality) -> None:
    """Store figures in the bundle they are of, in place of those that were there.

    Their values go into the manifest, where profiles and gates find them as `quality.NAME`; all
    the rest into `quality.json` beside it. The manifest's hash changes, no other file's does.

    Raises:
        MismatchError: figures of another bundle.
    """
    bundle = open_bundle(path)
    if quality.model != bundle.manifest.name or quality.precision != bundle.manifest.precision:
        raise MismatchError(
            f"{path} is {bundle.manifest.name} ({bundle.manifest.precision}), "
            f"the figures are of {quality.model} ({quality.precision})",
            f"evaluate it: edgegen eval {path} --data {quality.data} --save",
        )
    manifest = msgspec.structs.replace(bundle.manifest, quality=quality.numbers())
    records.write(quality, bundle.path / FILE)
    records.write(manifest, bundle.path / MANIFEST)


def write_samples(
    path: Path | str,
    output: Path | str,
    *,
    runtime: str | None = None,
    device: str = "cpu",
    num: int | None = None,
    seed: int = 0,
) -> int:
    """Write `num` images of a bundle as a file for `evaluate(samples=...)`; gives their number.

    1000 of them without `num`. Needs no data set and no torch: for a board, whose images another
    machine scores.
    """
    with deploy(path, runtime, device) as deployment:
        made = generate(of_deployment(deployment), 1000 if num is None else num, seed)
        bundle = deployment.bundle
        about = About(
            bundle.manifest.name, identity(bundle), deployment.engine, deployment.device, seed
        )
    files.save(Samples(made, about), output)
    return len(made)


def draw_sheet(
    path: Path | str,
    output: Path | str,
    *,
    data: str = "",
    against: Path | str | None = None,
    runtime: str | None = None,
    device: str = "cpu",
    num: int = 8,
    seed: int = 0,
) -> None:
    """Write samples side by side: a PNG of images of the same latents, or Markdown of texts.

    Texts go on from `num` places of the held-out part of `data`. `against` comes first.
    """
    with ExitStack() as stack:
        places = {"before: ": against, "after: ": path} if against else {"": path}
        rows: dict[str, Subject] = {}
        for when, place in places.items():
            one = of_deployment(stack.enter_context(deploy(place, runtime, device)))
            rows[f"{when}{one.name} ({one.precision})"] = one
        if isinstance(one.loop, Text):
            content = _texts(rows, data, num)
        else:
            content = sheet.png({name: generate(row, num, seed) for name, row in rows.items()})
    with records.whole(output) as part:
        part.write_bytes(content)


def _texts(rows: Mapping[str, Subject], data: str, num: int) -> bytes:
    if not data:
        raise UsageError("no text to go on from", "name some: --data text:FILES")
    _, held_out = sets.split_text(sets.text(data))
    first = next(iter(rows.values()))
    prompts, wanted, new = beginnings(first, held_out, num)
    shown = [first.tokenizer().decode(prompt) for prompt in prompts]
    texts = {"the text": wanted}
    texts |= {name: write(row, prompts, new) for name, row in rows.items()}
    return sheet.markdown(shown, texts).encode()
