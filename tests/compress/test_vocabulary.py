"""A smaller vocabulary: which tokens go, and that text still comes back as it was."""

import json

import msgspec
import numpy as np
import pytest
import torch

from edgegen import checkpoint
from edgegen.batches import Material, byte_level_bpe
from edgegen.compress import Setting, Work, compress, prune
from edgegen.compress import _vocabulary as vocabulary
from edgegen.compress.prune import Options
from edgegen.data import END
from edgegen.errors import MismatchError, NotFoundError, UnsupportedError, UsageError
from edgegen.models import gpt
from edgegen.recipe import Gate, Recipe, Step
from edgegen.spec import ModelSpec

pytest.importorskip("tokenizers", reason="text needs tokenizers")
TEXT = "the sea was calm and the boats were small against the light of the morning\n" * 40
OTHER = "zebra zinc zoo\n" * 40
GPT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
FEWER = Options(ratio=0.05, parts=("vocabulary",))


@pytest.fixture
def work():
    tokenizer = byte_level_bpe(TEXT + OTHER, 320)
    end = tokenizer.token_to_id(END)
    config = GPT | {"vocab_size": 320, "bos_token_id": end, "eos_token_ids": [end]}
    torch.manual_seed(0)
    spec = ModelSpec("gpt", config)
    return Work(spec, checkpoint.build(spec).eval(), tokenizer.to_str().encode())


@pytest.fixture
def setting(tmp_path):
    def make(work, text=""):
        material = None
        if text:
            ids = np.array(vocabulary.open_tokenizer(work.tokenizer).encode(text).ids, np.int64)
            config = msgspec.convert(work.spec.config, gpt.Config)
            material = Material(ids, ids, config, 17, work.tokenizer)
        return Setting(work, material, tmp_path / "step")

    return make


def logits(net, ids):
    ids = torch.tensor([ids])
    with torch.no_grad():
        positions = torch.arange(ids.shape[1])[None]
        return net(ids, torch.ones_like(ids), positions, *net.empty_cache(1))[0]


@pytest.mark.parametrize("tied", [True, False])
def test_the_tokens_that_stay_get_the_very_logits_they_had(work, setting, tied):
    if not tied:
        spec = ModelSpec("gpt", work.spec.config | {"tie_word_embeddings": False})
        work = work._replace(spec=spec, net=checkpoint.build(spec).eval())
    gone = vocabulary.choose_tokens(work, 0.05, None)
    small, new = vocabulary.without_tokens(work, gone)
    assert small.spec.config["vocab_size"] == 304
    some = list(new)[::37][:6]
    before, after = logits(work.net, some), logits(small.net, [new[i] for i in some])
    assert torch.equal(before[..., list(new)], after)
    assert small.spec.config["eos_token_ids"] == [new[work.spec.config["eos_token_ids"][0]]]


@pytest.mark.parametrize("text", ["", TEXT])
def test_text_comes_back_as_it_was(work, setting, text):
    small = prune.apply(work, FEWER, setting(work, text))
    reader = vocabulary.open_tokenizer(small.tokenizer)
    assert reader.get_vocab_size() == 304
    assert max(reader.get_vocab().values()) == 303
    for sample in (TEXT, OTHER, "日本 \N{GRINNING FACE}\t\0"):
        ids = reader.encode(sample).ids
        assert reader.decode(ids) == sample
        assert max(ids) < 304
    assert reader.token_to_id(END) == small.spec.config["bos_token_id"]


def test_tokens_that_the_data_does_not_use_go_first(work, setting):
    small = prune.apply(work, FEWER, setting(work, TEXT))
    gone = small.notes["vocabulary"]["gone"]
    assert small.notes["vocabulary"]["chosen_by"] == "use in the data"
    assert len(gone) == 16
    assert any("z" in token for token in gone)
    kept = vocabulary.open_tokenizer(small.tokenizer)
    assert kept.token_to_id("Ġthe") is not None


def test_the_bytes_and_the_end_stay_and_every_merge_has_its_parts(work):
    most = vocabulary.choose_tokens(work, 63 / 320, None)
    small, _ = vocabulary.without_tokens(work, most)
    file = json.loads(small.tokenizer)
    assert len(file["model"]["vocab"]) == 257
    assert file["model"]["merges"] == []
    half, _ = vocabulary.without_tokens(work, vocabulary.choose_tokens(work, 0.1, None))
    file = json.loads(half.tokenizer)
    for left, right in file["model"]["merges"]:
        assert {left, right, left + right} <= file["model"]["vocab"].keys()


def test_data_is_read_again_in_the_tokens_that_stay(work, setting):
    place = setting(work, TEXT)
    small = prune.apply(work, FEWER, place)
    again = vocabulary.recoded(place.material, work.tokenizer, small)
    reader = vocabulary.open_tokenizer(small.tokenizer)
    assert reader.decode(again.training.tolist()) == TEXT
    assert again.config.vocab_size == 304


def test_a_smaller_vocabulary_is_trained_in_its_own_tokens(work, setting, tmp_path):
    options = Options(ratio=0.05, parts=("vocabulary",), steps=3, batch=2)
    small = prune.apply(work, options, setting(work, TEXT))
    assert small.notes["recovery"][0]["steps"] == 3
    checkpoint.save(tmp_path / "c", small.spec, small.net, (), small.tokenizer)
    assert checkpoint.load(tmp_path / "c").spec == small.spec


def test_rows_without_a_token_go_before_any_other(work):
    config = work.spec.config | {"vocab_size": 330}
    wide = work._replace(spec=ModelSpec("gpt", config))
    known = vocabulary.open_tokenizer(work.tokenizer).get_vocab_size()
    gone = vocabulary.choose_tokens(wide, 5 / 330, None)
    assert gone == list(range(known, known + 5))


def test_more_tokens_than_may_go_are_refused(work, setting):
    with pytest.raises(UsageError, match="160 of 320 tokens asked for, but only 63") as caught:
        prune.apply(work, Options(ratio=0.5, parts=("vocabulary",)), setting(work))
    assert "at most 0.19" in caught.value.hint


def test_other_tokenizers_are_refused(work, setting):
    with pytest.raises(NotFoundError, match="no tokenizer"):
        prune.apply(work._replace(tokenizer=None), FEWER, setting(work))
    file = json.loads(work.tokenizer)
    file["model"]["type"] = "Unigram"
    with pytest.raises(UnsupportedError, match="of type Unigram"):
        prune.apply(work._replace(tokenizer=json.dumps(file).encode()), FEWER, setting(work))


def test_a_tokenizer_that_loses_characters_is_refused(work):
    file = json.loads(work.tokenizer)
    alphabet = file["model"]["vocab"]
    new = {i: n for n, i in enumerate(i for t, i in alphabet.items() if t != "Q")}
    with pytest.raises(MismatchError, match="the smaller tokenizer loses 'Q'"):
        vocabulary.rewritten(file, new)


def test_ids_around_a_text_and_old_merges_are_rewritten_too(work):
    file = json.loads(work.tokenizer)
    file["model"]["merges"] = [" ".join(pair) for pair in vocabulary.merges(file)]
    end = file["model"]["vocab"][END]
    file["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": END, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {END: {"id": END, "ids": [end], "tokens": [END]}},
    }
    work = work._replace(tokenizer=json.dumps(file).encode())
    small, new = vocabulary.without_tokens(work, vocabulary.choose_tokens(work, 0.1, None))
    assert vocabulary.open_tokenizer(small.tokenizer).encode("the sea").ids[0] == new[end]
    place = {"sep": ["</s>", end], "cls": ["<s>", end]}
    vocabulary._renumber(place, {end: 7})
    assert place == {"sep": ["</s>", 7], "cls": ["<s>", 7]}


def test_a_teacher_answers_in_the_tokens_that_are_left(work):
    gone = vocabulary.choose_tokens(work, 0.1, None)
    small, new = vocabulary.without_tokens(work, gone)
    twice, _ = vocabulary.without_tokens(small, vocabulary.choose_tokens(small, 0.05, None))
    ids = list(new)[:12]
    teacher = vocabulary.likewise(work, small)
    want = logits(work.net, ids)[..., list(new)]
    torch.testing.assert_close(logits(teacher.net, [new[i] for i in ids]), want)
    again = vocabulary.likewise(work, twice)
    assert vocabulary._ids(vocabulary.read(again)) == vocabulary._ids(vocabulary.read(twice))
    assert vocabulary.likewise(work, work) is work


def test_a_teacher_with_rows_that_are_no_token_loses_them_first(work):
    config = work.spec.config | {"vocab_size": 330}
    spec = ModelSpec("gpt", config)
    wide = Work(spec, checkpoint.build(spec).eval(), work.tokenizer)
    small, _ = vocabulary.without_tokens(wide, vocabulary.choose_tokens(wide, 20 / 330, None))
    left = vocabulary.likewise(wide, small).spec.config["vocab_size"]
    assert left == small.spec.config["vocab_size"] == 310


def test_a_teacher_of_other_tokens_is_refused(work):
    other = byte_level_bpe("quite another text, with words of its own " * 40, 300)
    spec = ModelSpec("gpt", work.spec.config | {"vocab_size": other.get_vocab_size()})
    strange = Work(spec, checkpoint.build(spec), other.to_str().encode())
    with pytest.raises(MismatchError, match="which are not a part of the original's 320") as error:
        vocabulary.likewise(work, strange)
    assert "--original" in error.value.hint


@pytest.fixture
def source(work, tmp_path):
    checkpoint.save(tmp_path / "gpt", work.spec, work.net, (), work.tokenizer)
    (tmp_path / "prose.txt").write_text(TEXT + OTHER)
    return tmp_path / "gpt", f"text:{tmp_path / 'prose.txt'}"


TOKENS_GO = Step("prune", {"ratio": 0.1, "parts": ["vocabulary"]})


@pytest.mark.slow
def test_later_steps_read_and_compare_in_the_tokens_that_are_left(source, tmp_path):
    path, data = source
    lessons = {"steps": 2, "batch": 2, "every": 1}
    steps = (
        TOKENS_GO,
        Step("distil", lessons | {"output": 1.0, "data": 0.0, "lr": 1e-9}),
        Step("lora", lessons | {"rank": 2, "output": 1.0}),
        Step("quantize", {"bits": 4, "method": "gptq"}),
    )
    entries = compress(path, Recipe(steps), tmp_path / "out", data=data, measure=False)
    # The student still is the teacher without those tokens: fed with old ids, it would be far off.
    assert entries[1].notes["curve"][0]["loss"] < 1e-6
    assert checkpoint.load(tmp_path / "out").spec.config["vocab_size"] == 288


@pytest.mark.slow
def test_the_gate_counts_by_the_byte_where_tokens_are_others(source, tmp_path):
    path, data = source
    gate = Gate(repeats=1, rounds=1)
    (entry,) = compress(
        path, Recipe((TOKENS_GO,), gate), tmp_path / "out", data=data, keep_anyway=True
    )
    assert set(entry.verdict.after.quality) == {"bits_per_byte"}
    assert "perplexity" in entry.verdict.before.quality
    strict = Gate(repeats=1, rounds=1, quality={"perplexity": "+5%"})
    with pytest.raises(UsageError, match="step 1 takes tokens away, and perplexity") as error:
        compress(path, Recipe((TOKENS_GO,), strict), tmp_path / "no", data=data)
    assert "bits_per_byte" in error.value.hint
