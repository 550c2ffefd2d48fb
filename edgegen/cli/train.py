"""`edgegen train`."""

from __future__ import annotations

from pathlib import Path

import typer

from edgegen.cli._terminal import note, print_json, print_table, progress
from edgegen.errors import UsageError


def train(
    family: str = typer.Argument(help="A family of models: gpt, vae, gan."),
    data: str = typer.Option(
        ..., "--data", "--dataset", help="digits, idx:DIR, images:DIR or text:FILES."
    ),
    output: Path = typer.Option(..., "-o", "--output", help="The checkpoint to write, a folder."),
    steps: int | None = typer.Option(None, help="Stop after so many steps."),
    minutes: float | None = typer.Option(None, help="Stop after so many minutes of training."),
    batch: int | None = typer.Option(None, help="Items in a batch, in each process."),
    lr: float | None = typer.Option(None, help="The highest learning rate."),
    seed: int = typer.Option(0, help="Everything random follows from it."),
    device: str = typer.Option("auto", "-d", "--device", help="cpu, gpu, gpu:1 or auto."),
    resume: bool = typer.Option(False, "--resume", help="Go on with an unfinished run."),
    config: list[str] = typer.Option(
        [], "--config", metavar="KEY=VALUE", help="A field of the family's Config; repeatable."
    ),
    json: bool = typer.Option(False, "--json", help="Print the run as JSON."),
    quiet: bool = typer.Option(False, "-q", "--quiet", help="No progress."),
) -> None:
    """Train a model and write it as a checkpoint."""
    from edgegen.train import Options
    from edgegen.train import train as run

    options = Options(
        steps=steps,
        minutes=minutes,
        batch=batch,
        lr=lr,
        seed=seed,
        device=device,
        resume=resume,
        config=_fields(config),
    )
    with progress(quiet) as report:
        quietly = (lambda line: None) if quiet else note
        try:
            done = run(family, data, output, options, report=report, note=quietly)
        except KeyboardInterrupt:
            if Path(f"{output}.training").is_dir():
                note(f"the last saved step is in {output}.training: go on with --resume")
            raise
    if json:
        print_json(done)
        return
    numbers = {"seconds": done.seconds, **done.validation}
    print_table(
        ["held-out data", "mean"], [[name, f"{value:.4g}"] for name, value in numbers.items()]
    )
    note(f"{output}: {done.parameters:,} parameters after {done.steps} steps on {done.device}")


def _fields(pairs: list[str]) -> dict[str, str]:
    """`["width=64"]` -> `{"width": "64"}`."""
    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"--config {pair}, wanted KEY=VALUE", "such as --config width=64")
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}
