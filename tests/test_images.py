import numpy as np
import pytest

from edgegen import images
from edgegen.errors import (
    FormatError,
    MismatchError,
    MissingExtraError,
    NotFoundError,
    UnsupportedError,
)

Image = pytest.importorskip("PIL.Image")
GREY = (1, 4, 6)


def save(path, array, mode=None):
    Image.fromarray(np.asarray(array, np.uint8)).convert(mode).save(path)
    return path


def ramp():
    return np.arange(24, dtype=np.uint8).reshape(4, 6) * 10


@pytest.mark.parametrize(
    ("pixels", "values"), [((0, 1), [0, 0.2, 1]), ((-1, 1), [-1, -0.6, 1]), ((1, 0), [1, 0.8, 0])]
)
def test_pixels_are_scaled_from_their_range(pixels, values):
    assert images.to_bytes(np.array(values), pixels).tolist() == [0, 51, 255]


def test_values_outside_the_range_become_black_and_white():
    assert images.to_bytes(np.array([-3.0, 2.0])).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("count", "columns", "size"),
    [(1, None, (2, 3)), (4, None, (6, 8)), (5, None, (6, 13)), (6, 2, (10, 8))],
)
def test_a_grid_is_as_square_as_it_gets(count, columns, size):
    sheet = images.grid(np.zeros((count, 1, 2, 3)), columns=columns)
    assert sheet.shape == (*size, 1)


def test_a_grid_holds_every_image_in_order():
    pictures = np.arange(5)[:, None, None, None] / 255 * np.ones((1, 1, 2, 2))
    sheet = images.grid(pictures)[:, :, 0]
    assert [sheet[r, c] for r in (0, 4) for c in (0, 4, 8)] == [0, 1, 2, 3, 4, 255]
    assert (sheet[2:4] == 255).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_is_written_is_read_back(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (1, channels, 4, 6))
    picture = (pixels / 255).astype(np.float32)
    images.write_grid(tmp_path / "a.png", picture)
    back = images.read([tmp_path / "a.png"], (channels, 4, 6))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, picture, atol=1e-6)


def test_pictures_come_in_the_range_asked_for(tmp_path):
    file = save(tmp_path / "a.png", ramp())
    found = images.read([file, file], GREY, (-1, 1))
    np.testing.assert_allclose(found, np.stack([ramp()[None]] * 2) / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "RGBA", "LA"])
def test_a_grey_picture_may_be_stored_in_any_way(tmp_path, mode):
    file = save(tmp_path / "a.png", ramp(), mode)
    np.testing.assert_allclose(images.read([file], GREY)[0, 0], ramp() / 255, atol=1e-6)
    assert images.read([file], (3, 4, 6)).shape == (1, 3, 4, 6)


@pytest.mark.parametrize("channels", [2, 5])
def test_other_channels_cannot_be_drawn(tmp_path, channels):
    with pytest.raises(UnsupportedError, match=f"images of {channels} channels") as error:
        images.write_grid(tmp_path / "a.png", np.zeros((1, channels, 2, 2)))
    assert "out.npz" in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"no.png: no such file"):
        images.read([tmp_path / "no.png"], GREY)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(FormatError, match=r"a.png: the file is empty") as error:
        images.read([tmp_path / "a.png"], GREY)
    assert "PNG" in error.value.hint


@pytest.mark.parametrize("where", ["noise", "truncated", "flipped"])
def test_a_corrupt_file_is_named(tmp_path, where):
    file = save(tmp_path / "a.png", ramp())
    data = bytearray(file.read_bytes())
    if where == "flipped":
        data[45] ^= 0xFF
    file.write_bytes(
        b"not a picture" if where == "noise" else data[:50] if where == "truncated" else data
    )
    with pytest.raises(FormatError, match=r"a.png: not a readable image") as error:
        images.read([file], GREY)
    assert error.value.hint == "replace the file"


def test_a_picture_of_absurd_size_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    file = save(tmp_path / "a.png", ramp().repeat(2, 0))
    with pytest.raises(FormatError, match=r"a.png: not a readable image: .*bomb"):
        images.read([file], GREY)


def test_a_wrong_size_is_named_with_both_and_the_command(tmp_path):
    good, bad = save(tmp_path / "a.png", ramp()), save(tmp_path / "b.png", ramp().T)
    with pytest.raises(MismatchError, match=r"b.png: found 4 x 6 pixels, wanted 6 x 4") as error:
        images.read([good, bad], GREY)
    assert "-resize '6x4!'" in error.value.hint


@pytest.mark.parametrize(
    ("array", "message", "hint"),
    [
        (np.stack([ramp(), ramp() + 5, ramp()], -1), "found colours", "-colorspace Gray"),
        (np.stack([ramp()] * 4, -1), "found transparent pixels", "-flatten"),
    ],
)
def test_what_the_model_cannot_see_is_refused(tmp_path, array, message, hint):
    file = save(tmp_path / "a.png", array)
    with pytest.raises(MismatchError, match=message) as error:
        images.read([file], GREY)
    assert hint in error.value.hint


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(ramp().astype(np.uint16) * 256).save(tmp_path / "a.png")
    with pytest.raises(MismatchError, match="more than 8 bits") as error:
        images.read([tmp_path / "a.png"], GREY)
    assert "-depth 8" in error.value.hint


def test_pillow_missing_is_met_with_the_pip_command(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match="needs PIL") as error:
        images.write_grid(tmp_path / "a.png", np.zeros((1, 1, 2, 2)))
    assert error.value.hint == "run: pip install 'edgegen[images]'"


def test_ctrl_c_in_the_middle_of_writing_leaves_the_old_picture(tmp_path):
    file = save(tmp_path / "a.png", ramp())
    old, png = file.read_bytes(), Image.SAVE["PNG"]

    def interrupted(image, stream, name):
        stream.write(b"half")
        raise KeyboardInterrupt

    Image.register_save("PNG", interrupted)  # Pillow's own way to put in another writer
    try:
        with pytest.raises(KeyboardInterrupt):
            images.write_grid(file, np.zeros((1, 1, 2, 2)))
    finally:
        Image.register_save("PNG", png)
    assert file.read_bytes() == old
    assert list(tmp_path.iterdir()) == [file]
