"""`edgegen compress`: a recipe, or one method, and what each step did on this device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgegen.cli import _terminal
from edgegen.errors import UsageError

if TYPE_CHECKING:
    from edgegen.recipe import Recipe
    from edgegen.steps import Entry


def compress(
    source: str = typer.Argument(
        help="Checkpoint, Hugging Face folder, FILE.gguf or FILE.py:CALLABLE."
    ),
    output: Path = typer.Option(..., "-o", "--output", help="The checkpoint to write, a folder."),
    recipe: str = typer.Option("", "-r", "--recipe", help="A TOML file, or a shipped recipe."),
    prune: str = typer.Option("", metavar="RATIO", help="Prune alone: the share that goes."),
    quantize: str = typer.Option(
        "", metavar="PRECISION", help="Quantize alone: int8, int4, w8a8, mixed."
    ),
    qat: str = typer.Option(
        "", metavar="PRECISION", help="Train the quantized model alone: int8, int4, w8a8."
    ),
    distil: bool = typer.Option(False, "--distil", help="Distil alone."),
    lora: str = typer.Option("", metavar="RANK", help="Adapt alone: a rank, or auto."),
    method: str = typer.Option("", "--method", help="Any method alone, all by --set."),
    settings: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="An option of the one method; repeatable."
    ),
    target_latency: str = typer.Option(
        "", "--target-latency", metavar="0.5x", help="Prune alone: down to this share of the time."
    ),
    original: str = typer.Option(
        "", "--original", help="What SOURCE was made from: the teacher, and for quality."
    ),
    data: str = typer.Option(
        "", "--data", "--dataset", help="digits, idx:DIR, images:DIR or text:FILES."
    ),
    runtime: str = typer.Option("onnxruntime", "--runtime", help="The engine to measure on."),
    device: str = typer.Option("cpu", "-d", "--device", help="The device to measure on."),
    threads: int = typer.Option(0, help="Threads of the engine; 0 leaves it to the engine."),
    faster: str = typer.Option("", metavar="5%", help="Faster by this share, or"),
    smaller: str = typer.Option("", metavar="5%", help="smaller by this, or the step is refused."),
    budget: list[str] = typer.Option(
        [], "--budget", metavar="FIGURE=+3%", help="How much worse than the original; repeatable."
    ),
    repeats: int | None = typer.Option(None, help="How often each model is run for its latency."),
    rounds: int | None = typer.Option(None, help="In how many fresh processes, in turns."),
    num: int | None = typer.Option(None, help="Windows or images that quality is measured on."),
    keep_anyway: bool = typer.Option(False, "--keep-anyway", help="Keep what the gate refuses."),
    measure: bool = typer.Option(True, "--measure/--no-measure", help="Measure what steps do."),
    resume: bool = typer.Option(False, "--resume", help="Go on with an unfinished run."),
    seed: int = typer.Option(0, help="Everything random follows from it."),
    inputs: list[str] = typer.Option([], "--input", help="For a module, as in export."),
    pixels: str = typer.Option("", help="For a module: range of its image output, as '-1,1'."),
    json: bool = typer.Option(False, "--json", help="Print the steps as JSON."),
    quiet: bool = typer.Option(False, "-q", "--quiet", help="No progress."),
) -> None:
    """Prune, quantize, distil or adapt a model; every step must prove that it helped."""
    from edgegen.cli.export import _pixels
    from edgegen.compress import Target
    from edgegen.compress import compress as run

    alone = {"prune": prune, "quantize": quantize, "qat": qat, "lora": lora}
    method = method or ("distil" if distil else "")
    asked = _recipe(recipe, alone, method, [*settings, *_latency(target_latency)])
    changes: dict[str, object] = {
        "faster": faster,
        "smaller": smaller,
        "quality": dict(map(_bound, budget)),
    }
    changes |= {"repeats": repeats, "rounds": rounds, "num": num}
    shown: list[Entry] = []
    with _terminal.progress(quiet) as report:
        try:
            run(
                source,
                _gated(asked, {n: v for n, v in changes.items() if v not in (None, "", {})}),
                output,
                data=data or None,
                original=original or None,
                target=Target(runtime, device, threads),
                keep_anyway=keep_anyway,
                measure=measure,
                resume=resume,
                inputs=inputs,
                pixels=_pixels(pixels),
                seed=seed,
                report=report,
                note=(lambda line: None) if quiet else _terminal.note,
                show=shown.append,
            )
        except KeyboardInterrupt:
            if Path(f"{output}.compressing").is_dir():
                _terminal.note(f"what is done is in {output}.compressing: go on with --resume")
            raise
        finally:
            _print(shown, json)


def _print(steps: list[Entry], json: bool) -> None:
    """Also of a run that was refused: that is when the numbers are wanted."""
    from edgegen.steps import COLUMNS, rows

    if json:
        _terminal.print_json(steps)
    elif steps:
        _terminal.print_table(COLUMNS, rows(steps), f"measured on {steps[-1].verdict.target}")


def _recipe(name: str, alone: dict[str, str], method: str, settings: list[str]) -> Recipe:
    """The recipe of that name, or one of a single step."""
    from edgegen import recipe as recipes

    chosen = [kind for kind, value in alone.items() if value] + ([method] if method else [])
    if len(chosen) + bool(name) != 1:
        found = ", ".join([*(["--recipe"] if name else []), *(f"--{kind}" for kind in chosen)])
        raise UsageError(
            f"one recipe or one method is wanted, found {found or 'none'}",
            f"write several steps into a recipe; shipped: {', '.join(recipes.shipped())}",
        )
    if name:
        if settings:
            raise UsageError(f"--set {settings[0]}: is for one method alone", "edit the recipe")
        return recipes.read(name)
    (kind,) = chosen
    return recipes.alone(kind, alone.get(kind, ""), dict(map(_setting, settings)))


def _gated(recipe: Recipe, changes: dict[str, object]) -> Recipe:
    import msgspec

    gate = msgspec.structs.replace(recipe.gate, **changes)
    return msgspec.structs.replace(recipe, gate=gate)


def _latency(text: str) -> list[str]:
    return [f"target_latency={text}"] if text else []


def _setting(pair: str) -> tuple[str, object]:
    """`ratio=0.5`; the value is TOML where it can be, else text."""
    import tomllib

    name, equals, text = pair.partition("=")
    if not (name and equals):
        raise UsageError(f"--set {pair}: wanted KEY=VALUE", "such as --set ratio=0.5")
    try:
        return name, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return name, text


def _bound(pair: str) -> tuple[str, str]:
    """`perplexity=+3%`, or `psnr_db>=25`."""
    for sign in ("<=", ">="):
        name, found, bound = pair.partition(sign)
        if found and name and bound:
            return name, sign + bound
    name, _, bound = pair.partition("=")
    if not (name and bound):
        raise UsageError(f"--budget {pair}: wanted FIGURE=+3%", "or 'FIGURE<=12', 'FIGURE>=0.99'")
    return name, bound
