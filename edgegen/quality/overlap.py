"""BLEU and ROUGE of what a model wrote, against what it should have written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgegen import rooms
from edgegen.errors import UsageError
from edgegen.quality import Figure, mean
from edgegen.spec import Array

RESAMPLES = 1000
KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


def bleu(found: Sequence[str], wanted: Sequence[str]) -> Figure:
    """Corpus BLEU by sacrebleu, 0 to 100; its error from resampled texts.

    Raises:
        UsageError: no text, or not one wanted for each found.
        MissingExtraError: sacrebleu is not installed.

    Source: Papineni et al. 2002; Post 2018, arXiv:1804.08771; Koehn 2004 (the bootstrap).
    """
    _check(found, wanted)
    try:
        from sacrebleu.metrics import BLEU
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "bleu") from error
    each = BLEU(effective_order=True)  # or it warns of single sentences; only counts are taken
    rows = [each.sentence_score(f, [w]) for f, w in zip(found, wanted, strict=True)]
    counts = np.array([[*r.counts, *r.totals, r.sys_len, r.ref_len] for r in rows])
    draws = np.random.default_rng(0).integers(0, len(rows), (RESAMPLES, len(rows)))
    spread = float(np.std([_score(BLEU, counts[draw]) for draw in draws]))
    known = spread if len(rows) > 1 else None
    return Figure(_score(BLEU, counts), known, len(rows), "texts", "higher", "of 100")


def _score(kind: Any, counts: Array) -> float:
    """BLEU of the n-gram counts of some texts, (texts, 10)."""
    total = [int(n) for n in counts.sum(0)]
    return float(kind.compute_bleu(total[:4], total[4:8], total[8], total[9]).score)


def rouge(found: Sequence[str], wanted: Sequence[str]) -> dict[str, Figure]:
    """F-measures of ROUGE-1, -2 and -L, the mean over texts, 0 to 1, without stemming.

    Words are runs of a to z and 0 to 9: of a text in another script it sees nothing, and gives 0.

    Raises:
        UsageError: no text, or not one wanted for each found.
        MissingExtraError: rouge-score is not installed.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    _check(found, wanted)
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "rouge") from error
    scorer = RougeScorer(list(KINDS.values()))
    rows = [scorer.score(w, f) for f, w in zip(found, wanted, strict=True)]
    return {
        name: mean(np.array([row[kind].fmeasure for row in rows]), "texts", "higher")
        for name, kind in KINDS.items()
    }


def _check(found: Sequence[str], wanted: Sequence[str]) -> None:
    if not found or len(found) != len(wanted):
        raise UsageError(
            f"{len(found)} texts found, {len(wanted)} wanted", "give one of each, and at least one"
        )
