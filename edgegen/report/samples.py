"""What the models made, side by side, inside the page: pictures, texts, and sheets of `eval`."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

from edgegen.errors import FormatError, NotFoundError
from edgegen.report import markup

# What one model went on with: its name, and the text under it.
NAMED = re.compile(r"<p><strong>(?:(?!<p>|<h3>).)*?</p>\s*<blockquote>.*?</blockquote>", re.DOTALL)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
KINDS = (".png", ".md")
MAKE = "make one with: edgegen eval BUNDLE --data DATA --against BUNDLE --sheet FILE.png"


def section(pictures: Mapping[str, bytes], texts: Mapping[str, str], sheets: Sequence[Path]) -> str:
    """Sheets first, as wide as the page; then what single models made.

    Raises:
        NotFoundError, FormatError: a sheet that is not there, or is neither PNG nor Markdown.
    """
    content = "".join(map(_sheet, sheets)) + "".join(
        f"<h3>{escape(name)}</h3><blockquote>{escape(text)}</blockquote>"
        for name, text in texts.items()
    )
    if pictures:
        drawn = "".join(_picture(name, png) for name, png in pictures.items())
        content += f'<div class="pictures">{drawn}</div>'
    return markup.section("What they made", content)


def _picture(name: str, png: bytes) -> str:
    return (
        f'<figure><img alt="Images made by {escape(name)}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
    )


def _sheet(path: Path) -> str:
    if path.suffix.lower() not in KINDS:
        raise FormatError(f"{path}: a sheet of samples is {' or '.join(KINDS)}", MAKE)
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file", MAKE)
    if path.suffix.lower() == ".md":
        return f'<div class="told">{_prose(path)}</div>'
    found = path.read_bytes()
    if not found.startswith(SIGNATURE):
        raise FormatError(f"{path}: named .png, but it is no PNG picture", MAKE)
    return f'<div class="sheet" tabindex="0">{_picture(path.stem, found)}</div>'


def _prose(path: Path) -> str:
    """The Markdown that a sheet is made of and nothing more: what a model wrote stays text."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 text", MAKE) from error
    reader = MarkdownIt("zero", {"breaks": True})
    shown = reader.enable(["heading", "blockquote", "emphasis", "newline"]).render(text)
    return NAMED.sub(r'<div class="said">\g<0></div>', shown)
