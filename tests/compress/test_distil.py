"""Distillation of every family: nothing to learn where both are equal, less to learn after it."""

import copy

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from edgegen import checkpoint, rooms
from edgegen.batches import Material
from edgegen.compress import Setting, Work, distil
from edgegen.compress._lesson import Lesson, _both_players, _projection
from edgegen.compress._weights import Weights
from edgegen.compress.distil import Options
from edgegen.errors import MismatchError, UnsupportedError, UsageError
from edgegen.spec import ModelSpec

GPT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
IMAGES = {"image_size": 8, "width": 4, "latent": 3}
CONFIG = {"gpt": GPT, "vae": IMAGES, "gan": IMAGES}
EVERYTHING = {
    "gpt": Weights(hidden=1, attention=1),
    "vae": Weights(hidden=1),
    "gan": Weights(hidden=1, perceptual=1),
}


def work(family, seed=0, **config):
    torch.manual_seed(seed)
    spec = ModelSpec(family, CONFIG[family] | config)
    net = checkpoint.build(spec).eval()
    if family == "gpt":
        nn.init.normal_(net.embed_tokens.weight)
    return Work(spec, net)


def material(family):
    config = msgspec.convert(CONFIG[family], rooms.load("edgegen.models", family).Config)
    rng = np.random.default_rng(0)
    if family == "gpt":
        tokens = rng.integers(0, 40, 400)
        return Material(tokens, tokens, config, 17)
    images = rng.random((40, 1, 8, 8), np.float32)
    return Material(images, images, config)


@pytest.fixture
def setting(tmp_path):
    def make(teacher, *, data=False, folder="step", **fields):
        found = material(teacher.spec.family) if data else None
        return Setting(teacher, found, tmp_path / folder, **fields)

    return make


def lesson(teacher, student, setting, weights=None, **options):
    weights = weights or EVERYTHING[teacher.spec.family]
    return Lesson(teacher, student, weights, setting, **({"batch": 4} | options))


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("family", ["gpt", "vae", "gan"])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(setting, family, data):
    teacher = work(family)
    twin = teacher._replace(net=copy.deepcopy(teacher.net))
    found = lesson(teacher, twin, setting(teacher, data=data)).loss(0)
    assert set(found) >= {"loss", "output", "hidden"}
    assert [value.item() for value in found.values()] == [0] * len(found)


@pytest.mark.slow
@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("family", ["gpt", "vae", "gan"])
def test_a_smaller_student_comes_closer_to_its_teacher(setting, family, data):
    teacher = work(family)
    before = {n: t.clone() for n, t in teacher.net.state_dict().items()}
    smaller = {"hidden_size": 8, "num_hidden_layers": 1} if family == "gpt" else {"width": 2}
    named = msgspec.structs.asdict(EVERYTHING[family]) | {"data": float(data and family != "vae")}
    options = Options(student=smaller, steps=30, batch=8, lr=1e-2, every=5, **named)
    after = distil.apply(teacher, options, setting(teacher, data=data))
    curve = after.notes["curve"]
    assert curve[-1]["output"] < curve[0]["output"]
    assert after.spec.config == {**after.spec.config, **smaller}
    assert after.notes["batch norms"] == "follow the student"
    assert not after.net.training
    # As a checkpoint it must be what its spec builds, and nothing of the training is left.
    assert set(after.net.state_dict()) == set(checkpoint.build(after.spec).state_dict())
    now = teacher.net.state_dict()
    assert all(torch.equal(now[name], value) for name, value in before.items())


def test_a_damaged_copy_recovers(setting):
    teacher = work("gan")
    hurt = copy.deepcopy(teacher.net)
    with torch.no_grad():
        hurt.average.body[2].weight[:, :2] = 0
    after = distil.apply(
        teacher._replace(net=hurt), Options(steps=40, lr=1e-2, every=10), setting(teacher)
    )
    latent = torch.randn(64, 3, generator=torch.Generator().manual_seed(5))

    def error(net):
        return (net.average(latent) - teacher.net.average(latent)).square().mean().item()

    assert error(after.net) < error(hurt) / 2
    assert after.notes["batch norms"] == "kept"
    # What is trained is what is exported, and the generator starts from the same weights.
    assert torch.equal(after.net.generator(latent), after.net.average(latent))
    assert after.net.generator is not after.net.average
    flags = [{n: p.requires_grad for n, p in net.named_parameters()} for net in (after.net, hurt)]
    assert flags[0] == flags[1]
    assert not torch.equal(hurt.average(latent), after.net.average(latent))


def test_a_gan_keeps_its_adversary_where_data_is_given(setting):
    teacher = work("gan")
    other = work("gan", seed=1)
    options = Options(steps=3, data=1.0, every=1)
    after = distil.apply(other, options, setting(teacher, data=True))
    moved = [not torch.equal(a, b) for a, b in _pairs(other.net, after.net, "discriminator")]
    assert any(moved)
    alone = distil.apply(other, Options(steps=3, every=1), setting(teacher, folder="alone"))
    same = [torch.equal(a, b) for a, b in _pairs(other.net, alone.net, "discriminator")]
    assert all(same)


def _pairs(one, two, part):
    return zip(getattr(one, part).parameters(), getattr(two, part).parameters(), strict=True)


def test_neither_player_of_a_gan_learns_from_the_others_loss(setting):
    from edgegen.models import gan

    net = work("gan").net.train()
    rows = torch.rand(8, 1, 8, 8)
    _both_players(gan, net, rows, torch.Generator().manual_seed(0)).backward()
    found = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    noise = torch.Generator().manual_seed(0)
    for phase in ("generator", "discriminator"):
        losses = gan.loss(net, rows, phase, noise)
        phases = gan.phases(net)[phase]
        grads = torch.autograd.grad(next(iter(losses.values())), phases)
        for parameter, grad in zip(phases, grads, strict=True):
            parameter.grad = grad
    wanted = [p.grad for p in net.parameters() if p.grad is not None]
    # The second forward pass moved the statistics of batch norm, not its normalisation.
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def train(setting, teacher, **options):
    rest = {"student": {"hidden_size": 8}, "steps": 8, "batch": 4, "every": 4, "batches": 3}
    return distil.apply(teacher, Options(**(rest | options)), setting)


def weights(found):
    return {n: t.clone() for n, t in found.net.state_dict().items()}


def test_cached_answers_train_the_same_to_the_last_bit(setting):
    teacher = work("gpt")
    plain = train(setting(teacher, data=True, folder="a"), teacher, hidden=1.0)
    kept = train(setting(teacher, data=True, folder="b"), teacher, hidden=1.0, cache=True)
    assert all(torch.equal(t, weights(plain)[n]) for n, t in weights(kept).items())
    files = {path.name for path in (setting(teacher, folder="b").folder / "teacher").iterdir()}
    assert {"key.json", "done.npy", "model:logits.npy", "hidden 0.npy"} <= files


def test_a_cache_is_asked_again_only_for_another_teacher_or_plan(setting):
    teacher = work("gpt")
    place = setting(teacher, data=True)
    options = {"cache": place.folder, "rounds": 3, "weights": Weights()}
    first = lesson(teacher, work("gpt", 1), place, **options)
    wanted = [first.loss(step)["loss"].item() for step in range(6)]
    assert wanted[:3] == wanted[3:]
    silent = teacher._replace(net=copy.deepcopy(teacher.net))
    again = lesson(silent, work("gpt", 1), place, **options)
    silent.net.register_forward_hook(lambda *_: pytest.fail("the teacher was asked"))
    assert [again.loss(step)["loss"].item() for step in range(3)] == wanted[:3]
    other = work("gpt", 7)
    found = lesson(other, work("gpt", 1), place._replace(original=other), **options)
    assert found.loss(0)["loss"].item() != wanted[0]


def test_top_k_is_small_on_disk_and_near_the_whole(setting):
    teacher, student = work("gpt"), work("gpt", 1)
    place = setting(teacher, data=True)
    whole = lesson(teacher, student, place, Weights()).loss(0)["loss"].item()
    cut = lesson(teacher, student, place, Weights(top_k=30), rounds=2, cache=place.folder / "top")
    assert cut.loss(0)["loss"].item() == pytest.approx(whole, rel=0.1)
    files = {path.name for path in (place.folder / "top").iterdir()}
    assert "model:logits.npy" not in files
    assert {"model:logits.values.npy", "model:logits.indices.npy"} <= files


def test_a_killed_distillation_goes_on_as_if_nothing_had_happened(setting):
    teacher = work("vae")
    options = Options(student={"width": 2}, steps=10, every=5, hidden=1.0)
    wanted = weights(distil.apply(teacher, options, setting(teacher, data=True, folder="a")))

    def kill(what, done, total):
        if done == 7:
            raise KeyboardInterrupt

    cut = setting(teacher, data=True, folder="b", report=kill)
    with pytest.raises(KeyboardInterrupt):
        distil.apply(teacher, options, cut)
    found = weights(distil.apply(teacher, options, setting(teacher, data=True, folder="b")))
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def test_a_module_learns_on_inputs_drawn_from_their_range(tmp_path, setting):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))\n"
    )
    source = f"{tmp_path}/net.py:make"
    config = {"source": source, "inputs": ["input:float32[batch,3]"]}
    spec = ModelSpec("module", config)
    torch.manual_seed(0)
    teacher = Work(spec, checkpoint.build(spec).eval())
    student = Work(spec, checkpoint.build(spec).eval())
    options = Options(steps=150, lr=3e-2, every=10, hidden=1.0, points=("1",))
    after = distil.apply(student, options, Setting(teacher, None, tmp_path / "step"))
    curve = after.notes["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"] / 2
    assert after.notes["learns from"] == "inputs drawn from their range"
    with pytest.raises(UnsupportedError, match="does not say which layers") as error:
        distil.apply(student, Options(hidden=1.0), Setting(teacher, None, tmp_path / "step"))
    assert "leave hidden out" in error.value.hint
    with pytest.raises(UsageError, match="points: '9' matches no layer"):
        options = Options(hidden=1.0, points=("9",))
        distil.apply(student, options, Setting(teacher, None, tmp_path / "step"))
    with pytest.raises(UnsupportedError, match="has no configuration"):
        distil.apply(student, Options(student={"a": 1}), Setting(teacher, None, tmp_path / "step"))


def test_text_without_data_is_what_the_teacher_writes(setting):
    teacher = work("gpt")
    found = train(setting(teacher), teacher, steps=1)
    assert found.notes["learns from"] == "256 texts that the teacher wrote"


@pytest.mark.parametrize(
    ("family", "options", "said", "hint"),
    [
        ("gpt", {}, "the student is the teacher", "student = {...}"),
        (
            "gpt",
            {"student": {"vocab_size": 30}},
            r"input_ids is \[batch, seq\] of 0 to 29",
            "vocabulary",
        ),
        ("gpt", {"student": {"max_position_embeddings": 8}}, "of 0 to 7", "positions"),
        ("gpt", {"student": {"hiden_size": 8}}, "hiden_size", "did you mean 'hidden_size'"),
        ("gpt", {"student": {"hidden_size": "x"}}, "hidden_size", "fields of Config"),
        ("vae", {"student": {"latent": 2}}, r"mean is \[batch, 2\]", "latents"),
        ("gan", {"student": {"image_size": 16}}, r"image is \[batch, 1, 16, 16\]", "image size"),
        ("gan", {"attention": 1.0}, "attention is of text models", "leave attention out"),
        ("vae", {"perceptual": 1.0}, "only a GAN has a discriminator", "leave perceptual out"),
        ("gpt", {"data": 1.0}, "data: a loss on data, but none was given", "--data"),
        ("gpt", {"output": 0.0}, "nothing is compared", "output = 1"),
        ("gpt", {"output": -1.0}, "output is -1", "0 or more"),
        ("gpt", {"temperature": 0.0}, "temperature is 0", "above 0"),
        ("gpt", {"top_k": 41}, "top_k is 41, the vocabulary has 40", ""),
        ("vae", {"top_k": 4}, "top_k is 4", "for text"),
        ("gpt", {"cache": True}, "every step has another batch", "batches = 200"),
        ("gpt", {"batches": -1}, "batches is -1", "always new"),
        ("gpt", {"steps": 0}, "steps is 0", "1 or more"),
        ("gpt", {"lr": 0.0}, "lr is 0", "above 0"),
        ("gpt", {"lr": float("nan")}, "lr is nan", "above 0"),
        ("gan", {"hidden": 1.0, "points": ("discriminator.*",)}, "is not run by what", "exported"),
    ],
)
def test_what_cannot_be_is_refused_with_the_fix(setting, family, options, said, hint):
    teacher = work(family)
    student = {"hidden_size": 8} if family == "gpt" else {"width": 2}
    given = {"student": student} | options if options else {}
    with pytest.raises((UsageError, UnsupportedError), match=said) as error:
        distil.apply(teacher, Options(**({"steps": 1} | given)), setting(teacher))
    assert hint in error.value.hint


def test_no_teacher_is_said(setting):
    student = work("gpt")
    with pytest.raises(UsageError, match="there is no teacher"):
        distil.apply(student, Options(), setting(student)._replace(original=None))


def test_a_new_net_behind_other_steps_is_refused(setting):
    done = work("gpt")
    done = done._replace(spec=msgspec.structs.replace(done.spec, adapters={"a": 1}))
    with pytest.raises(UsageError, match="would throw away what was pruned") as error:
        distil.apply(done, Options(student={"hidden_size": 8}), setting(work("gpt")))
    assert "first" in error.value.hint


def test_layers_of_unlike_resolution_are_not_compared(setting):
    teacher = work("gan")
    options = Options(student={"width": 2}, steps=1, hidden=1.0, points=("average.body.2",))
    assert distil.apply(teacher, options, setting(teacher)).notes["curve"]
    unlike = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 8, 8)
    with pytest.raises(UsageError, match=r"hidden: at b the teacher has \[2, 3, 4, 4\]") as error:
        _projection(*unlike, "b")
    assert "points" in error.value.hint


def test_each_layer_of_a_shallower_student_learns_from_one_further_on(setting):
    longer = work("gpt", num_hidden_layers=3)
    one = lesson(longer, work("gpt"), setting(longer), Weights(hidden=1))
    assert one._pairs() == [(1, 0), (2, 1)]


def test_a_cache_that_would_fill_the_disk_is_refused(setting):
    teacher = work("gpt")
    with pytest.raises(UsageError, match="GB are free") as error:
        train(setting(teacher), teacher, cache=True, batches=10**10)
    assert "top_k" in error.value.hint


def test_a_loss_that_is_no_number_is_an_error(setting):
    teacher = work("vae")
    options = Options(student={"width": 2}, steps=6, lr=1e30)
    with pytest.raises(MismatchError, match=r"(loss is|not finite)"):
        distil.apply(teacher, options, setting(teacher, data=True))
