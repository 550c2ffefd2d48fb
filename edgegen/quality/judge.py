"""A subject's figures on held-out data: what is read, drawn and compared, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from edgegen import data as sets
from edgegen.bundle import Text
from edgegen.errors import (
    MismatchError,
    MissingExtraError,
    UsageError,
)
from edgegen.quality import Figure, Quality, bound, distances, features, images, overlap, text
from edgegen.quality.samples import Samples
from edgegen.quality.subject import (
    Subject,
    check_alike,
    decode,
    encode,
    generate,
    logits_of,
    pictured,
    positions,
    write,
)
from edgegen.quality.tally import Tally
from edgegen.runtimes._memory import afford
from edgegen.spec import Array, Report, silent

NUMBER = 500  # images, where nobody says how many and the data has them
TEXTS, PROMPT, WRITTEN = 32, 32, 32  # continuations, tokens read for each, tokens written
READ = ("perplexity", "bits_per_byte")
COMPARED = ("kl_nats", "top1_agreement", "perplexity_ratio")
WROTE, AGREED = ("bleu", *overlap.KINDS), ("bleu_agreement", "rouge_l_agreement")
ON_FEATURES = ("fid", "kid", "precision", "recall", "inception_score")
PIXELS = ("swd_pixels",)
LIKENESS = ("psnr_db", "ssim")
BOUND = ("elbo_nats", "kl_to_prior_nats", "reconstruction_mse")
OF_TEXT = (*READ, *COMPARED, *WROTE, *AGREED)
OF_IMAGES = (*PIXELS, *LIKENESS, *BOUND, *ON_FEATURES)


class Question(NamedTuple):
    """What is asked of a subject. `against` is the model it was made from."""

    data: str
    against: Subject | None = None
    num: int | None = None
    seed: int = 0
    metrics: Sequence[str] = ()
    samples: Samples | None = None


def judge(subject: Subject, question: Question, report: Report = silent) -> Quality:
    """Every figure that can be had, or those asked for.

    Text: `num` windows of held-out text, 64 without it. Images: `num` held-out images and as many
    of the model's, 500 without it; or all, where there are fewer.

    Raises:
        UsageError: data of the other kind; `num` below 1 or more than there is.
        NotFoundError: an unknown metric or data set.
        MismatchError: data of another shape than the model's, or numbers that are not finite.
        NotComparableError: `against` a model of another family, tokenizer or latent.
        MissingExtraError, UnsupportedError: a metric asked for by name cannot be had here.
    """
    reads_text = isinstance(subject.loop, Text)
    if sets.is_text(question.data) != reads_text:
        wants = "text:FILES" if reads_text else "digits, idx:DIR or images:DIR"
        kind = "text" if reads_text else "images"
        raise UsageError(
            f"{subject.name} makes {kind}, --data {question.data} is of another kind",
            f"use --data {wants}",
        )
    if question.num is not None and question.num < 1:
        raise UsageError(f"num is {question.num}, wanted 1 or more", "use --num 64")
    tally = Tally(question.metrics, OF_TEXT if reads_text else OF_IMAGES)
    check_alike(subject, question.against)
    look = _text if reads_text else _images
    protocol = look(subject, question, tally, report)
    against = question.against
    return Quality(
        subject.name,
        subject.family,
        subject.precision,
        subject.engine,
        subject.device,
        question.data,
        f"{against.name} ({against.precision})" if against else "",
        question.seed,
        protocol,
        tally.figures,
        tuple(tally.notes),
        tally.skipped(),
    )


def _no_reference() -> Mapping[str, Figure]:
    raise UsageError("there is no model to compare with", "name one: --against BUNDLE")


def _text(subject: Subject, question: Question, tally: Tally, report: Report) -> str:
    _, held_out = sets.split_text(sets.text(question.data))
    report("tokenize held-out text", 0, 1)
    ids, sizes = subject.tokenizer().corpus(held_out, sets.END)
    assert isinstance(subject.loop, Text)
    corpus = text.Corpus(ids, sizes, np.isin(ids, subject.loop.eos[:1]))
    both = [positions(one) for one in (subject, question.against) if one]
    window = text.windows(
        len(ids),
        min([text.LENGTH, *(length for length, _ in both)]),
        question.num,
        fixed=any(fixed for _, fixed in both),
    )
    _read(subject, question, tally, corpus, window, report)
    written = _continue(subject, question, tally, ids, window, report)
    scored = len(window.starts) * window.stride
    used = f"{scored:,} of {len(ids):,} held-out tokens (the last tenth of the text)"
    return f"{window}: {used}{written}"


def _read(
    subject: Subject,
    question: Question,
    tally: Tally,
    corpus: text.Corpus,
    window: text.Windows,
    report: Report,
) -> None:
    against = question.against
    other = logits_of(against) if against and tally.wants(*COMPARED) else None
    tally.add(
        (*READ, *COMPARED) if against else READ,
        lambda: text.figures(logits_of(subject), corpus, window, other, report),
    )
    if not against:
        tally.add(COMPARED, _no_reference)


def _continue(
    subject: Subject,
    question: Question,
    tally: Tally,
    ids: Array,
    window: text.Windows,
    report: Report,
) -> str:
    """BLEU and ROUGE of what is written after the windows' first tokens; says how much of it."""
    against = question.against
    prompts, wanted, new = _prompts(subject, ids, window)

    def by(one: Subject) -> list[str]:
        report(f"{one.name} writes {len(prompts)} texts", 0, 1)
        return write(one, prompts, new)

    mine = cache(lambda: by(subject))
    tally.add(("bleu",), lambda: {"bleu": overlap.bleu(mine(), wanted)})
    tally.add(tuple(overlap.KINDS), lambda: overlap.rouge(mine(), wanted))
    if against:
        other = cache(lambda: by(against))
        tally.add(AGREED[:1], lambda: {AGREED[0]: overlap.bleu(mine(), other())})
        tally.add(AGREED[1:], lambda: {AGREED[1]: overlap.rouge(mine(), other())["rouge_l"]})
    else:
        tally.add(AGREED, _no_reference)
    if not set(WROTE + AGREED) & set(tally.figures):
        return ""
    return f"; {len(prompts)} greedy continuations of {new} tokens after {len(prompts[0])}"


def _prompts(
    subject: Subject, ids: Array, window: text.Windows, most: int = TEXTS
) -> tuple[list[tuple[int, ...]], list[str], int]:
    """The beginnings of up to `most` windows, how the text goes on, and for how many tokens."""
    assert isinstance(subject.loop, Text)
    read = min(PROMPT, max(1, window.length // 2))
    new = min(WRITTEN, window.length - read)
    few = np.linspace(0, len(window.starts) - 1, min(most, len(window.starts))).astype(np.int64)
    rows = ids[window.starts[few][:, None] + np.arange(read + new)]
    wanted = []
    for row in rows[:, read:]:
        ends = np.flatnonzero(np.isin(row, subject.loop.eos))
        wanted.append(subject.tokenizer().decode(row[: ends[0] if len(ends) else new].tolist()))
    return [tuple(row) for row in rows[:, :read].tolist()], wanted, new


def beginnings(
    subject: Subject, held_out: str, num: int
) -> tuple[list[tuple[int, ...]], list[str], int]:
    """`num` pieces of a text to go on from, how it goes on itself, and for how many tokens."""
    ids, _ = subject.tokenizer().corpus(held_out, sets.END)
    length, fixed = positions(subject)
    window = text.windows(len(ids), min(text.LENGTH, length), fixed=fixed)
    return _prompts(subject, ids, window, num)


def _images(subject: Subject, question: Question, tally: Tally, report: Report) -> str:
    real, there = _held_out(subject, question, report)
    num, seed = len(real), question.seed
    against, samples = question.against, question.samples
    if samples:
        seed = samples.about.seed

    def by(one: Subject) -> Array:
        report(f"{one.name} draws {num} images", 0, 1)
        return generate(one, num, seed)

    def on_features() -> Mapping[str, Figure]:
        distances.enough(num)
        # Kernels and distances of all pairs, in float64, a few at a time.
        afford(f"num {num}", 8 * 8 * num**2, "use fewer images: --num 2000")
        extractor = _extractor(report)
        known = features.kept(extractor, real)
        return images.feature_figures(extractor.features(mine()), known, extractor)

    mine = cache(lambda: samples.images[:num] if samples else by(subject))
    tally.add(PIXELS, lambda: {PIXELS[0]: images.sliced_wasserstein(mine(), real)})
    tally.add(
        LIKENESS, (lambda: images.likeness(mine(), by(against))) if against else _no_reference
    )
    tally.add(BOUND, lambda: _bound(subject, real, question.seed))
    tally.add(ON_FEATURES, on_features)
    tally.notes += _notes(tally, mine() if tally.wants(*PIXELS, *ON_FEATURES) else None)
    made = f"{num} images of seed {seed}" + (" from a file of samples" if samples else "")
    return f"{made}; {num} of {there} held-out images"


def _held_out(subject: Subject, question: Question, report: Report) -> tuple[Array, int]:
    """(the held-out images that are taken, how many there are).

    Which ones is the same each time, whatever the seed.
    """
    loop = pictured(subject)
    everything = sets.images(question.data, report)
    spec = next(s for s in subject.graphs[loop.graph].outputs if s.name == loop.image)
    fits = zip(spec.shape[1:], everything.shape[1:], strict=False)
    if len(spec.shape) != 4 or any(w != h for w, h in fits if isinstance(w, int)):
        raise MismatchError(
            f"{subject.name} makes images of shape {list(spec.shape[1:])}, "
            f"--data {question.data} has {list(everything.shape[1:])}",
            "evaluate on images as it was trained on: channels, height, width",
        )
    held = everything[sets.split(len(everything))[1]]
    made = len(question.samples.images) if question.samples else NUMBER
    num = min(made, len(held)) if question.num is None else question.num
    most = min(len(held), made) if question.samples else len(held)
    if not 1 <= num <= most:
        few = f" and {made} samples" if question.samples else ""
        raise UsageError(
            f"num is {num}, there are {len(held)} held-out images{few}", f"ask for 1 to {most}"
        )
    return held[np.sort(np.random.default_rng(0).permutation(len(held))[:num])], len(held)


def _extractor(report: Report) -> features.Extractor:
    try:
        from edgegen.quality import efficientnet
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"features of images need {error.name}, which is not installed here",
            "score elsewhere: edgegen eval BUNDLE --write-samples FILE.npz here, then "
            "edgegen eval BUNDLE --data DATA --samples FILE.npz where 'edgegen[build]' is",
        ) from error
    return efficientnet.extractor(report)


def _bound(subject: Subject, real: Array, seed: int) -> Mapping[str, Figure]:
    likelihood = str(subject.config.get("likelihood", "gaussian"))
    return bound.figures(real, encode(subject), decode(subject), likelihood=likelihood, seed=seed)


def _notes(tally: Tally, made: Array | None) -> list[str]:
    """What a reader of the figures has to keep in mind."""
    notes = []
    if made is not None and len(made) > 1 and not np.ptp(made, axis=0).any():
        notes.append(f"all {len(made)} images of the model are equal")
    fid = next((f for name, f in tally.figures.items() if name.startswith("fid_")), None)
    if fid:
        notes.append(
            f"FID is too large by a bias that {fid.count} images do not make small: compare it "
            "with figures of the same number only; KID has no such bias"
        )
    if "elbo_nats" in tally.figures:
        notes.append("a Gaussian ELBO is at the sigma that fits these images best")
    return notes
