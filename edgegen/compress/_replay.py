"""Runs a net again and again without computing the blocks that come before the one of interest.

The layers of a decoder are a `ModuleList` whose modules run one after the other: what the earlier
ones answered is kept, and handed out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgegen.compress._probe import Probe

See = Callable[[str, Tensor, Any], None]  # name of a layer, its input, its output


class _Enough(Exception):  # noqa: N818  # no error: the rest of the net need not run
    pass


class Replay:
    """A net, the batches it is run on, and the answers of the blocks that are `done`."""

    def __init__(self, net: nn.Module, probe: Probe) -> None:
        self.net, self.probe = net, probe
        self.order = _order(net, probe)  # all modules in the order of their (first) call
        lists = [n for n, m in net.named_modules() if isinstance(m, nn.ModuleList)]
        inside = {f"{one}.{child}" for one in lists for child, _ in _child(net, one)}
        outer = [b for b in inside if not any(b.startswith(f"{other}.") for other in inside)]
        self.blocks = [name for name in self.order if name in outer and self.order[name] == 1]
        self._answers: dict[str, list[Any]] = {}

    def block_of(self, name: str) -> str:
        """The block a layer is in; empty outside of all."""
        return next((b for b in self.blocks if name.startswith(f"{b}.")), "")

    @torch.no_grad()
    def watch(self, names: Sequence[str], see: See) -> None:
        """Call `see` for each of the layers at each batch; run no more of the net than that."""
        last = self._last_block(names)
        for index, batch in enumerate(self.probe.batches):
            with self._replaying(index), _hooks(self.net, names, see):
                self._run(batch, last)

    def _run(self, batch: Any, last: str) -> None:
        def stop(*_: Any) -> None:
            raise _Enough

        handle = self.net.get_submodule(last).register_forward_hook(stop) if last else None
        try:
            self.probe.run(self.net, batch)
        except _Enough:
            pass
        finally:
            if handle is not None:
                handle.remove()

    def _last_block(self, names: Sequence[str]) -> str:
        """The block behind which nothing is of interest; empty where all must run."""
        found = [self.block_of(name) for name in names]
        return "" if "" in found else max(found, key=self.blocks.index)

    @torch.no_grad()
    def finish(self, block: str) -> None:
        """Keep what `block` answers now: it is not computed any more."""
        answers: list[Any] = []
        for index, batch in enumerate(self.probe.batches):
            handle = self.net.get_submodule(block).register_forward_hook(
                lambda _, __, out: answers.append(out)
            )
            try:
                with self._replaying(index):
                    self._run(batch, block)
            finally:
                handle.remove()
        self._answers[block] = answers

    @contextmanager
    def _replaying(self, index: int) -> Iterator[None]:
        patched = []
        try:
            for block, answers in self._answers.items():
                module = self.net.get_submodule(block)
                module.forward = lambda *_, answer=answers[index], **__: answer
                patched.append(module)
            yield
        finally:
            for module in patched:
                del module.forward

    def measure(self, loss: Callable[[nn.Module], float]) -> float:
        """A loss that runs the net on the probe's batches in turn, with the answers kept."""
        count = -1
        contexts: list[Any] = []

        def begin(*_: Any) -> None:
            nonlocal count
            end()
            count += 1
            context = self._replaying(count)
            context.__enter__()
            contexts.append(context)

        def end(*_: Any) -> None:
            while contexts:
                contexts.pop().__exit__(None, None, None)

        handle = self.net.register_forward_pre_hook(begin) if self._answers else None
        try:
            return loss(self.net)
        finally:
            end()
            if handle is not None:
                handle.remove()


def _child(net: nn.Module, name: str) -> Iterable[tuple[str, nn.Module]]:
    return net.get_submodule(name).named_children()


@torch.no_grad()
def _order(net: nn.Module, probe: Probe) -> dict[str, int]:
    """Every module that runs, in the order of its first call, and how often it is called."""
    calls: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] = calls.get(name, 0) + 1

        return hook

    handles = [m.register_forward_pre_hook(count(n)) for n, m in net.named_modules() if n]
    try:
        probe.run(net, probe.batches[0])
    finally:
        for handle in handles:
            handle.remove()
    return calls


@contextmanager
def _hooks(net: nn.Module, names: Iterable[str], see: See) -> Iterator[None]:
    def hook(name: str) -> Callable[..., None]:
        return lambda _, args, output: see(name, args[0], output)

    handles = [net.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def stages(replay: Replay, names: Sequence[str]) -> list[list[str]]:
    """The layers in the order they run; those that read the same tensor one after the other are
    one stage.
    """
    groups: list[list[str]] = []
    seen: set[str] = set()
    kept: list[Tensor] = []  # alive, so that no other tensor takes its address

    def see(name: str, given: Tensor, _: Any) -> None:
        if name in seen:
            return
        seen.add(name)
        if kept and kept[-1] is given:
            groups[-1].append(name)
        else:
            groups.append([name])
        kept.append(given)

    with torch.no_grad(), _hooks(replay.net, names, see):
        replay.probe.run(replay.net, replay.probe.batches[0])
    return groups
