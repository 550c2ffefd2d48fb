"""The command line. One file a command; each parses, calls one public function, and prints.

A command file imports only typer and the standard library at the top: everything else is imported
inside the command, so that `edgegen --help` starts in a blink and loads no engine.
Results go to stdout, progress and log to stderr.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys

import typer

from edgegen.cli import _terminal
from edgegen.errors import EdgeGenError

COMMANDS = (
    "train",
    "compress",
    "export",
    "verify",
    "run",
    "eval",
    "profile",
    "compare",
    "history",
    "inspect",
    "devices",
    "demo",
)

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What the disk may answer to a path; anything else is a fault of ours, and shows its stack.
FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
STORAGE = {*FULL, *FORBIDDEN, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}

app = typer.Typer(
    name="edgegen",
    help="Compact generative models on real devices: export, verify, run, profile, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # drawing help with rich takes longer than all the rest of it
)
for _name in COMMANDS:
    _command = getattr(importlib.import_module(f"edgegen.cli.{_name}"), _name)
    if isinstance(_command, typer.Typer):  # one with commands of its own
        app.add_typer(_command, name=_name)
    else:
        app.command(_name)(_command)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        from edgegen import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; every error on purpose is two lines and an exit code."""
    _terminal.any_encoding()
    try:
        app()
    except EdgeGenError as error:
        _report(str(error), error.hint)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == 130:  # typer's own answer to Ctrl-C, which says nothing
            _report("interrupted; nothing was changed under the output's name", "")
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in STORAGE:
            raise
        elsewhere = "look at what this path is and who may use it, or give another"
        hint = "free space or write elsewhere" if error.errno in FULL else elsewhere
        _report(f"{error.filename or 'output'}: {error.strerror}", hint)
        sys.exit(1)


def _report(message: str, hint: str) -> None:
    typer.echo(f"error: {message}", err=True)
    if hint:
        typer.echo(f"hint:  {hint}", err=True)
    if os.environ.get("EDGEGEN_TRACEBACK"):
        import traceback

        traceback.print_exc()
