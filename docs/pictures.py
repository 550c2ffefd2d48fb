"""The README's pictures, of a run on this machine: make pictures

    .venv/bin/python docs/pictures.py [--output FOLDER]

The face GAN of examples/ is exported at fp32 and int8 to ONNX and OpenVINO, profiled in turns, and
compared, by the commands that a user would type. What they print becomes docs/terminal.svg, what
they write docs/report-light.png and docs/report-dark.png (needs Chromium). On a busy machine the
pictures show a busy machine. Profiles that are there already stay: delete FOLDER to measure again.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import termios
from pathlib import Path

from PIL import Image
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from edgegen.evaluate import draw_sheet

DOCS = Path(__file__).parent
MODEL = f"{DOCS.parent / 'examples' / 'face_dcgan.py'}:generator"
EXPORT = f"export {MODEL} --input input:float32[batch,100,1,1] --pixels=-1,1 --precision fp32,int8"
PROFILE = "--runtime onnxruntime,openvino --threads 1 --repeats 100 --rounds 10 --verify"
COLUMNS = 124
WIDTH, HEIGHT = 1280, 1180  # pixels of the page that are shown: verdict, table, samples
COLOURS = 256
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
THEMES = {"light": 1, "dark": 0}  # as Chromium counts them


def edgegen(arguments: str, folder: Path) -> str:
    """What a command prints into a terminal of `COLUMNS` columns; its notes go to ours."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (60, COLUMNS))
    command = [sys.executable, "-m", "edgegen", *shlex.split(arguments)]
    with subprocess.Popen(command, cwd=folder, stdout=theirs) as process:
        os.close(theirs)
        printed = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    if process.returncode:
        raise SystemExit(f"edgegen {arguments} ended with {process.returncode}")
    return printed.decode().replace("\r\n", "\n").strip("\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so when the other end is closed
        return b""


def terminal(command: str, printed: str) -> None:
    """docs/terminal.svg, without the fonts that Rich would have fetched."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere)
        console.print(Text(f"$ edgegen {command}"))
        console.print(Text.from_ansi(printed))
        form = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
        console.save_svg(str(DOCS / "terminal.svg"), title="edgegen", code_format=form)


def report(page: Path) -> None:
    """The top of the page as a browser shows it in both themes."""
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        raise SystemExit(f"no browser: none of {', '.join(CHROMIUM)} is on the PATH")
    for theme, number in THEMES.items():
        file = DOCS / f"report-{theme}.png"
        command = [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--disable-background-networking", "--virtual-time-budget=20000"),
            *(f"--blink-settings=preferredColorScheme={number}", f"--screenshot={file}"),
            *(f"--window-size={WIDTH},{HEIGHT}", page.as_uri()),
        ]
        subprocess.run(command, check=True, capture_output=True)
        picture = Image.open(file).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        picture.save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=DOCS.parent / "build" / "pictures")
    folder = parser.parse_args().output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "face-int8").is_dir():
        edgegen(f"{EXPORT} -o face", folder)
    edgegen(f"profile face-fp32 face-int8 {PROFILE} -o profiles --resume", folder)
    draw_sheet(folder / "face-int8", folder / "face.png", against=folder / "face-fp32")
    command = "compare profiles --html report.html --sheet face.png"
    terminal(command, edgegen(command, folder))
    report(folder / "report.html")


if __name__ == "__main__":
    main()
