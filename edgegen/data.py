"""Data sets as numpy arrays.

digits        scikit-learn's 1,797 handwritten digits, 8x8 grey: on disk with the package
idx:DIR       image files of the MNIST kind, *-idx3-ubyte, plain or .gz
images:DIR    a folder of PNG and JPEG files, all of one size
text:FILES    text files: paths, globs or folders of .txt, separated by commas
"""

from __future__ import annotations

import glob
import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen import rooms
from edgegen.errors import FormatError, NotFoundError, UsageError
from edgegen.spec import Report, silent

Images = NDArray[np.float32]

KINDS = ("digits", "idx", "images", "text")
PICTURES = (".png", ".jpg", ".jpeg")
GREY, COLOUR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
END = "<|endoftext|>"  # between two files of text; the tokenizer's end-of-sequence token


def is_text(spec: str) -> bool:
    """Does `spec` name text rather than images?

    Raises:
        NotFoundError: neither; the hint is the nearest kind.
    """
    kind = spec.partition(":")[0]
    if kind not in KINDS:
        raise NotFoundError(f"--data {spec}: no such data set", rooms.nearest(kind, KINDS))
    return kind == "text"


def images(spec: str, report: Report = silent) -> Images:
    """All images of a data set, shape (n, channels, height, width), in 0..1.

    Raises:
        NotFoundError: unknown kind, or a folder that is missing or holds no image.
        FormatError: a broken image file, or images of two sizes; the file is named.
        MissingExtraError: scikit-learn or Pillow is not installed.
    """
    if is_text(spec):
        raise UsageError(f"--data {spec} is text, wanted images", "use digits, idx: or images:")
    kind, _, place = spec.partition(":")
    if kind == "digits":
        return _digits()
    folder = Path(place)
    if not place or not folder.is_dir():
        raise NotFoundError(f"{place or spec}: no such folder", f"use --data {kind}:FOLDER")
    return _idx(folder) if kind == "idx" else _folder(folder, report)


def text(spec: str) -> str:
    """All text of a data set, in the order of the names; `END` stands between two files.

    Raises:
        NotFoundError: no file of that name, or no text in any of them.
        FormatError: a file that is not UTF-8.
    """
    if not is_text(spec):
        raise UsageError(f"--data {spec} is not text", "use text:FILES")
    paths = _text_files(spec.partition(":")[2])
    texts = [t for t in map(_read_text, paths) if t.strip()]
    if not texts:
        raise NotFoundError(
            f"{spec}: {len(paths)} files, all empty", "give files with text in them"
        )
    return END.join(texts)


def split(num: int, fraction: float = 0.1) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (training, held out) of `num` items; the same ones each time, whatever the seed."""
    order = np.random.default_rng(0).permutation(num)
    held = min(max(int(num * fraction), 1), 10_000) if num > 1 else 0
    return np.sort(order[held:]), np.sort(order[:held])


def split_text(text: str) -> tuple[str, str]:
    """(training, held out) text: the first nine tenths of the characters, and the last."""
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def _digits() -> Images:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "data") from error
    pixels: NDArray[Any] = load_digits().images  # (1797, 8, 8), 0..16
    return np.asarray(pixels[:, None] / 16, np.float32)


def _idx(folder: Path) -> Images:
    """The training images where some are called so, otherwise every image file there is."""
    files = [p for p in sorted(folder.iterdir()) if "idx3-ubyte" in p.name]
    files = [p for p in files if "train" in p.name] or files
    if not files:
        raise NotFoundError(
            f"{folder}: no *idx3-ubyte or *idx3-ubyte.gz file", "unpack the data set there"
        )
    parts = {path: _read_idx(path) for path in files}
    _same_size({path: (p.shape[2], p.shape[1]) for path, p in parts.items()})
    return np.asarray(np.concatenate(list(parts.values()))[:, None] / np.float32(255))


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Shape (n, height, width). Source: the format's description, yann.lecun.com/exdb/mnist."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(f"{path}: not a whole gzip file: {error}", "download it again") from error
    if data[:4] != b"\x00\x00\x08\x03" or len(data) < 16:
        raise FormatError(
            f"{path}: starts with {data[:4].hex()}, wanted 00000803 (unsigned bytes, 3 dimensions)",
            "give idx files of images, not of labels",
        )
    num, high, wide = np.frombuffer(data, ">u4", 3, 4).tolist()
    if len(data) != 16 + num * high * wide or not num * high * wide:
        raise FormatError(
            f"{path}: {len(data) - 16} bytes of pixels, wanted {num}x{high}x{wide}",
            "download it again",
        )
    return np.frombuffer(data, np.uint8, offset=16).reshape(num, high, wide)


def _folder(folder: Path, report: Report) -> Images:
    """Grey when every picture is, otherwise RGB; what is transparent becomes white."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES)
    if not paths:
        raise NotFoundError(f"{folder}: no PNG or JPEG file in it", "use --data images:FOLDER")
    pictures: dict[Path, NDArray[np.uint8]] = {}
    for done, path in enumerate(paths):
        pictures[path] = _read_picture(path)
        report("reading images", done + 1, len(paths))
    _same_size({path: (p.shape[1], p.shape[0]) for path, p in pictures.items()})
    wide = max(p.shape[2] for p in pictures.values())
    stack = np.stack([np.broadcast_to(p, (*p.shape[:2], wide)) for p in pictures.values()])
    return np.asarray(np.ascontiguousarray(stack.transpose(0, 3, 1, 2)) / np.float32(255))


def _read_picture(path: Path) -> NDArray[np.uint8]:
    """Shape (height, width, 1 or 3)."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "images") from error
    try:
        with Image.open(path) as file:
            file.load()
            picture: Any = file
    except (OSError, SyntaxError, ValueError) as error:
        raise FormatError(
            f"{path}: not a picture Pillow can read: {error}", "restore or remove the file"
        ) from error
    if picture.mode not in GREY + COLOUR:
        raise FormatError(
            f"{path}: pixels of mode {picture.mode}, wanted 8-bit grey or colour",
            "convert the file to 8 bits",
        )
    mode = "L" if picture.mode in GREY else "RGB"
    if picture.has_transparency_data:
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture.convert("RGBA"))
    return np.atleast_3d(np.asarray(picture.convert(mode)))


def _same_size(sizes: dict[Path, tuple[int, int]]) -> None:
    """Raise `FormatError`, naming the file and both sizes (width x height), unless all agree."""
    (first, want), *others = sizes.items()
    for path, have in others:
        if have != want:
            raise FormatError(
                f"{path}: {have[0]}x{have[1]} pixels, but {first} is {want[0]}x{want[1]}",
                "bring all images to one size",
            )


def _text_files(names: str) -> list[Path]:
    files: list[Path] = []
    for name in filter(None, names.split(",")):
        where = Path(name)
        found = (
            sorted(where.rglob("*.txt"))
            if where.is_dir()
            else sorted(Path(p) for p in glob.glob(name, recursive=True) if Path(p).is_file())
        )
        if not found:
            what = "no .txt file in it" if where.is_dir() else "no such file"
            raise NotFoundError(f"{name}: {what}", "use --data text:FILE,GLOB,FOLDER")
        files += found
    if not files:
        raise NotFoundError("--data text: names no file", "use --data text:FILE,GLOB,FOLDER")
    return files


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{path}: not UTF-8 text: byte {error.start}: {error.reason}",
            f"run: iconv -t UTF-8 {path}, or leave the file out",
        ) from error


def refuse_constant(items: NDArray[Any], source: str, what: str) -> None:
    """Raise `UsageError` where every item of the data set `source` is the same `what`."""
    if np.all(items == items[:1]):
        raise UsageError(
            f"--data {source}: every {what} is the same: nothing can be learnt from that, and "
            "every range that is measured on it would be wrong",
            "give data of the kind the model is used on",
        )
