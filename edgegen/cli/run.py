"""`edgegen run`."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgegen.cli._terminal import note, print_json, print_table
from edgegen.errors import UsageError

if TYPE_CHECKING:
    from edgegen.runtimes import Deployment
    from edgegen.spec import Options

# Which options make sense for what a bundle makes; the others are refused by name.
ANY = {"bundle", "runtime", "device", "threads", "allow_fallback", "provider", "seed", "json"}
ANY |= {"adapter"}
TEXT = {"prompt", "max_new_tokens", "greedy", "temperature", "top_k", "top_p", "min_p"}
TEXT |= {"repetition_penalty", "stop", "chat", "batch"}
IMAGES = {"num", "output", "interpolate", "reconstruct"}
TENSORS = {"input", "output", "batch", "size"}
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def run(
    bundle: Path = typer.Argument(..., help="The bundle's folder."),
    prompt: list[str] = typer.Option([], help="Text to go on from; '-' reads stdin. Repeatable."),
    max_new_tokens: int = typer.Option(None, help="Tokens to generate at most. [default: 64]"),
    greedy: bool = typer.Option(False, help="Always the most likely token (the default)."),
    temperature: float = typer.Option(None, help="Draw; above 1 wilder, below 1 tamer."),
    top_k: int = typer.Option(None, help="Draw from the K most likely tokens."),
    top_p: float = typer.Option(None, help="Draw from the tokens that make up this probability."),
    min_p: float = typer.Option(None, help="Drop tokens below this share of the best one's."),
    repetition_penalty: float = typer.Option(None, help="Above 1: avoid what was said before."),
    stop: list[str] = typer.Option([], help="End before this text. Repeatable."),
    chat: bool = typer.Option(False, help="The prompt is a message in the chat template."),
    batch: int = typer.Option(None, help="Texts for each prompt; samples of a drawn input."),
    num: int = typer.Option(None, help="Images to make. [default: 16]"),
    interpolate: bool = typer.Option(False, help="Images between two latents."),
    reconstruct: list[Path] = typer.Option([], help="An image through the encoder. Repeatable."),
    input: list[str] = typer.Option([], help="NAME=FILE.npy; what is not given is drawn."),
    size: list[str] = typer.Option([], help="NAME=SIZE of a free dimension."),
    output: Path = typer.Option(None, "-o", "--output", help="grid.png, or out.npz."),
    seed: int = typer.Option(0, help="The same seed gives the same latents on every engine."),
    runtime: str = typer.Option(
        None, help="onnxruntime, openvino, native, torch; auto: the fastest on this device."
    ),
    device: str = typer.Option("cpu", "-d", "--device", help="cpu, gpu, gpu:1, npu or auto."),
    threads: int = typer.Option(0, help="0 leaves the choice to the engine."),
    allow_fallback: bool = typer.Option(False, help="Let operators run on another device."),
    provider: list[str] = typer.Option([], help="KEY=VALUE, passed to the engine. Repeatable."),
    adapter: str = typer.Option("", help="One of the bundle's adapters, by name; or none."),
    json: bool = typer.Option(False, "--json", help="Print a record instead."),
) -> None:
    """Generate: text after a prompt, a grid of images, or the outputs of any graph."""
    options = {n: v for n, v in locals().items() if v is not None and v is not False and v != []}
    from edgegen.runtimes import deploy
    from edgegen.spec import Options

    if threads < 0:
        raise UsageError(f"--threads is {threads}", "give 0 (the engine's choice) or more")
    opening = Options(
        threads=threads,
        allow_fallback=allow_fallback,
        provider=pairs("--provider", provider),
        adapter=adapter,
    )
    _fit(bundle, options)
    if runtime == "auto":
        runtime = fastest(bundle, device, opening)
    with closing(deploy(bundle, runtime, device, opening)) as deployment:
        _COMMANDS[_kind(bundle)](deployment, options)


def fastest(bundle: Path, device: str, options: Options) -> str:
    """The engine that is fastest on this device; said why on stderr."""
    from edgegen import auto

    if options.provider:
        flag = f"--provider {min(options.provider)}"
        raise UsageError(
            f"{flag} is for one engine, --runtime auto tries all", "name it: --runtime onnxruntime"
        )
    choice = auto.choose(bundle, device, options)
    note(choice.why())
    return choice.engine


def _kind(bundle: Path) -> str:
    from edgegen.bundle import Text, open_bundle

    loop = open_bundle(bundle).manifest.loop
    return "text" if isinstance(loop, Text) else "images" if loop.image else "tensors"


def _fit(bundle: Path, options: dict[str, Any]) -> None:
    """Raise for an option that this kind of bundle has no use for, before anything is loaded."""
    kind = _kind(bundle)
    fits = ANY | {"text": TEXT, "images": IMAGES, "tensors": TENSORS}[kind]
    for name in options:
        if name not in fits:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag}: {bundle} makes {kind}", f"leave {flag} out")


def pairs(flag: str, given: list[str]) -> dict[str, str]:
    """["A=1", "B=2"] as a dictionary."""
    for text in given:
        if not text.partition("=")[0] or "=" not in text:
            raise UsageError(f"{flag} {text}: not of the form NAME=VALUE", f"{flag} NAME=VALUE")
    return {name: value for name, _, value in (text.partition("=") for text in given)}


def _text(deployment: Deployment, options: dict[str, Any]) -> None:
    prompts, batch = _prompts(options)
    drawn = {name: options[name] for name in SAMPLING if name in options}
    if options.get("greedy") and (chance := set(drawn) - {"repetition_penalty"}):
        flag = f"--{min(chance).replace('_', '-')}"
        raise UsageError(f"--greedy and {flag} contradict each other", f"leave {flag} out")
    _ = deployment.tokenizer  # loading it is no part of the time to first token
    started = time.perf_counter()
    pieces = deployment.stream(
        prompts,
        batch=batch,
        max_new_tokens=options.get("max_new_tokens"),
        seed=options.get("seed", 0),
        stop=options.get("stop", []),
        chat=options.get("chat", False),
        **drawn,
    )
    live = len(prompts) * batch == 1 and "json" not in options
    texts, laps, tokens = _listen(pieces, started, live)
    speed = _speed(laps, tokens, len(texts))
    if "json" in options:
        print_json({"texts": texts, **speed})
    elif not live:
        sys.stdout.write("".join(f"{text}\n" for text in texts))
    rate = f", {speed['tokens_per_s']:.1f} tokens/s" if speed["tokens_per_s"] else ""
    note(f"{tokens} tokens{rate}, TTFT {speed['ttft_ms']:.1f} ms ({_where(deployment)})")
    for remark in getattr(deployment.session("model"), "remarks", tuple)():
        note(remark)


def _where(deployment: Deployment) -> str:
    adapter = f", adapter {deployment.adapter}" if deployment.adapter else ""
    return f"{deployment.engine}, {deployment.device}{adapter}"


def _prompts(options: dict[str, Any]) -> tuple[list[str], int]:
    """(prompts, how often each)."""
    given, batch = options.get("prompt", []), options.get("batch", 1)
    if not given:
        raise UsageError("no prompt", "give one: --prompt 'Once upon a time', or --prompt -")
    if batch < 1:
        raise UsageError(f"--batch is {batch}", "give 1 or more")
    try:
        return [sys.stdin.read().removesuffix("\n") if p == "-" else p for p in given], batch
    except UnicodeDecodeError as error:
        raise UsageError("stdin is not valid UTF-8", "re-encode it as UTF-8") from error


def _listen(
    pieces: Generator[list[str | None], None, list[str]], started: float, live: bool
) -> tuple[list[str], list[float], int]:
    """(texts, ms of each step, tokens of all sequences); `live` writes the first as it comes."""
    laps: list[float] = []
    tokens = 0
    while True:
        try:
            step = next(pieces)
        except StopIteration as end:
            break_line = "\n" if live else ""
            sys.stdout.write(break_line)
            return end.value, laps, tokens
        laps.append((time.perf_counter() - started) * 1e3)
        tokens += sum(piece is not None for piece in step)
        if live and step[0]:
            sys.stdout.write(step[0])
            sys.stdout.flush()
        started = time.perf_counter()


def _speed(laps: list[float], tokens: int, sequences: int) -> dict[str, Any]:
    """Time to first token, and the rate of the tokens after the first of each sequence."""
    later_ms = sum(laps[1:])
    rate = (tokens - sequences) * 1e3 / later_ms if later_ms else None
    return {"tokens": tokens, "ttft_ms": laps[0], "tokens_per_s": rate}


def _images(deployment: Deployment, options: dict[str, Any]) -> None:
    from edgegen import images

    loop = deployment.bundle.manifest.loop
    output = options.get("output", Path("grid.png"))
    pixels = loop.pixels  # type: ignore[union-attr]  # _kind looked
    made, columns = _make(deployment, options, pixels)
    images.write_grid(output, made, pixels, columns)
    if "json" in options:
        print_json({"output": str(output), "images": len(made)})
    else:
        sys.stdout.write(f"{output}\n")
    note(f"{len(made)} images ({_where(deployment)})")


def _make(
    deployment: Deployment, options: dict[str, Any], pixels: tuple[float, float]
) -> tuple[Any, int | None]:
    """(images, columns of the grid)."""
    import numpy as np

    from edgegen import images

    num, seed = options.get("num", 16), options.get("seed", 0)
    if "reconstruct" not in options:
        if "interpolate" in options:
            return deployment.interpolate(num, seed), None
        return deployment.generate(num=num, seed=seed), None
    for name in ("num", "interpolate"):
        if name in options:
            raise UsageError(f"--{name} and --reconstruct exclude each other", "leave one out")
    given = images.read(options["reconstruct"], deployment.image_shape, pixels)
    return np.concatenate([given, deployment.reconstruct(given)]), len(given)


def _tensors(deployment: Deployment, options: dict[str, Any]) -> None:
    import numpy as np

    from edgegen import records
    from edgegen.spec import Request

    feed = {n: _load(Path(f)) for n, f in pairs("--input", options.get("input", [])).items()}
    sizes = {name: _whole_number(name, text) for name, text in _sizes(options).items()}
    request = Request(batch=options.get("batch", 1), seed=options.get("seed", 0), sizes=sizes)
    outputs = next(deployment.steps(request, feed))
    if "output" in options:
        with records.whole(options["output"]) as part, part.open("wb") as file:
            np.savez(file, **outputs)
    rows = [
        (name, str(array.dtype), "x".join(map(str, array.shape)), *_range(array))
        for name, array in outputs.items()
    ]
    columns = ("output", "type", "shape", "min", "mean", "max")
    if "json" in options:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        print_table(columns, rows)
    note(f"1 run ({_where(deployment)})")


def _range(array: Any) -> tuple[str, ...]:
    return tuple(f"{v:.4g}" for v in (array.min(), array.mean(), array.max())) if array.size else ()


def _sizes(options: dict[str, Any]) -> dict[str, str]:
    return pairs("--size", options.get("size", []))


def _whole_number(name: str, text: str) -> int:
    if not text.lstrip("-").isdigit():
        raise UsageError(f"--size {name}={text}: not a whole number", f"--size {name}=8")
    return int(text)


def _load(path: Path) -> Any:
    """An array from a `.npy` file; never a pickle."""
    import numpy as np

    from edgegen.errors import FormatError, NotFoundError

    if not path.is_file():
        raise NotFoundError(f"{path}: no such file")
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FormatError(
            f"{path}: not a .npy array: {error}", "store it with numpy.save"
        ) from error


_COMMANDS = {"text": _text, "images": _images, "tensors": _tensors}
