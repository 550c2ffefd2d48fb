"""`edgegen eval`: how good a bundle is on data it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgegen.cli import _terminal
from edgegen.errors import UsageError

if TYPE_CHECKING:
    from edgegen.quality import Figure, Quality


def eval(
    bundle: Path = typer.Argument(..., help="The bundle to evaluate."),
    data: str = typer.Option(
        "", "--data", "--dataset", help="digits, idx:DIR, images:DIR or text:FILES, as in train."
    ),
    against: Path = typer.Option(None, help="The bundle it was made from, before compression."),
    runtime: str = typer.Option(None, help="onnxruntime, openvino or torch."),
    device: str = typer.Option("cpu", "-d", "--device", help="cpu, gpu, gpu:1, npu or auto."),
    adapter: str = typer.Option("", help="One of the bundle's adapters, by name; or none."),
    num: int = typer.Option(
        None, "--num", "--num-samples", help="Held-out images, or windows of text. [500, 64]"
    ),
    seed: int = typer.Option(0, help="The same seed gives the same latents on every engine."),
    metrics: str = typer.Option("", help="Only these, such as perplexity,bleu or kid,psnr."),
    write_samples: Path = typer.Option(
        None, help="Only write --num images to FILE.npz, to be scored on another machine."
    ),
    samples: Path = typer.Option(None, help="Score FILE.npz that --write-samples made elsewhere."),
    sheet: Path = typer.Option(None, help="Also write samples side by side: .png, text as .md."),
    save: bool = typer.Option(False, "--save", help="Store the figures in the bundle."),
    json: bool = typer.Option(False, "--json", help="Print the record as JSON."),
    quiet: bool = typer.Option(False, "-q", "--quiet", help="No progress."),
) -> None:
    """Measure quality on held-out data, every figure with its standard error and its count.

    Text: perplexity, bits per byte, KL, top-1 agreement, BLEU, ROUGE. Images: FID and KID on
    EfficientNet-Lite0, Inception Score, sliced Wasserstein, precision, recall, PSNR, SSIM, ELBO.
    """
    from edgegen import evaluate

    if adapter and (write_samples or samples or sheet):
        raise UsageError(
            "--adapter: samples are the bundle's as it begins", "give it with --data alone"
        )
    place: dict[str, Any] = {"runtime": runtime, "device": device, "seed": seed}
    if write_samples:
        made = evaluate.write_samples(bundle, write_samples, **place, num=num)
        _terminal.note(f"{write_samples}: {made} images")
        return
    if not data:
        raise UsageError("no data to evaluate on", "name some: --data digits, or text:FILES")
    names = [name for name in metrics.split(",") if name]
    with _terminal.progress(quiet) as report:
        found = evaluate.evaluate(
            bundle,
            data,
            **place,
            adapter=adapter,
            against=against,
            num=num,
            metrics=names,
            samples=samples,
            report=report,
        )
    _terminal.print_json(found) if json else _print(found)
    if sheet:
        evaluate.draw_sheet(bundle, sheet, data=data, against=against, **place)
        _terminal.note(f"samples side by side: {sheet}")
    if save:
        evaluate.record(bundle, found)
        _terminal.note(f"{bundle}: {len(found.figures)} figures stored as quality.NAME")


def _print(found: Quality) -> None:
    rows = [
        (
            name,
            *_number(figure),
            f"{figure.count} {figure.of}",
            f"{figure.better} is better",
            figure.unit,
        )
        for name, figure in found.figures.items()
    ]
    title = f"{found.model} ({found.precision}) on {found.engine}, {found.device}: {found.protocol}"
    columns = ("figure", "value", "standard error", "of", "", "unit")
    _terminal.print_table(
        columns, rows, title + (f"; against {found.against}" * bool(found.against))
    )
    for note in found.notes:
        _terminal.note(f"note: {note}")
    reasons: dict[str, list[str]] = {}
    for name, reason in found.skipped.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        _terminal.note(f"without {', '.join(names)}: {reason}")


def _number(figure: Figure) -> tuple[str, str]:
    """The value and its standard error: as many digits as the error lets count."""
    import math

    from edgegen.tables import number

    if not figure.error:
        return number(figure.value), "-" if figure.error is None else "0"
    places = max(0, math.ceil(-math.log10(figure.error)))
    if places > 6:
        return f"{figure.value:.6g}", f"{figure.error:.1g}"
    return f"{figure.value:,.{places}f}", f"{figure.error:.{places}f}"
