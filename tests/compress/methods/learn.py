"""A method for tests: some steps of training, which can be killed and made to fail."""

import copy
import os
import signal

import torch
from msgspec import Struct

from edgegen import batches, rooms
from edgegen.compress._fit import Fit, fit


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """`kill` ends the process after so many losses; `spoil` makes the loss infinite from there."""

    steps: int = 12
    kill: int = 0
    spoil: int = 0


def apply(work, options, setting):
    net = copy.deepcopy(work.net)
    family = rooms.load("edgegen.models", work.spec.family)

    def loss(step):
        if step == options.kill and os.environ.get("KILL_ME"):
            os.kill(os.getpid(), signal.SIGKILL)
        batch = torch.from_numpy(batches.take(setting.material, 2, step, setting.seed))
        found = family.loss(net, batch, "net", torch.Generator().manual_seed(step))
        if options.spoil and step >= options.spoil:
            found["loss"] = found["loss"] * float("inf")
        return found

    fit(net, list(net.parameters()), loss, Fit(steps=options.steps, batch=2, every=4),
        folder=setting.folder)  # fmt: skip
    return work._replace(net=net.eval(), notes={"steps": options.steps})
