"""LiteRT: litert-torch's own exporter of transformers' models, its CompiledModel on XNNPACK."""

from __future__ import annotations

import importlib.machinery
import json
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.cpu_options import CpuOptions
from ai_edge_litert.hardware_accelerator import HardwareAccelerator
from ai_edge_litert.options import Options

CONTEXT = 320  # positions of the cache: the file is made for them, and every token reads them all
PREFILLS = (32, 256)  # tokens that one call takes
RECIPES = {"fp32": None, "int8": "dynamic_wi8_afp32", "int4": "int4"}
TOLD = {
    "fp32": "fp32",
    "int8": "int8 a row, embedding and head too, activations int8 a token (dynamic_wi8_afp32)",
    "int4": "int4 in groups of 32, head and embedding int8 a row, activations int8 a token",
}
HIDDEN = -1e30


def build(model: Path, output: Path, precision: str, options: dict[str, str]) -> str:
    export = _exporter()
    output.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        recipe = RECIPES[precision]
        if recipe == "int4":
            recipe = f"{folder}/recipe.json"
            Path(recipe).write_text(json.dumps(_int4()))
        export(
            str(_source(model, Path(folder))),
            folder,
            prefill_lengths=list(PREFILLS),
            cache_length=CONTEXT,
            quantization_recipe=recipe,
            bundle_litert_lm=False,
        )
        # Beside a quantized file it leaves the one that it was made of.
        made = sorted(Path(folder).rglob("*.tflite"), key=lambda file: file.stat().st_size)
        shutil.copyfile(made[0], output / "model.tflite")
    return (
        f"{TOLD[precision]}; XNNPACK, cache fp32 of {CONTEXT} positions, the prompt but for "
        f"its last token in calls of {PREFILLS[0]} or {PREFILLS[1]}"
    )


def _source(model: Path, folder: Path) -> Path:
    """The model with a configuration that names what the exporter asks of every one."""
    copy = shutil.copytree(model, folder / "source", copy_function=os.symlink)
    config = json.loads((model / "config.json").read_text())
    if "num_key_value_heads" not in config:
        config["num_key_value_heads"] = config["n_head"]
        (copy / "config.json").unlink()
        (copy / "config.json").write_text(json.dumps(config))
    return copy


def _exporter() -> Any:
    """litert-torch's export. One model of its many, which is not ours, imports a schema from
    tensorflow, which litert-torch does not depend on; LiteRT brings the same schema."""
    import transformers  # noqa: F401, which looks for a tensorflow when it is imported
    from ai_edge_litert import schema_py_generated

    names = ["tensorflow", "tensorflow.lite", "tensorflow.lite.python"]
    for name in names:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules[names[-1]].schema_py_generated = schema_py_generated  # type: ignore[attr-defined]
    from litert_torch.generative.export_hf.export import export

    for name in names:
        del sys.modules[name]
    return export


def _int4() -> list[dict[str, Any]]:
    """Groups of 32 in the layers, 8 bits a row in what the embedding and the head share."""
    from ai_edge_quantizer import recipe
    from ai_edge_quantizer.qtyping import TFLOperationName as Operation

    return [
        *recipe.dynamic_wi4b32_afp32(operation_name=Operation.FULLY_CONNECTED),
        *recipe.dynamic_wi8c_afp32(operation_name=Operation.FULLY_CONNECTED, regex=".*logits.*"),
        *recipe.dynamic_wi8c_afp32(operation_name=Operation.EMBEDDING_LOOKUP),
    ]


def open_model(path: Path, threads: int, context: int, options: dict[str, str]) -> Any:
    if context > CONTEXT:
        raise ValueError(f"{context} tokens do not fit a cache of {CONTEXT}")
    chosen = Options(
        hardware_accelerators=HardwareAccelerator.CPU, cpu_options=CpuOptions(num_threads=threads)
    )
    return Text(CompiledModel.from_file(str(path / "model.tflite"), options=chosen))


class Text:
    """The cache lives in buffers that each call is given as inputs and as outputs."""

    def __init__(self, model: Any) -> None:
        self._model = model
        inputs = model.get_input_tensor_details("decode")
        self._caches = {
            name: model.create_input_buffer_by_name("decode", name)
            for name in inputs
            if name.startswith("kv_cache")
        }
        self._fed = {
            name: {
                port: model.create_input_buffer_by_name(name, port)
                for port in ("tokens", "input_pos", "mask")
            }
            for name in ("decode", *(f"prefill_{size}" for size in PREFILLS))
        }
        self._out = model.create_output_buffer_by_name("decode", "logits")
        shape = model.get_output_tensor_details("decode")["logits"]["shape"]
        self._vocabulary = int(shape[-1])

    def _call(self, name: str, ids: list[int], start: int) -> None:
        fed = self._fed[name]
        positions = np.arange(start, start + len(ids), dtype=np.int32)
        fed["tokens"].write(np.array([ids], np.int32))
        fed["input_pos"].write(positions)
        seen = np.arange(CONTEXT)[None] <= positions[:, None]
        fed["mask"].write(np.where(seen, 0, HIDDEN).astype(np.float32)[None, None])
        outputs = dict(self._caches)
        if name == "decode":
            outputs["logits"] = self._out
        self._model.run_by_name(name, fed | self._caches, outputs)

    def logits(self, ids: list[int]) -> Any:
        """Of the last of `ids`, those before it as a prompt."""
        done, last = 0, len(ids) - 1
        while done < last:
            fits = [n for n in PREFILLS if n >= last - done] or [PREFILLS[-1]]
            chunk = ids[done : min(done + fits[0], last)]
            # Padding lands behind the prompt, where later tokens overwrite it before it is seen.
            self._call(f"prefill_{fits[0]}", chunk + [0] * (fits[0] - len(chunk)), done)
            done += len(chunk)
        return self._next(ids[-1], last)

    def _next(self, token: int, position: int) -> Any:
        self._call("decode", [token], position)
        return self._out.read(self._vocabulary, np.float32)

    def generate(self, ids: list[int], count: int) -> list[int]:
        found = [int(self.logits(ids).argmax())]
        while len(found) < count:
            found.append(int(self._next(found[-1], len(ids) + len(found) - 1).argmax()))
        return found
