"""Any `nn.Module`, as `path/to/file.py:callable`: a function or class that builds it, or itself.

Its inputs are what `--input` says, checked against the signature of its `forward`; its outputs
are found by running it.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from msgspec import Struct
from torch import nn

from edgegen.bundle import OneShot
from edgegen.errors import (
    MismatchError,
    MissingExtraError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from edgegen.rooms import nearest
from edgegen.sources import Model, Part
from edgegen.sources._inputs import parse_inputs
from edgegen.sources._probe import Plain, image_of, probe
from edgegen.spec import Array, GraphSpec, TensorSpec

Parameter = inspect.Parameter


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a module comes from, `/FOLDER/FILE.py:CALLABLE`, and what goes in and comes out."""

    source: str
    inputs: tuple[str, ...]
    pixels: tuple[float, float] | None = None


def read(
    source: str, inputs: Sequence[str] = (), pixels: tuple[float, float] | None = None
) -> Model:
    """The module `source` names, in eval mode, as one graph that is run once.

    Raises:
        NotFoundError: no such file or name in it.
        MissingExtraError: the file imports what is not installed.
        UnsupportedError: the file or the function raises, or the outputs are no tensors.
        MismatchError: it gives something else than a module.
        UsageError: `inputs` are missing, badly written, or not what `forward` takes.
    """
    path, name = _split(source)
    module = build(path, name, source).eval()
    return model_of(module, Config(source, tuple(inputs), pixels))


def _split(source: str) -> tuple[Path, str]:
    file, _, name = source.rpartition(":") if ".py:" in source else (source, "", "")
    return Path(file), name


def rebuild(config: Config) -> nn.Module:
    """The module a checkpoint was made from, in eval mode; its weights are still to be filled in.

    Raises:
        NotFoundError: the file is not there any more; otherwise as `read`.
    """
    path, name = _split(config.source)
    if not path.is_file():
        raise NotFoundError(
            f"{path}: no such file, and this checkpoint is built by it",
            "put the file back where it was; a checkpoint of a module holds weights, not code",
        )
    return build(path, name, config.source).eval()


def absolute(source: str) -> str:
    """`FILE.py:NAME` with the whole path, so that it is found from any folder."""
    path, name = _split(source)
    return f"{path.resolve()}:{name}" if name else str(path.resolve())


def graph_of(module: nn.Module, config: Config) -> tuple[Plain, GraphSpec, dict[str, Array]]:
    """The module called by the names of its inputs, its spec, and what a run of it put out."""
    specs, limits = parse_inputs(config.inputs)
    _check_signature(module, specs, config.source)
    plain = Plain(module, tuple(spec.name for spec in specs), _varargs(module)).eval()
    return plain, *probe(plain, specs, limits, config.source)


def model_of(
    module: nn.Module, config: Config, history: tuple[dict[str, Any], ...] | None = None
) -> Model:
    """A module as a model of one graph; without `history` it says where the module came from."""
    source, pixels = config.source, config.pixels
    path, name = _split(source)
    plain, graph, found = graph_of(module, config)
    image, span, why = image_of(graph, found, pixels)
    if pixels and not image:
        raise UsageError(f"{source}: --pixels, but no one output is an image", "leave it out")
    entry: dict[str, Any] = {"kind": "source", "format": "module", "source": f"{path.name}:{name}"}
    if image:
        entry |= {"image": image, "pixels": list(span), "why": why}
    settings = {"source": f"{path.name}:{name}", "inputs": list(config.inputs)}
    loop = OneShot("model", image=image, pixels=span)
    count = sum(parameter.numel() for parameter in module.parameters())
    parts = {"model": Part(plain, graph)}
    past = (entry,) if history is None else history
    return Model(f"{path.stem}-{name}", "module", settings, loop, parts, {}, past, count)


def build(path: Path, name: str, source: str) -> nn.Module:
    """Import the file and take or call what is named there."""
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file", "a module is written FILE.py:CALLABLE")
    code = _import(path)
    mine = [n for n, o in vars(code).items() if _is_candidate(o, code.__name__)]
    if not name:
        raise UsageError(f"{source}: which callable in it?", f"give {path}:NAME; {_have(mine)}")
    if not hasattr(code, name):
        raise NotFoundError(f"{path}: no {name!r} in this file", nearest(name, mine))
    found = getattr(code, name)
    made = found if isinstance(found, nn.Module) else _call(found, path, name)
    if not isinstance(made, nn.Module):
        raise MismatchError(
            f"{source}: wanted a torch.nn.Module, found {type(made).__name__}",
            f"let {name} return the module",
        )
    return made


def _have(names: list[str]) -> str:
    return f"have: {', '.join(names) or 'none'}"


def _is_candidate(found: object, file: str) -> bool:
    """A module, or a function or class that this very file defines."""
    if isinstance(found, nn.Module):
        return True
    return callable(found) and getattr(found, "__module__", "") == file


def _import(path: Path) -> ModuleType:
    """Run the file, which may import its neighbours."""
    spec = importlib.util.spec_from_file_location(f"edgegen_source_{path.stem}", path.resolve())
    if spec is None or spec.loader is None:
        raise NotFoundError(f"{path}: not a Python file", "a module is written FILE.py:CALLABLE")
    code = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = code  # dataclasses and pickling look a class's module up
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(code)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{path} imports {error.name}, which is not installed", f"run: pip install {error.name}"
        ) from error
    except Exception as error:  # whatever the user's file raises
        raise _raised(error, path, "importing it") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return code


def _call(found: Any, path: Path, name: str) -> Any:
    if not callable(found):
        return found
    parameters = inspect.signature(found).parameters.values()
    needed = [p.name for p in parameters if _is_needed(p)]
    if needed:
        raise UsageError(
            f"{path}:{name} needs arguments: {', '.join(needed)}",
            f"write a function without any in {path.name} that calls it, and give that one",
        )
    try:
        return found()
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{path}:{name} imports {error.name}, which is not installed",
            f"run: pip install {error.name}",
        ) from error
    except Exception as error:  # whatever the user's function raises
        raise _raised(error, path, f"{name}()") from error


def _raised(error: Exception, path: Path, what: str) -> UnsupportedError:
    """Names the line of the user's file: the rest of the traceback is ours or torch's."""
    if isinstance(error, SyntaxError):
        line = error.lineno
    else:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename) == path.resolve()]
        line = lines[-1] if lines else None
    place = f"{path}:{line}" if line else str(path)
    return UnsupportedError(
        f"{place}: {what} raised {type(error).__name__}: {error}", f"mend {path.name}"
    )


def _is_needed(parameter: Parameter) -> bool:
    plain = parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return plain and parameter.default is Parameter.empty


def _varargs(module: nn.Module) -> bool:
    """Must the inputs be given by place? So they must for *args and names before a slash."""
    kinds = {p.kind for p in inspect.signature(module.forward).parameters.values()}
    return bool(kinds & {Parameter.VAR_POSITIONAL, Parameter.POSITIONAL_ONLY})


def _check_signature(module: nn.Module, specs: tuple[TensorSpec, ...], source: str) -> None:
    """Every name is a parameter of `forward`, and every parameter without a default is there."""
    parameters = inspect.signature(module.forward).parameters
    kinds = {p.kind for p in parameters.values()}
    takes_any = bool(kinds & {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD})
    needed = [name for name, p in parameters.items() if _is_needed(p)] or list(parameters)[:1]
    given = {spec.name for spec in specs}
    if not given or not given.issuperset(n for n in needed if _is_needed(parameters[n])):
        lost = [name for name in needed if name not in given]
        raise UsageError(
            f"{source}: forward takes {', '.join(parameters)}; no --input for {', '.join(lost)}",
            f"add, with your shapes: {' '.join(_template(module, name) for name in lost)}",
        )
    unknown = sorted(given - parameters.keys())
    if unknown and not takes_any:
        raise UsageError(
            f"{source}: forward has no parameter {', '.join(unknown)}",
            nearest(unknown[0], parameters),
        )


def _template(module: nn.Module, name: str) -> str:
    """An `--input` to start from: what the first layer that says so would take."""
    for layer in module.modules():
        if isinstance(layer, nn.Embedding):
            return f"--input '{name}:int64[batch,seq<=512]@0..{layer.num_embeddings - 1}'"
        if isinstance(layer, nn.Linear):
            return f"--input '{name}:float32[batch,{layer.in_features}]'"
        if isinstance(layer, nn.Conv2d):
            return f"--input '{name}:float32[batch,{layer.in_channels},64,64]'"
        if isinstance(layer, nn.ConvTranspose2d):
            return f"--input '{name}:float32[batch,{layer.in_channels},1,1]'"
    return f"--input '{name}:float32[batch,3,64,64]'"
