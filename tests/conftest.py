"""Two toy bundles on disk for the in-memory engine (`runtime="callable"`): no torch, no engine.

`text_bundle`   a language model over bytes (ids 0-255, end of text 256): every logit is exact
                arithmetic on its key/value cache; `next_token` is what greedy must answer.
`image_bundle`  a VAE on one grey channel: `decoder` paints each of 4 latents over a quarter of an
                8 x 8 image, `encoder` reads them back exactly.

Both hold golden data and true hashes, so every command that reads a bundle can be tried on them.
They open in this process only: a fresh one has to `callable.register` the functions first.
"""

import signal
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from edgegen import bundle as bundles
from edgegen import records
from edgegen.bundle import Artifact, Case, Layer, Manifest, OneShot, Text
from edgegen.runtimes import callable as in_memory
from edgegen.spec import GraphSpec, TensorSpec

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A suite in the background ignores Ctrl+C, and so would the commands that it sends one.
    signal.signal(signal.SIGINT, signal.default_int_handler)

END = 256
VOCABULARY = 257
POSITIONS = 64
LAYERS = 2
TEXT = Text(VOCABULARY, POSITIONS, layers=LAYERS, kv_heads=1, head_dim=1, eos=(END,))
IMAGES = OneShot("decoder", image="image", pixels=(0.0, 1.0), encoder="encoder")


def caches(prefix, time):
    names = [f"{prefix}.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    return tuple(TensorSpec(name, "float32", ("batch", 1, time, 1)) for name in names)


MODEL = GraphSpec(
    "model",
    (
        TensorSpec("input_ids", "int64", ("batch", "seq"), 0, VOCABULARY - 1),
        TensorSpec("attention_mask", "int64", ("batch", "past+seq"), 0, 1),
        TensorSpec("position_ids", "int64", ("batch", "seq"), 0, POSITIONS - 1),
        *caches("past_key_values", "past"),
    ),
    (
        TensorSpec("logits", "float32", ("batch", "seq", VOCABULARY)),
        *caches("present", "past+seq"),
    ),
    {"seq": POSITIONS, "past": POSITIONS, "past+seq": POSITIONS},
)
ENCODER = GraphSpec(
    "encoder",
    (TensorSpec("image", "float32", ("batch", 1, 8, 8), 0, 1),),
    (TensorSpec("mean", "float32", ("batch", 4)), TensorSpec("logvar", "float32", ("batch", 4))),
)
DECODER = GraphSpec(
    "decoder",
    (TensorSpec("latent", "float32", ("batch", 4)),),
    (TensorSpec("image", "float32", ("batch", 1, 8, 8)),),
)


def toy_text(feed):
    """Logits that fall off around a target: the masked sum of (id + 2) * (position + 1), mod 257.

    Every layer's key is id + 2 and its value is position + 1; all layers must agree.
    """
    ids, positions = feed["input_ids"], feed["position_ids"]  # (batch, seq)
    past = feed["past_key_values.0.key"].shape[2]
    out = {}
    for layer in range(LAYERS):
        for part, new in (("key", ids + 2), ("value", positions + 1)):
            old = feed[f"past_key_values.{layer}.{part}"]  # (batch, 1, past, 1)
            fresh = new[:, None, :, None].astype(np.float32)
            out[f"present.{layer}.{part}"] = np.concatenate([old, fresh], axis=2)
    terms = [out[f"present.{n}.key"] * out[f"present.{n}.value"] for n in range(LAYERS)]
    mean = np.mean(terms, axis=0)[:, 0, :, 0] * feed["attention_mask"]  # (batch, past + seq)
    target = np.cumsum(mean, axis=1)[:, past:] % VOCABULARY  # (batch, seq)
    distance = np.abs(np.arange(VOCABULARY) - target[..., None])
    return {"logits": (-distance / 4).astype(np.float32)} | out


def next_token(ids):
    """The token toy_text finds most likely after `ids`."""
    return sum((i + 2) * (p + 1) for p, i in enumerate(ids)) % VOCABULARY


def continuation(prompt, new_tokens):
    """Greedy text by hand: up to `new_tokens` ids after `prompt`, the end token left out."""
    ids = list(prompt)
    while len(ids) < len(prompt) + new_tokens and (token := next_token(ids)) != END:
        ids.append(token)
    return ids[len(prompt) :]


def toy_decoder(feed):
    quarters = feed["latent"].reshape(-1, 1, 2, 2)
    return {"image": quarters.repeat(4, axis=2).repeat(4, axis=3)}


def toy_encoder(feed):
    mean = np.ascontiguousarray(feed["image"][:, 0, ::4, ::4]).reshape(-1, 4)
    return {"mean": mean, "logvar": np.zeros_like(mean)}


FUNCTIONS = {"toy-text": toy_text, "toy-decoder": toy_decoder, "toy-encoder": toy_encoder}
for _name, _function in FUNCTIONS.items():
    in_memory.register(_name, _function)


def byte_tokenizer():
    """tokenizer.json of a tokenizer whose ids are the bytes of the text, plus the end token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    # GPT-2's alphabet: a printable byte stands for itself, the others follow from U+0100 on.
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in plain]
    vocabulary = {chr(byte): byte for byte in plain}
    vocabulary |= {chr(256 + n): byte for n, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return tokenizer.to_str()


def write_bundle(folder, family, loop, graphs, cases, files=None, **fields):
    """A bundle of registered functions; `graphs` maps a name to (spec, function name).

    `fields` replaces any of the manifest's: `precision="int8"`, `format_version=99`.
    """
    folder.mkdir(parents=True)
    artifacts = []
    for name, (_, function) in graphs.items():
        path = "model.callable" if name == "model" else f"{name}/model.callable"
        records.write(in_memory.File(function), folder / path)
        layer = Layer("weight", "Linear", "fp32", 4)
        artifacts.append(Artifact(name, "callable", path, (layer,)))
    for file, content in (files or {}).items():
        (folder / file).write_text(content)
    bundles.write_golden(cases, folder / bundles.GOLDEN)
    manifest = Manifest(
        format_version=bundles.FORMAT_VERSION,
        name=folder.name,
        created="2026-11-21T00:00:00Z",
        family=family,
        config={},
        loop=loop,
        precision="fp32",
        parameters=4,
        graphs=tuple(spec for spec, _ in graphs.values()),
        artifacts=tuple(artifacts),
        files=bundles.sums(folder),
    )
    records.write(msgspec.structs.replace(manifest, **fields), folder / bundles.MANIFEST)
    return folder


def text_case(name, ids, past):
    batch = len(ids)
    inputs = {
        "input_ids": np.array(ids, np.int64),
        "attention_mask": np.ones((batch, past + len(ids[0])), np.int64),
        "position_ids": np.tile(np.arange(past, past + len(ids[0])), (batch, 1)),
    }
    inputs |= {s.name: np.ones((batch, 1, past, 1), np.float32) for s in MODEL.inputs[3:]}
    return Case("model", name, inputs, toy_text(inputs))


def text_files():
    return {"tokenizer.json": byte_tokenizer()}


@pytest.fixture(scope="session")
def toys():
    """Everything in this file by name: `toys.next_token`, `toys.write_bundle`, `toys.MODEL`, ..."""
    return SimpleNamespace(**globals())


@pytest.fixture
def text_bundle(tmp_path):
    """The path of a text bundle."""
    cases = [text_case("batch-1", [[72, 105]], 0), text_case("batch-2", [[1, 2], [3, 4]], 3)]
    return write_bundle(
        tmp_path / "toy-text", "gpt", TEXT, {"model": (MODEL, "toy-text")}, cases, text_files()
    )


@pytest.fixture
def image_bundle(tmp_path):
    """The path of an image bundle with a decoder and an encoder."""
    latent = {"latent": np.arange(8, dtype=np.float32).reshape(2, 4) / 8}
    image = toy_decoder(latent)
    cases = [
        Case("decoder", "batch-2", latent, image),
        Case("encoder", "batch-2", image, toy_encoder(image)),
    ]
    graphs = {"decoder": (DECODER, "toy-decoder"), "encoder": (ENCODER, "toy-encoder")}
    return write_bundle(tmp_path / "toy-vae", "vae", IMAGES, graphs, cases)


@pytest.fixture(scope="session")
def make_profile():
    """A profile of made-up but realistic samples: each repeat is a little slow or fast as a whole,
    each step a little more, and one in twenty is far out."""
    from edgegen.profile import SCHEMA_VERSION, Profile
    from edgegen.spec import Request

    def make(seed=0, scale_ms=10.0, repeats=20, tokens=0, **fields):
        rng = np.random.default_rng(seed)
        repeat = np.exp(rng.normal(0, 0.02, (repeats, 1)))
        steps = repeat * np.exp(rng.normal(0, 0.02, (repeats, tokens + 1)))
        steps *= 1 + (rng.random(steps.shape) < 0.05) * rng.exponential(0.3, steps.shape)
        steps *= scale_ms
        request = Request(prompt_tokens=8, new_tokens=tokens + 1) if tokens else Request()
        profile = Profile(
            schema_version=SCHEMA_VERSION,
            bundle="toy",
            bundle_sha256="0" * 64,
            family="gpt" if tokens else "vae",
            precision="fp32",
            format="onnx",
            engine="onnxruntime",
            engine_version="1.0",
            device="cpu",
            device_name="a processor",
            threads=0,
            request=request,
            warmup=3,
            repeats=repeats,
            load_ms=50.0,
            cold_ms=20.0,
            first_ms=tuple(steps[:, 0].tolist()),
            steps_ms=tuple(map(tuple, steps[:, 1:].tolist())),
            size_mb=4.0,
            created="2026-11-21T00:00:00+00:00",
            peak_rss_mb=80.0,
        )
        return msgspec.structs.replace(profile, **fields)

    return make


@pytest.fixture
def onnx_bundle(tmp_path):
    """A bundle that ONNX Runtime can open in any process: 4 latents to an 8 x 8 image."""
    onnx = pytest.importorskip("onnx", reason="the toy graph is built with onnx")
    weight = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("MatMul", ["latent", "weight"], ["flat"]),
        onnx.helper.make_node("Reshape", ["flat", "shape"], ["image"]),
    ]
    tensors = onnx.numpy_helper.from_array, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "decoder",
        [tensors[1]("latent", onnx.TensorProto.FLOAT, ["batch", 4])],
        [tensors[1]("image", onnx.TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [tensors[0](weight, "weight"), tensors[0](np.array([-1, 1, 8, 8]), "shape")],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    folder = tmp_path / "toy-onnx"
    (folder / "decoder").mkdir(parents=True)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=10),
        folder / "decoder/model.onnx",
    )
    manifest = Manifest(
        format_version=bundles.FORMAT_VERSION,
        name="toy-onnx",
        created="2026-11-21T00:00:00Z",
        family="vae",
        config={},
        loop=OneShot("decoder", image="image"),
        precision="fp32",
        parameters=256,
        graphs=(DECODER,),
        artifacts=(Artifact("decoder", "onnx", "decoder/model.onnx", ()),),
        files=bundles.sums(folder),
        quality={"elbo_nats": 31.5},
    )
    records.write(manifest, folder / bundles.MANIFEST)
    return folder


# Real bundles, of tiny models with random weights: exported once a session, when first asked for.

EXPORTS = {
    "gpt": (("onnx", "openvino"), ("fp32", "fp16", "int8", "int4")),
    "vae": (("onnx", "openvino"), ("fp32", "fp16", "int8")),
    "gan": (("onnx", "openvino"), ("fp32", "int8")),
    "gpt-torch": (("torch",), ("fp32",)),
    "gan-torch": (("torch",), ("fp32",)),
}


def tiny_config(family):
    from edgegen import rooms

    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": POSITIONS}
    sizes |= {"eos_token_ids": (END,)}
    return rooms.load("edgegen.models", family).Config(**(sizes if family == "gpt" else {}))


def tiny_net(family):
    """Random weights, embeddings large enough that no two logits are nearly equal."""
    torch = pytest.importorskip("torch", reason="the models are torch's")
    from edgegen import rooms

    torch.manual_seed(0)
    net = rooms.load("edgegen.models", family).Net(tiny_config(family)).eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "embed_tokens" in name:
                weight.normal_(std=0.3)
    return net


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """`tiny_checkpoint("gpt")`: the path of a checkpoint of an untrained tiny model."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def make(family):
        net = tiny_net(family)
        from edgegen import checkpoint
        from edgegen.spec import ModelSpec

        if not (folder / family).is_dir():
            tokenizer = byte_tokenizer().encode() if family == "gpt" else None
            spec = ModelSpec(family, msgspec.to_builtins(tiny_config(family)))
            checkpoint.save(folder / family, spec, net, (), tokenizer)
        return folder / family

    return make


@pytest.fixture(scope="session")
def exports(tmp_path_factory, tiny_checkpoint):
    """`exports("gpt", "int8")`: the path of a bundle in ONNX and OpenVINO; see `EXPORTS`."""
    folder = tmp_path_factory.mktemp("exports")

    def get(name, precision="fp32"):
        formats, precisions = EXPORTS[name]
        path = folder / (name if len(precisions) == 1 else f"{name}-{precision}")
        if not path.is_dir():
            source = str(tiny_checkpoint(name.partition("-")[0]))
            from edgegen.export import export

            export(source, folder / name, formats=formats, precisions=precisions)
        return path

    return get
