"""What a student is taught in each step: the teacher's answers to a batch, and the loss on them.

All of a step follows from the seed and the number of its batch.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgegen import checkpoint, rooms
from edgegen.compress._divergence import (
    Top,
    kl,
    kl_of_top,
    relation_error,
    relative_error,
    top_of,
)
from edgegen.compress._probe import TEXT, run_text
from edgegen.compress._questions import Answers, Questions
from edgegen.compress._teacher_cache import TeacherCache, digest
from edgegen.compress._watch import activations, attention_points, hidden_points, watching
from edgegen.compress._weights import Parts, Weights, check_same_ends, check_weights
from edgegen.compress._work import Setting, Work
from edgegen.errors import UsageError


class Lesson:
    """A teacher, a student, and what they are asked. `extras` are trained with the student."""

    def __init__(
        self,
        teacher: Work,
        student: Work,
        weights: Weights,
        setting: Setting,
        *,
        batch: int,
        rounds: int = 0,
        cache: Path | None = None,
    ) -> None:
        """`rounds` batches come again and again, or with 0 none does; `cache` is a folder."""
        self.teacher, self.student, self.weights = teacher, student, weights
        self.text, self.rounds = teacher.spec.family == TEXT, rounds
        check_weights(weights, teacher.spec.family, student.net, setting.material is not None)
        self.theirs = checkpoint.graphs(teacher.spec, teacher.net)
        self.mine = checkpoint.graphs(student.spec, student.net)
        check_same_ends(self.theirs, self.mine)
        vocabulary = teacher.spec.config.get("vocab_size", 0)
        if weights.top_k > vocabulary > 0:
            raise UsageError(f"top_k is {weights.top_k}, the vocabulary has {vocabulary}")
        self.questions = Questions(teacher, setting, batch)
        sides = (teacher.net, self.theirs), (student.net, self.mine)
        self._hidden = [hidden_points(net, parts, weights) for net, parts in sides]
        self._heads = [attention_points(net, weights) for net, _ in sides]
        self._judge: Any = None
        if weights.perceptual:
            judge: Any = teacher.net
            self._judge = copy.deepcopy(judge.discriminator).requires_grad_(False)
        self._cache = self._open_cache(cache) if cache else None
        self.extras = self._projections()

    def loss(self, step: int) -> dict[str, Tensor]:
        """The weighted sum, and each part of it."""
        index = step % self.rounds if self.rounds else step
        torch.manual_seed(self.questions.seed_of(index))
        w = self.weights
        compared = bool(w.output or w.hidden or w.attention or w.perceptual)
        wanted = self._answers(index) if compared else {}
        needed = compared or self.text  # a family's own loss runs the net by itself
        found = self._run(self.student.net, self.mine, 1, index, wanted) if needed else {}
        parts = self._compare(wanted, found)
        if self.weights.data:
            parts["data"] = self.weights.data * self._data_loss(index, found)
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def _answers(self, index: int) -> Answers:
        def ask() -> Answers:
            with torch.no_grad():
                found = self._run(self.teacher.net, self.theirs, 0, index, None)
            return self._cut(found)

        return self._cache.get(index, ask) if self._cache else ask()

    def _run(
        self, net: nn.Module, parts: Parts, side: int, index: int, told: Answers | None
    ) -> Answers:
        """Outputs of every graph as `GRAPH:NAME`, watched layers as `hidden N` and `heads N`;
        `side` 0 is the teacher. Of what it `told`, a decoder's latents come.
        """
        answers: Answers = {}
        with watching(net, self._hidden[side]) as seen, watching(net, self._heads[side]) as heads:
            for name, (module, graph) in parts.items():
                if self.text:
                    outputs: Any = run_text(net, self.questions.rows(index)[:, :-1].long())
                else:
                    feed = self.questions.feed(name, graph, index, told or answers)
                    outputs = module(*(feed[spec.name] for spec in graph.inputs))
                outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
                names = [f"{name}:{spec.name}" for spec in graph.outputs]
                answers |= dict(zip(names, outputs, strict=False))
        answers |= {f"hidden {n}": value for n, value in enumerate(seen)}
        return answers | {f"heads {n}": value for n, value in enumerate(heads)}

    def _open_cache(self, folder: Path) -> TeacherCache:
        if not self.rounds:
            raise UsageError(
                "cache: every step has another batch, so no answer is asked for twice",
                "say how many batches come again and again: batches = 200",
            )
        asked, material = self.questions, self.questions.material
        key = {
            "teacher": digest(self.teacher.net.state_dict()),
            "spec": self.teacher.spec,
            "data": [material.sha256(), material.window] if material else [],
            "weights": self.weights,
            "points": self._hidden[0],
            "plan": [asked.batch, self.rounds, asked.seed],
        }
        return TeacherCache(folder, key, self.rounds)

    def _cut(self, answers: Answers) -> Answers:
        """With `top_k`, text's logits as their k largest."""
        k, kept = self.weights.top_k, dict(answers)
        if k and self.text:
            top = top_of(kept.pop("model:logits"), k, self.weights.temperature)
            kept |= {f"model:logits.{name}": value for name, value in top._asdict().items()}
        return kept

    def _projections(self) -> nn.ModuleDict:
        """What brings a student's layer to the width of the teacher's; left behind at the end."""
        extras = nn.ModuleDict()
        if not self.weights.hidden:
            return extras
        wanted = self._answers(0)
        with torch.no_grad():
            found = self._run(self.student.net, self.mine, 1, 0, wanted)
        torch.manual_seed(self.questions.seed)
        for theirs, mine in self._pairs():
            a, b = wanted[f"hidden {theirs}"], found[f"hidden {mine}"]
            if a.shape != b.shape:
                extras[str(mine)] = _projection(a, b, self._hidden[0][theirs])
        return extras

    def _pairs(self) -> list[tuple[int, int]]:
        """Which watched layer of the teacher each of the student's is compared with."""
        theirs, mine = map(len, self._hidden)
        return [(math.ceil((n + 1) * theirs / mine) - 1, n) for n in range(mine)]

    def _compare(self, wanted: Answers, found: Answers) -> dict[str, Tensor]:
        """Every part that counts, times its weight."""
        parts = {
            "output": lambda: self._outputs(wanted, found),
            "hidden": lambda: self._layers(wanted, found),
            "attention": lambda: self._attention(wanted, found),
            "perceptual": lambda: self._perceptual(wanted, found),
        }
        counted = ((name, getattr(self.weights, name), part) for name, part in parts.items())
        return {name: weight * part() for name, weight, part in counted if weight}

    def _outputs(self, wanted: Answers, found: Answers) -> Tensor:
        """Of all graphs; a text's cache is not among the answers."""
        outputs = [name for name in found if ":" in name]
        return torch.stack(
            [self._output_error(name, wanted, found[name]) for name in outputs]
        ).sum()

    def _output_error(self, name: str, wanted: Answers, mine: Tensor) -> Tensor:
        heat = self.weights.temperature
        if not self.text:
            return relative_error(wanted[name], mine)
        if not self.weights.top_k:
            return kl(wanted[name], mine, heat)
        top = Top(*(wanted[f"{name}.{field}"] for field in Top._fields))
        return kl_of_top(top, mine, heat)

    def _layers(self, wanted: Answers, found: Answers) -> Tensor:
        errors = []
        for theirs, mine in self._pairs():
            value = found[f"hidden {mine}"]
            if str(mine) in self.extras:
                value = _channels_last(self.extras[str(mine)](_channels_last(value)))
            errors.append(relative_error(wanted[f"hidden {theirs}"], value))
        return torch.stack(errors).mean()

    def _attention(self, wanted: Answers, found: Answers) -> Tensor:
        most = int(self.teacher.spec.config["num_attention_heads"])
        errors = []
        for name in (f"heads {n}" for n in range(3)):  # queries, keys, values
            a, b = wanted[name], found[name]
            errors.append(relation_error(a, b, math.gcd(most, a.shape[-1], b.shape[-1])))
        return torch.stack(errors).mean()

    def _perceptual(self, wanted: Answers, found: Answers) -> Tensor:
        (image,) = (name for name in found if ":" in name)
        points = activations(self._judge)
        with watching(self._judge, points) as theirs, torch.no_grad():
            self._judge(wanted[image])
        with watching(self._judge, points) as mine:
            self._judge(found[image])
        errors = [relative_error(a, b) for a, b in zip(theirs, mine, strict=True)]
        return torch.stack(errors).mean()

    def _data_loss(self, index: int, found: Answers) -> Tensor:
        rows, net = self.questions.rows(index), self.student.net
        if self.text:
            targets = rows[:, 1:].flatten().long()
            return functional.cross_entropy(found["model:logits"].flatten(0, 1), targets)
        family = rooms.load("edgegen.models", self.teacher.spec.family)
        noise = torch.Generator().manual_seed(self.questions.seed_of(index))
        if hasattr(net, "discriminator"):
            return _both_players(family, net, rows, noise)
        losses: dict[str, Tensor] = family.loss(net, rows, "net", noise)
        return next(iter(losses.values()))


def _both_players(family: Any, net: nn.Module, rows: Tensor, noise: torch.Generator) -> Tensor:
    """The losses of a GAN's players as one: neither's reaches the other's weights."""
    judge: Any = net.discriminator
    judge.requires_grad_(False)
    faking = next(iter(family.loss(net, rows, "generator", noise).values()))
    judge.requires_grad_(True)
    judging = next(iter(family.loss(net, rows, "discriminator", noise).values()))
    return faking + judging


def _channels_last(x: Tensor) -> Tensor:
    """Images (b, c, h, w) <-> (b, w, h, c); of others the channels are last already."""
    return x.transpose(1, -1) if x.dim() > 3 else x


def _projection(theirs: Tensor, mine: Tensor, where: str) -> nn.Module:
    a, b = _channels_last(theirs).shape, _channels_last(mine).shape
    if a[:-1] != b[:-1]:
        raise UsageError(
            f"hidden: at {where} the teacher has {list(theirs.shape)}, the student "
            f"{list(mine.shape)}",
            "name layers of equal resolution in `points`, or set hidden = 0",
        )
    return nn.Linear(b[-1], a[-1], bias=False)
