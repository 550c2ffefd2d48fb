import re

import msgspec
import numpy as np
import pytest

from edgegen import bundle as bundles
from edgegen import records
from edgegen.bundle import MANIFEST, Manifest, open_bundle
from edgegen.errors import FormatError, MissingExtraError, NotFoundError, UsageError
from edgegen.text import TextStream, Tokenizer, open_tokenizer

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def with_manifest(bundle, **fields):
    manifest = records.read(Manifest, bundle / MANIFEST)
    records.write(msgspec.structs.replace(manifest, **fields), bundle / MANIFEST)
    return open_bundle(bundle)


def with_template(bundle, toys, template, **fields):
    loop = msgspec.structs.replace(toys.TEXT, chat_template=template, **fields)
    return open_tokenizer(with_manifest(bundle, loop=loop))


@pytest.fixture
def tokenizer(text_bundle):
    return open_tokenizer(open_bundle(text_bundle))


@pytest.mark.parametrize("text", ["Hello", "naïve café", "日本語 🙂", "\n\t ", "a\x00b"])
def test_text_comes_back_from_its_ids(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids == tuple(text.encode())
    assert tokenizer.decode(ids) == text


def test_special_tokens_are_left_out_of_text(tokenizer, toys):
    assert tokenizer.encode("a<|end|>b") == (97, toys.END, 98)
    assert tokenizer.decode((97, toys.END, 98)) == "ab"


def feed_all(stream, ids):
    pieces = [stream.feed(i, last=n == len(ids)) for n, i in enumerate(ids, 1)]
    assert "".join(pieces) == stream.text
    return pieces


@pytest.mark.parametrize("text", ["Hello", "naïve café", "日本語 🙂🙂", "e\u0301\u200d👩\u200d👩"])
def test_a_stream_never_gives_half_a_character(tokenizer, text):
    pieces = feed_all(TextStream(tokenizer, (), ()), text.encode())
    assert "".join(pieces) == text
    assert [p for p in pieces if p] == list(text)


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_add_up_to_what_decoding_them_at_once_gives(tokenizer, seed):
    rng = np.random.default_rng(seed)
    # Mostly bytes of 2 to 4 byte characters, in any order.
    ids = rng.choice([65, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x99, 0x82, 0xFF], 60).tolist()
    assert "".join(feed_all(TextStream(tokenizer, (), ()), ids)) == tokenizer.decode(ids)


def test_a_character_cut_off_by_the_end_is_shown_as_broken(tokenizer):
    stream = TextStream(tokenizer, (), (256,))
    assert [stream.feed(i) for i in (0x41, 0xE2, 0x82)] == ["A", "", ""]
    assert stream.feed(256) == "\N{REPLACEMENT CHARACTER}"
    assert stream.done


def words(text):
    """A tokenizer over whole words whose decoder drops the space before the first."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = {f"▁{w}": i for i, w in enumerate(dict.fromkeys(text.split()))}
    library = Library(models.WordLevel(vocabulary, unk_token="▁?"))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    return library


def test_spaces_between_words_survive_streaming(toys):
    tokenizer = Tokenizer("words", words("the cat sat on mat"), toys.TEXT)
    ids = tokenizer.encode("the cat sat on the mat")
    assert feed_all(TextStream(tokenizer, (), ()), ids)[:3] == ["the", " cat", " sat"]


@pytest.mark.parametrize(
    ("stop", "text", "want"),
    [
        (["END"], "abcENDxyz", "abc"),
        (["b"], "abc", "a"),
        (["END", "cE"], "abcENDxyz", "ab"),
        (["ENDE"], "abcENDxENENDE!", "abcENDxEN"),
        (["aab"], "aaab", "a"),
        (["é!"], "café!?", "caf"),
        (["\n\n"], "one\ntwo\n\nthree", "one\ntwo"),
        (["zzz"], "abczz", "abczz"),
    ],
)
def test_text_ends_before_the_first_stop_string(tokenizer, stop, text, want):
    stream = TextStream(tokenizer, stop, ())
    given = ""
    for n, byte in enumerate(text.encode(), 1):
        given += stream.feed(byte, last=n == len(text.encode()))
        assert want.startswith(given)  # nothing is ever taken back
        if stream.done:
            break
    assert (given, stream.text, stream.done) == (want, want, True)


def test_text_that_may_be_a_stop_string_is_held_until_it_is_not(tokenizer):
    stream = TextStream(tokenizer, ["END"], ())
    assert [stream.feed(b) for b in b"aENx"] == ["a", "", "", "ENx"]


def test_an_empty_stop_string_is_refused(tokenizer):
    with pytest.raises(UsageError, match="an empty stop string"):
        TextStream(tokenizer, ["a", ""], ())


def test_a_chat_puts_the_prompt_into_the_template(text_bundle, toys):
    tokenizer = with_template(text_bundle, toys, CHATML)
    assert tokenizer.chat("Hi") == "<|user|>Hi<|end|><|assistant|>"
    ids = tokenizer.encode("Hi", chat=True)
    assert ids == (*b"<|user|>Hi", toys.END, *b"<|assistant|>")


def test_a_template_has_what_transformers_offers(text_bundle, toys):
    tokenizer = with_template(
        text_bundle,
        toys,
        "{%- for m in messages %}\n{{ m | tojson }}{% break %}{% endfor %} {{ strftime_now('%Y') }}"
        "{{ bos_token }}",
        bos=65,
    )
    assert re.fullmatch(r'{"role": "user", "content": "é"} 20\d\dA', tokenizer.chat("é"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for %}", "its chat template fails"),
        ("{{ ''.__class__.__mro__ }}", "is unsafe|__class__"),
        ("{{ messages.append(1) }}", "its chat template fails"),
    ],
)
def test_a_template_that_fails_or_escapes_is_stopped(text_bundle, toys, template, message):
    with pytest.raises(FormatError, match=message) as error:
        with_template(text_bundle, toys, template).chat("Hi")
    assert "leave out --chat" in error.value.hint


def test_without_a_template_there_is_no_chat(tokenizer):
    with pytest.raises(UsageError, match="there is no chat template") as error:
        tokenizer.encode("Hi", chat=True)
    assert error.value.hint == "leave out --chat"


def test_an_empty_prompt_is_the_beginning_token_or_an_error(tokenizer, text_bundle, toys):
    with pytest.raises(UsageError, match="the prompt is empty"):
        tokenizer.encode("")
    assert with_template(text_bundle, toys, "", bos=7).encode("") == (7,)


def test_a_prompt_that_is_not_unicode_is_said(tokenizer):
    with pytest.raises(UsageError, match="not valid UTF-8"):
        tokenizer.encode("\udcff")


def test_a_prompt_is_neither_cut_nor_padded(text_bundle):
    import tokenizers

    file = text_bundle / "tokenizer.json"
    library = tokenizers.Tokenizer.from_file(str(file))
    library.enable_truncation(3)
    library.enable_padding(length=10)
    library.save(str(file))
    bundle = with_manifest(text_bundle, files=bundles.sums(text_bundle))
    assert open_tokenizer(bundle).encode("Hello") == tuple(b"Hello")
    assert open_tokenizer(bundle).encode("H") == tuple(b"H")


def test_a_text_bundle_without_a_tokenizer_is_said(text_bundle):
    (text_bundle / "tokenizer.json").unlink()
    bundle = with_manifest(text_bundle, files=bundles.sums(text_bundle))
    with pytest.raises(NotFoundError, match=r"tokenizer.json is missing") as error:
        open_tokenizer(bundle)
    assert "export again" in error.value.hint


def test_an_altered_or_broken_tokenizer_is_named(text_bundle):
    (text_bundle / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match=r"tokenizer.json: altered or truncated"):
        open_tokenizer(open_bundle(text_bundle))
    bundle = with_manifest(text_bundle, files=bundles.sums(text_bundle))
    with pytest.raises(FormatError, match=r"tokenizer.json: not a tokenizer"):
        open_tokenizer(bundle)


def test_an_image_bundle_has_no_tokenizer(image_bundle):
    with pytest.raises(UsageError, match="is no text model"):
        open_tokenizer(open_bundle(image_bundle))


@pytest.mark.parametrize("library", ["tokenizers", "jinja2"])
def test_a_missing_library_is_met_with_the_pip_command(text_bundle, toys, monkeypatch, library):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(MissingExtraError, match=f"needs {library}") as error:
        with_template(text_bundle, toys, CHATML).chat("Hi")
    assert error.value.hint == "run: pip install 'edgegen[text]'"


def test_a_corpus_counts_every_byte_of_the_text_once(toys, text_bundle):
    """One token a byte here, and of a character of several bytes the first token has them all."""
    tokenizer = open_tokenizer(open_bundle(text_bundle))
    text = "aé€😀\n b"
    ids, sizes = tokenizer.corpus(text, "<end>")
    assert ids.tolist() == list(text.encode())
    assert sizes.tolist() == [1, 2, 0, 3, 0, 0, 4, 0, 0, 0, 1, 1, 1]


def test_what_stands_between_two_texts_becomes_the_models_end_of_no_bytes(toys, text_bundle):
    tokenizer = open_tokenizer(open_bundle(text_bundle))
    ids, sizes = tokenizer.corpus("ab<end>c<end>", "<end>")
    assert ids.tolist() == [97, 98, toys.END, 99, toys.END]
    assert sizes.tolist() == [1, 1, 0, 1, 0]


def test_a_model_without_an_end_reads_a_new_paragraph_there(text_bundle):
    tokenizer = open_tokenizer(open_bundle(text_bundle))
    tokenizer._text = msgspec.structs.replace(tokenizer._text, eos=())
    assert tokenizer.corpus("a<end>b", "<end>")[0].tolist() == [97, 10, 10, 98]
