"""Layers that compute with the weights, and where asked the inputs, that integers can hold.

A quantized layer keeps its float weight; reading `layer.weight` gives it as the integers will
have it, so the same net is trained, measured and exported. The description is the `Scheme` of
each layer, by name; the numbers are the `scale`, `zero` and `table` of its quantizers.

    w = (q - zero) * scale        evenly spaced, zero = 0 where the scheme is symmetric
    w = table[q] * scale          codebook

Rows are output channels and columns all that a row is computed from: (out, in * kernel).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgegen.errors import FormatError, MismatchError, NotFoundError, UnsupportedError, UsageError
from edgegen.quantizers import InputQuantizer, WeightQuantizer
from edgegen.rooms import nearest
from edgegen.spec import Scheme

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
KINDS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED, nn.Embedding)
INPUT = "input_quantizer"
# A parametrized weight under the name it has without; what is stored beside it, likewise.
READABLE = {"parametrizations.weight.original": "weight"}
QUANTIZER = "parametrizations.weight.0.", "weight_quantizer."


def quantizable(net: nn.Module) -> dict[str, nn.Module]:
    """The layers of `net` that `attach` takes, by name.

    Those whose weight is computed from something else already (spectral norm) are left out.
    """
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, KINDS)
        and (not parametrize.is_parametrized(module, "weight") or quantizer_of(module) is not None)
    }


def count(*modules: nn.Module) -> int:
    """The parameters of all of them together, each once, without scales and zero points."""
    steps = {
        id(parameter)
        for module in modules
        for step in module.modules()
        if isinstance(step, WeightQuantizer | InputQuantizer)
        for parameter in step.parameters()
    }
    found = {id(p): p.numel() for module in modules for p in module.parameters()}
    return sum(size for key, size in found.items() if key not in steps)


def is_quantized(net: nn.Module) -> bool:
    """Does any layer of it have a quantizer?"""
    return any(quantizer_of(module) is not None for module in net.modules())


def schemes(net: nn.Module) -> dict[str, Scheme]:
    """What is attached, by name: `ModelSpec.layers`."""
    found = {name: quantizer_of(module) for name, module in net.named_modules()}
    return {name: each.scheme for name, each in found.items() if each is not None}


def quantizer_of(module: nn.Module) -> WeightQuantizer | None:
    """The quantizer of a layer's weight."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    steps = module.parametrizations["weight"]
    return next((step for step in steps if isinstance(step, WeightQuantizer)), None)


def input_quantizer_of(module: nn.Module) -> InputQuantizer | None:
    """The quantizer of a layer's input."""
    found = getattr(module, INPUT, None)
    return found if isinstance(found, InputQuantizer) else None


def attach(net: nn.Module, layers: Mapping[str, Scheme]) -> None:
    """Give the named layers quantizers, in place; they change nothing until they are set.

    Raises:
        NotFoundError: no such layer.
        UsageError: a scheme that cannot be; a layer that has a quantizer.
        UnsupportedError: a layer whose weight or input cannot be quantized.
    """
    have = quantizable(net)
    for name, scheme in layers.items():
        if name not in have:
            raise NotFoundError(f"no layer {name!r} that can be quantized", nearest(name, have))
        check_scheme(name, have[name], scheme)
        _attach_one(have[name], scheme)


def check_scheme(name: str, module: nn.Module, scheme: Scheme) -> None:
    """Raise unless `module` can have `scheme`, and has none yet."""
    if quantizer_of(module) is not None:
        raise UsageError(
            f"{name}: is quantized already", "start from the checkpoint before it was quantized"
        )
    if not 2 <= scheme.bits <= 8:
        raise UsageError(f"{name}: {scheme.bits} bits", "weights take 2 to 8 bits")
    if scheme.group_size < -1:
        raise UsageError(
            f"{name}: group size {scheme.group_size}",
            "a positive number, 0 for one scale a channel, -1 for one a tensor",
        )
    if scheme.input_bits not in (0, 8):
        raise UsageError(f"{name}: inputs of {scheme.input_bits} bits", "inputs take 8 bits, or 0")
    called = not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    if scheme.input_bits and (isinstance(module, nn.Embedding) or not called):
        what = "token ids" if isinstance(module, nn.Embedding) else "inside torch's own attention"
        raise UnsupportedError(
            f"{name}: its input cannot be quantized: {what}", "leave its input_bits at 0"
        )


def _attach_one(module: nn.Module, scheme: Scheme) -> None:
    axis = 1 if isinstance(module, TRANSPOSED) else 0
    step = WeightQuantizer(scheme, tuple(module.weight.shape), axis).to(module.weight.device)
    step.train(module.training)
    parametrize.register_parametrization(module, "weight", step, unsafe=True)
    if scheme.input_bits:
        module.add_module(INPUT, InputQuantizer().to(step.scale.device).train(module.training))
        module.register_forward_pre_hook(_quantize_input)
    module.register_state_dict_post_hook(_to_readable)
    module.register_load_state_dict_pre_hook(_from_readable)


def _quantize_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    found = input_quantizer_of(module)
    return args if found is None else (found(args[0]), *args[1:])


def _to_readable(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """`fc.weight` and `fc.weight_quantizer.scale`, not torch's names, in a state dict."""
    if quantizer_of(module) is None:
        return
    for name in [n for n in state if n.startswith(f"{prefix}parametrizations.weight.")]:
        state[prefix + _readable(name.removeprefix(prefix))] = state.pop(name)


def _from_readable(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    if quantizer_of(module) is None:
        return
    original = f"{prefix}parametrizations.weight.original"
    if f"{prefix}weight" in state:
        state[original] = state.pop(f"{prefix}weight")
    for name in [n for n in state if n.startswith(prefix + QUANTIZER[1])]:
        state[prefix + QUANTIZER[0] + name.removeprefix(prefix + QUANTIZER[1])] = state.pop(name)


def _readable(name: str) -> str:
    return READABLE.get(name, name.replace(*QUANTIZER))


def set_weight(
    module: nn.Module,
    scale: Tensor,
    zero: Tensor | None = None,
    table: Tensor | None = None,
    weight: Tensor | None = None,
) -> None:
    """Fill the quantizer of a layer's weight; with `weight` the float weight as well.

    `scale` and `zero` are (rows, groups), or any shape of as many values; `table` is (2^bits,),
    ascending. `zero` need not be whole.

    Raises:
        MismatchError: another number of values, a scale that is not above 0 or not finite, a zero
            or table where the scheme has none, or none where it has one.
    """
    step = quantizer_of(module)
    if step is None:
        raise MismatchError("set_weight: this layer has no quantizer", "attach a scheme first")
    given = {"scale": scale, "zero": zero, "table": table}
    with torch.no_grad():
        for name, value in given.items():
            _fill(getattr(step, name, None), value, name)
        if weight is not None:
            module.weight = weight.detach().to(module.weight.dtype)
    _check_numbers("set_weight", step)


def _fill(mine: Tensor | None, value: Tensor | None, name: str) -> None:
    want = "none" if mine is None else list(mine.shape)
    have = "none" if value is None else list(value.shape)
    if (mine is None) != (value is None) or (
        mine is not None and value is not None and mine.numel() != value.numel()
    ):
        raise MismatchError(f"set_weight: {name}: wanted {want}, found {have}")
    if mine is not None and value is not None:
        mine.copy_(value.reshape(mine.shape))


def set_input(module: nn.Module, low: float, high: float) -> None:
    """Fill the quantizer of a layer's input for values from `low` to `high`; 0 is always among
    them, and exact.

    Before a transposed convolution values below 0 (of SiLU, of a linear layer) make the range
    symmetric: behind any zero point but the middle OpenVINO computes it in fp32.

    Raises:
        MismatchError: bounds that are not finite, or no quantizer there.
    """
    step = input_quantizer_of(module)
    if step is None:
        raise MismatchError("set_input: this layer's input has no quantizer", "set input_bits=8")
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if low < 0 and isinstance(module, TRANSPOSED):
        high = max(-low * 127 / 128, high)
        low = -high * 128 / 127
    span = max(high - low, 1e-8)
    if not span < float("inf"):
        raise MismatchError(f"set_input: bounds {low} to {high}", "calibrate on finite inputs")
    with torch.no_grad():
        step.scale.fill_(span / 255)
        step.zero.fill_(round(-low / span * 255))


def check(net: nn.Module, place: str = "model") -> None:
    """Raise `FormatError` unless every quantizer of `net` holds numbers to compute with."""
    for name, module in net.named_modules():
        steps = quantizer_of(module), input_quantizer_of(module)
        for what, step in zip(("weight", "input"), steps, strict=True):
            if step is not None:
                try:
                    _check_numbers(f"{name}.{what}_quantizer", step)
                except MismatchError as error:
                    raise FormatError(
                        f"{place}: {error}", "restore the file, or quantize again"
                    ) from error


def _check_numbers(name: str, step: nn.Module) -> None:
    scale = step.scale.detach()
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise MismatchError(f"{name}: every scale must be finite and above 0")
    for other in ("zero", "table"):
        value = getattr(step, other, None)
        if value is not None and not bool(torch.isfinite(value).all()):
            raise MismatchError(f"{name}: {other} is not finite")
    table = getattr(step, "table", None)
    if table is not None and not bool((table[1:] >= table[:-1]).all()):
        raise MismatchError(f"{name}: the table is not in ascending order")


def make_plain(module: nn.Module) -> None:
    """Take the quantizer off a layer's weight, which stays as it made it."""
    with torch.no_grad():
        original = module.parametrizations["weight"].original
        original.copy_(module.weight)  # in place: another layer may share it
    # torch's remove_parametrizations takes `weight` off the class, which copies of a net share.
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    module.register_parameter("weight", original)
    _drop(module._state_dict_hooks, _to_readable)
    _drop(module._load_state_dict_pre_hooks, _from_readable)


def drop_input(module: nn.Module) -> None:
    """Take the quantizer off a layer's input."""
    delattr(module, INPUT)
    _drop(module._forward_pre_hooks, _quantize_input)


def _drop(hooks: dict[int, Any], hook: Any) -> None:
    for key, found in list(hooks.items()):
        if getattr(found, "hook", found) is hook:
            del hooks[key]
