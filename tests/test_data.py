import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from edgegen import data
from edgegen.errors import FormatError, NotFoundError, UsageError


def idx(pixels):
    return b"\x00\x00\x08\x03" + struct.pack(">3I", *pixels.shape) + pixels.tobytes()


@pytest.fixture
def pictures(tmp_path):
    """A folder of two 4x3 grey pictures, black and white."""
    for name, grey in (("a.png", 0), ("b.png", 255)):
        Image.new("L", (4, 3), grey).save(tmp_path / name)
    return tmp_path


def test_the_digits_are_there_without_a_download():
    digits = data.images("digits")
    assert (digits.shape, digits.dtype) == ((1797, 1, 8, 8), np.float32)
    assert (digits.min(), digits.max()) == (0, 1)


def test_an_unknown_data_set_gets_a_guess():
    with pytest.raises(NotFoundError, match="--data digit: no such data set") as error:
        data.images("digit")
    assert error.value.hint == "did you mean 'digits'?"


def test_text_is_not_images_nor_the_other_way_round():
    with pytest.raises(UsageError, match="is text, wanted images"):
        data.images("text:a.txt")
    with pytest.raises(UsageError, match="is not text"):
        data.text("digits")


@pytest.mark.parametrize("wrap", [bytes, gzip.compress], ids=["plain", "gz"])
def test_idx_files_come_back_byte_for_byte(tmp_path, wrap):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    name = "train-images-idx3-ubyte" + (".gz" if wrap is gzip.compress else "")
    (tmp_path / name).write_bytes(wrap(idx(pixels)))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(b"not looked at")
    found = data.images(f"idx:{tmp_path}")
    assert np.array_equal(np.rint(found[:, 0] * 255), pixels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with , wanted 00000803"),
        (b"\x00\x00\x08\x01" + bytes(20), "starts with 00000801, wanted 00000803"),
        (idx(np.zeros((2, 3, 3), np.uint8))[:-1], "17 bytes of pixels, wanted 2x3x3"),
        (idx(np.zeros((0, 3, 3), np.uint8)), "0 bytes of pixels, wanted 0x3x3"),
    ],
)
def test_a_broken_idx_file_is_named(tmp_path, content, message):
    (tmp_path / "images-idx3-ubyte").write_bytes(content)
    with pytest.raises(FormatError, match=f"images-idx3-ubyte: {message}") as error:
        data.images(f"idx:{tmp_path}")
    assert error.value.hint


def test_a_cut_gzip_file_is_named(tmp_path):
    whole = gzip.compress(idx(np.zeros((2, 3, 3), np.uint8)))
    (tmp_path / "images-idx3-ubyte.gz").write_bytes(whole[:-9])
    with pytest.raises(FormatError, match="not a whole gzip file") as error:
        data.images(f"idx:{tmp_path}")
    assert error.value.hint == "download it again"


def test_idx_files_of_two_sizes_are_refused(tmp_path):
    for name, size in (("a", 3), ("b", 4)):
        pixels = np.zeros((1, size, size), np.uint8)
        (tmp_path / f"{name}-idx3-ubyte").write_bytes(idx(pixels))
    with pytest.raises(FormatError, match=r"b-idx3-ubyte: 4x4 pixels, but .*a-idx3-ubyte is 3x3"):
        data.images(f"idx:{tmp_path}")


@pytest.mark.parametrize("kind", ["idx", "images"])
def test_a_missing_or_empty_folder_is_named(tmp_path, kind):
    with pytest.raises(NotFoundError, match="nowhere: no such folder") as error:
        data.images(f"{kind}:{tmp_path / 'nowhere'}")
    assert error.value.hint == f"use --data {kind}:FOLDER"
    with pytest.raises(NotFoundError, match=r"no (PNG|\*idx3)"):
        data.images(f"{kind}:{tmp_path}")


def test_pictures_come_in_the_order_of_their_names(pictures):
    seen = []
    found = data.images(f"images:{pictures}", lambda *news: seen.append(news))
    assert found.shape == (2, 1, 3, 4)
    assert found[:, 0, 0, 0].tolist() == [0, 1]
    assert seen[-1] == ("reading images", 2, 2)


def test_one_picture_in_colour_makes_all_colour(pictures):
    Image.new("RGB", (4, 3), "red").save(pictures / "c.png")
    found = data.images(f"images:{pictures}")
    assert found[:, :, 0, 0].tolist() == [[0, 0, 0], [1, 1, 1], [1, 0, 0]]


def test_what_is_transparent_becomes_white(pictures):
    Image.new("RGBA", (4, 3), (255, 0, 0, 0)).save(pictures / "c.png")
    assert data.images(f"images:{pictures}")[2].min() == 1


def test_pictures_of_two_sizes_name_the_file_and_both_sizes(pictures):
    Image.new("L", (5, 3)).save(pictures / "c.jpeg")
    with pytest.raises(FormatError, match=r"c\.jpeg: 5x3 pixels, but .*a\.png is 4x3") as error:
        data.images(f"images:{pictures}")
    assert error.value.hint == "bring all images to one size"


@pytest.mark.parametrize("content", [b"", b"hello", None], ids=["empty", "text", "cut"])
def test_a_corrupt_picture_is_named(pictures, content):
    if content is None:
        Image.effect_noise((64, 64), 50).save(pictures / "c.png")
        content = (pictures / "c.png").read_bytes()[:300]
    (pictures / "c.png").write_bytes(content)
    with pytest.raises(FormatError, match=r"c\.png: not a picture Pillow can read") as error:
        data.images(f"images:{pictures}")
    assert error.value.hint == "restore or remove the file"


def test_sixteen_bits_are_refused_rather_than_clipped(pictures):
    Image.fromarray(np.full((3, 4), 4096, np.uint16)).save(pictures / "c.png")
    with pytest.raises(FormatError, match=r"c\.png: pixels of mode I;16, wanted 8-bit"):
        data.images(f"images:{pictures}")


def test_text_files_are_joined_by_the_end_token(tmp_path):
    (tmp_path / "b.txt").write_text("zwei\n")
    (tmp_path / "a.txt").write_text("één\n", encoding="utf-8")
    (tmp_path / "c.md").write_text("three")
    (tmp_path / "empty.txt").write_text("")
    assert data.text(f"text:{tmp_path}") == f"één\n{data.END}zwei\n"
    assert data.text(f"text:{tmp_path}/*.md,{tmp_path}/b.txt") == f"three{data.END}zwei\n"


def test_a_missing_text_file_or_folder_is_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"a\.txt: no such file") as error:
        data.text(f"text:{tmp_path / 'a.txt'}")
    assert error.value.hint == "use --data text:FILE,GLOB,FOLDER"
    with pytest.raises(NotFoundError, match=r"no \.txt file in it"):
        data.text(f"text:{tmp_path}")
    with pytest.raises(NotFoundError, match="names no file"):
        data.text("text:")


def test_empty_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(NotFoundError, match="1 files, all empty"):
        data.text(f"text:{tmp_path / 'a.txt'}")


def test_a_text_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("één".encode("latin-1"))
    with pytest.raises(FormatError, match=r"a\.txt: not UTF-8 text: byte 0") as error:
        data.text(f"text:{tmp_path / 'a.txt'}")
    assert error.value.hint.startswith("run: iconv")


def test_the_held_out_tenth_is_always_the_same_and_never_trained_on():
    mine, held = data.split(1797)
    assert (len(mine), len(held)) == (1618, 179)
    assert sorted([*mine, *held]) == list(range(1797))
    assert np.array_equal(held, data.split(1797)[1])


def test_the_last_tenth_of_a_text_is_held_out():
    assert data.split_text("0123456789" * 2) == ("0123456789" + "01234567", "89")
