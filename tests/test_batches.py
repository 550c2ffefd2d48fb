import numpy as np
import pytest

from edgegen import batches, data
from edgegen.errors import NotFoundError, UsageError

SMALL = {"max_position_embeddings": 16, "vocab_size": 300}
SENTENCE = "It was the best of times, it was the worst of times — naïvely. "


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(SENTENCE * 60, encoding="utf-8")
    return f"text:{path}"


def test_the_configuration_fits_the_images():
    material = batches.prepare("vae", "digits", {"latent": "5"})
    assert (material.config.image_size, material.config.channels) == (8, 1)
    assert material.config.latent == 5
    assert (len(material.training), len(material.held_out)) == (1618, 179)


def test_every_image_is_seen_once_in_each_epoch():
    material = batches.Material(np.arange(10), np.arange(0), None)
    seen = np.concatenate([batches.take(material, 4, step, seed=7) for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_a_batch_follows_from_seed_and_step_alone():
    material = batches.Material(np.arange(100), np.arange(0), None)
    first = batches.take(material, 8, 41, seed=1)
    batches.take(material, 8, 3, seed=1)
    assert np.array_equal(first, batches.take(material, 8, 41, seed=1))
    assert not np.array_equal(first, batches.take(material, 8, 41, seed=2))


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [
        ({"widht": "8"}, "unknown field `widht`", "did you mean 'width'?"),
        ({"width": "0"}, r"Expected `int` >= 1 - at `\$.width`", ""),
        ({"width": "-3"}, "Expected `int` >= 1", ""),
        ({"width": "1000000000"}, "Expected `int` <= 1024", ""),
        ({"width": "wide"}, "Expected `int`, got `str`", ""),
        ({"likelihood": "normal"}, "Invalid enum value 'normal'", ""),
        ({"image_size": "16"}, "image_size=16, but the data has 8", "leave --config image_size"),
    ],
)
def test_a_field_that_makes_no_sense_is_named(config, message, hint):
    with pytest.raises(UsageError, match=message) as error:
        batches.prepare("vae", "digits", config)
    assert error.value.hint.startswith(hint) and error.value.hint


def test_families_and_data_must_match(book):
    with pytest.raises(UsageError, match="vae cannot be trained on --data text") as error:
        batches.prepare("vae", book, {})
    assert error.value.hint == "use --data digits, idx:DIR or images:DIR"
    with pytest.raises(UsageError, match="gpt cannot be trained on --data digits") as error:
        batches.prepare("gpt", "digits", {})
    assert error.value.hint == "use --data text:FILES"


def test_an_unknown_family_gets_a_guess():
    with pytest.raises(NotFoundError, match=r"no 'gtp' in edgegen\.models") as error:
        batches.prepare("gtp", "digits", {})
    assert error.value.hint == "did you mean 'gpt'?"


def test_pictures_must_be_square_and_more_than_one(tmp_path):
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="1 image, wanted at least 2"):
        batches.prepare("vae", f"images:{tmp_path}", {})
    for name in "ab":
        Image.new("L", (8, 6)).save(tmp_path / f"{name}.png")
    with pytest.raises(UsageError, match="8x6 pixels, wanted squares") as error:
        batches.prepare("vae", f"images:{tmp_path}", {})
    assert error.value.hint == "crop the images"


def test_any_text_comes_back_from_the_tokenizer():
    tokenizer = batches.byte_level_bpe(SENTENCE, 300)
    for text in (SENTENCE, "日本 🙂 \t\n  é", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("times").ids) < 5
    assert tokenizer.encode(data.END).ids == [tokenizer.token_to_id(data.END)]


def test_training_the_tokenizer_twice_gives_the_same_bytes(book):
    one, two = (batches.prepare("gpt", book, SMALL) for _ in range(2))
    assert one.tokenizer == two.tokenizer
    assert one.sha256() == two.sha256()


def test_text_becomes_windows_and_the_configuration_learns_the_tokenizer(book):
    material = batches.prepare("gpt", book, SMALL)
    batch = batches.take(material, 3, 0, seed=0)
    assert (batch.shape, batch.dtype) == ((3, 17), np.int64)
    assert batch.max() < material.config.vocab_size <= 300
    assert material.config.eos_token_ids == (material.config.bos_token_id,)
    held = batches.validation(material)
    assert held.shape[1] == 17
    assert np.array_equal(held[0], material.held_out[:17])
    assert np.array_equal(held[-1], material.held_out[-17:])


def test_a_vocabulary_without_room_for_all_bytes_is_refused(book):
    with pytest.raises(UsageError, match="vocab_size=100, wanted at least 257") as error:
        batches.prepare("gpt", book, {"vocab_size": "100"})
    assert error.value.hint == "use --config vocab_size=1024"


def test_too_little_text_is_refused(tmp_path):
    (tmp_path / "short.txt").write_text("Call me Ishmael.")
    with pytest.raises(UsageError, match="tokens to train on and 2 held out, wanted 257") as error:
        batches.prepare("gpt", f"text:{tmp_path / 'short.txt'}", {})
    assert "max_position_embeddings=N" in error.value.hint
