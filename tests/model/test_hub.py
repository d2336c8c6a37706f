"""Hugging Face folders: theirs read here, ours read there, bit for bit; damaged and hostile ones refused."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import jax
import ml_dtypes
import numpy as np
import pytest

from jaxllm.model.config import RopeScaling, preset
from jaxllm.model.convert import HuggingFaceState
from jaxllm.model.hub import find_tensors, read_hugging_face, write_hugging_face
from jaxllm.model.params import abstract_params
from jaxllm.model.tensor_file import LARGEST_HEADER, read_header
from jaxllm.model.transformer import forward

NANO = preset("nano", vocab_size=96)
FAMILIES = {
    "gpt2": dataclasses.replace(NANO, norm="layer", mlp="gelu", positions="learned", bias="all", kv_heads=4),
    "llama": dataclasses.replace(NANO, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16), tied_embedding=False),
    "qwen2": dataclasses.replace(NANO, bias="qkv", norm_eps=1e-6),
    "qwen3": dataclasses.replace(NANO, qk_norm=True, head_dim=16),
    "gemma2": dataclasses.replace(NANO, norm="rms_plus_one", mlp="geglu", post_norms=True, windows=(7, 0),
                                  attention_softcap=2.0, logit_softcap=3.0, query_scale=10 ** -0.5,
                                  scale_embedding=True),
}


def weights(config, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(dtype), abstract_params(config))


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8), strict=True),
                 ours, theirs)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", FAMILIES)
def test_round_trip_is_bitwise_in_any_number_of_shards(tmp_path, kind, dtype):
    params = weights(FAMILIES[kind], dtype)
    for shard_bytes in (10**9, 20_000, 1):
        folder = tmp_path / str(shard_bytes)
        folder.mkdir()
        write_hugging_face(folder, params, FAMILIES[kind], shard_bytes=shard_bytes)
        back, config = read_hugging_face(folder)
        assert config == FAMILIES[kind]
        assert_same(back, params)
        shards = [path.stat().st_size for path in folder.glob("*.safetensors")]
        assert len(shards) == {10**9: 1, 20_000: len(shards), 1: len(HuggingFaceState(params, config))}[shard_bytes]
        assert shard_bytes != 20_000 or (len(shards) > 2 and max(shards) < 20_000 + 4096)


@pytest.mark.parametrize("kind", [
    pytest.param(kind, marks=[pytest.mark.slow] * (kind != "gemma2")) for kind in FAMILIES])
def test_transformers_loads_what_is_written_here_and_gives_the_same_logits(tmp_path, kind):
    torch = pytest.importorskip("torch", reason="needs the extra `interop`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `interop`")
    params, config = weights(FAMILIES[kind]), FAMILIES[kind]
    write_hugging_face(tmp_path, params, config, shard_bytes=20_000)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    tokens = np.random.default_rng(1).integers(0, 96, (1, 40))
    theirs = model(input_ids=torch.tensor(tokens)).logits.detach().numpy()
    ours = jax.jit(forward, static_argnums=1)(jax.device_put(params), config, tokens.astype(np.int32))
    assert theirs.std() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_transformers_writes_is_read_here(tmp_path, dtype):
    """Their sharding, their config.json (of transformers 5), their tied head; and our own way back, bit for bit."""
    torch = pytest.importorskip("torch", reason="needs the extra `interop`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `interop`")
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.Gemma2Config(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=56, head_dim=16, max_position_embeddings=128)).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    params, config = read_hugging_face(tmp_path / "theirs")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    (tmp_path / "ours").mkdir()
    write_hugging_face(tmp_path / "ours", params, config)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert again.dtype == getattr(torch, dtype)
    for (name, tensor), (other, twin) in zip(theirs.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other and torch.equal(tensor, twin), name


def test_safetensors_own_reader_agrees(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra `interop`")
    params = weights(NANO)
    params["final_norm"]["scale"] = params["final_norm"]["scale"].astype(np.float16)  # two dtypes in one file
    write_hugging_face(tmp_path, params, NANO)
    theirs, ours = safetensors.load_file(tmp_path / "model.safetensors"), HuggingFaceState(params, NANO)
    assert set(theirs) == set(ours)
    for name, array in theirs.items():
        np.testing.assert_array_equal(array, ours[name], strict=True)


# What is wrong is listed

def rewrite(folder, change):
    """Writes the one weights file of a folder again after `change` of its tensors."""
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra `interop`")
    tensors = safetensors.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def place_shard(folder, name):
    places = {tensor: name for tensor in read_header(folder / "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("damage, message", [
    (lambda f: rewrite(f, lambda t: t.pop(UP)), f"{UP} is missing"),
    (lambda f: rewrite(f, lambda t: t.update({"extra.weight": t[NORM]})), "extra.weight is unknown"),
    (lambda f: rewrite(f, lambda t: t.update({UP: t[UP].T.copy(), NORM: t[NORM][:3].copy()})),
     r"up_proj.weight has shape \(32, 96\), not \(96, 32\); model.norm.weight has shape \(3,\), not \(32,\)"),
    (lambda f: rewrite(f, lambda t: t.update({NORM: t[NORM].astype(np.int32)})), "a tensor of I32; only F32, F16"),
    (lambda f: rewrite(f, lambda t: t.update({UP: t[UP].astype(np.float16)})),
     "up_proj.weight is of float16, other layers of float32"),
    (lambda f: rewrite(f, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1})),
     "lm_head.weight is not the embedding"),
    (lambda f: edit_config(f, model_type="mamba"), "config.json: model_type 'mamba' is not supported; choose"),
    (lambda f: edit_config(f, num_hidden_layers=10**9), "has 1000000000 layers, the checkpoint only 20 tensors"),
    (lambda f: edit_config(f, hidden_size=10**30), "has shape"),
    (lambda f: edit_config(f, rope_scaling=[1]), "config.json"),
    (lambda f: edit_config(f, head_dim="8"), "config.json: model.head_dim must be a positive integer"),
    (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json is damaged: not JSON"),
    (lambda f: (f / "config.json").write_text("[]"), "config.json is damaged: not a JSON object"),
    (lambda f: place_shard(f, "../model.safetensors"), r"names the shard '../model.safetensors'; a shard is"),
    (lambda f: place_shard(f, "/etc/passwd"), "names the shard '/etc/passwd'"),
    (lambda f: place_shard(f, "..\\model.safetensors"), "names the shard"),
    (lambda f: place_shard(f, "other.safetensors"), "other.safetensors is missing, though"),
    (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}'), "is damaged: its weight"),
    (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors"}}'),
     "holds .*, which model.safetensors.index.json does not place there"),
    (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pytorch_model.bin, a pickle, which can run"),
    (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor"),
])
def test_a_folder_that_is_not_whole_is_refused_with_what_is_wrong(tmp_path, damage, message):
    write_hugging_face(tmp_path, weights(NANO), NANO)
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_hugging_face(tmp_path)


def cache_of(folder, repository):
    """Hugging Face's cache of a folder: its files as blobs, and a snapshot of links to them."""
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(repository / "blobs" / f"{i:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{i:040x}")
    return snapshot


def test_links_are_followed_in_the_folder_and_in_hugging_face_s_cache(tmp_path):
    params = weights(NANO)
    (tmp_path / "plain").mkdir()
    write_hugging_face(tmp_path / "plain", params, NANO, shard_bytes=20_000)
    snapshot = cache_of(tmp_path / "plain", tmp_path / "models--a--b")
    (tmp_path / "alias").symlink_to(snapshot)
    for folder in (snapshot, tmp_path / "alias"):
        assert_same(read_hugging_face(folder)[0], params)
    (tmp_path / "one").mkdir()
    write_hugging_face(tmp_path / "one", params, NANO)
    (tmp_path / "one" / "model.safetensors").rename(tmp_path / "one" / "weights")
    (tmp_path / "one" / "model.safetensors").symlink_to("weights")
    assert_same(read_hugging_face(tmp_path / "one")[0], params)


@pytest.mark.parametrize("name, shard_bytes", [("config.json", 20_000), ("model.safetensors.index.json", 20_000),
                                               ("model-00002-of-", 20_000), ("model.safetensors", 10**9)])
def test_a_link_out_of_the_folder_is_refused(tmp_path, name, shard_bytes):
    (tmp_path / "plain").mkdir()
    write_hugging_face(tmp_path / "plain", weights(NANO), NANO, shard_bytes=shard_bytes)
    name = next(path.name for path in (tmp_path / "plain").iterdir() if path.name.startswith(name))
    snapshot = cache_of(tmp_path / "plain", tmp_path / "models--a--b")
    blob = (snapshot / name).resolve()
    blob.rename(tmp_path / "elsewhere")
    message = f"{name} is a link to {tmp_path}/elsewhere, outside the folder, and is not followed"
    blob.symlink_to(tmp_path / "elsewhere")  # by way of the blobs
    with pytest.raises(ValueError, match=message):
        read_hugging_face(snapshot)
    (snapshot / name).unlink()
    (snapshot / name).symlink_to("../../../elsewhere")
    with pytest.raises(ValueError, match=message):
        read_hugging_face(snapshot)
    blob.unlink()
    (tmp_path / "elsewhere").rename(blob)
    (snapshot / name).unlink()
    (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    read_hugging_face(snapshot)
    (tmp_path / "models--a--b" / "snapshots").rename(tmp_path / "models--a--b" / "others")  # blobs of no cache
    with pytest.raises(ValueError, match="is a link to .*, outside the folder"):
        read_hugging_face(tmp_path / "models--a--b" / "others" / snapshot.name)


def header(text: bytes, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("raw, message", [
    (b"", "is no safetensors file"),
    (b"\xff" * 8 + b"{}", "is no safetensors file"),
    ((LARGEST_HEADER + 1).to_bytes(8, "little") + b"{}", "is no safetensors file"),
    (header(b"not json"), "damaged header"),
    (header(b'{"a":' * 50_000), "damaged header"),
    (header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"1234"), "cut short"),
    (header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"12345"), "has 67 bytes"),
    (header(b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}', b"1234"), "cannot have 4 bytes"),
    (header(b'{"a":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,0]}}'), "cannot have 0"),
    (header(b'{"a":{"dtype":"F32","shape":[-1,-1],"data_offsets":[0,4]}}', b"1234"), "-1 is no size"),
    (header(b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', b"1234"), "True is no size"),
    (header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}', b"1234"), "-4 is no size"),
    (header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],'
            b'"data_offsets":[0,4]}}', b"1234"), "b does not begin where"),
    (header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"12345678"), "a does not begin where"),
    (header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],'
            b'"data_offsets":[0,4]}}', b"1234"), "stands in it twice"),
    (header(b'{"a":{"dtype":"P32","shape":[1],"data_offsets":[0,4]}}', b"1234"), "'P32' is unknown"),
    (header(b'{"a":[]}'), "damaged header"),
    (header(b'[]'), "damaged header"),
])
def test_a_header_that_lies_is_refused_before_anything_is_allocated(tmp_path, raw, message):
    (tmp_path / "model.safetensors").write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            find_tensors(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(raw) + 2**20
    finally:
        tracemalloc.stop()


def test_a_file_that_gets_shorter_while_it_is_read_is_an_error_and_not_a_crash(tmp_path):
    write_hugging_face(tmp_path, weights(NANO), NANO)
    tensors = find_tensors(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 5000)
    with pytest.raises(ValueError, match="ends inside a tensor; it is cut short"):
        for tensor in tensors.values():
            tensor.read()


def mutations(draw, raw: bytes, head: int) -> bytes:
    """Some bytes changed, mostly in the first `head`, or the file cut."""
    out = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.one_of(st.integers(0, min(head, len(raw)) - 1), st.integers(0, len(raw) - 1)))
        kind = draw(st.sampled_from(("set", "set", "set", "insert", "cut", "drop", "large")))
        if kind == "insert":
            out[place:place] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "cut":
            del out[max(place, 1):]
        elif kind == "drop":
            del out[place:place + draw(st.integers(1, 9))]
        elif kind == "large":
            out[place:place + 8] = draw(st.sampled_from((b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\0\0\0\0\0\0\1\0")))
        else:
            out[place:place + 1] = bytes([draw(st.integers(0, 255))])
    return bytes(out)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    config = dataclasses.replace(NANO, layers=1, dim=8, heads=2, kv_heads=1, head_dim=4, mlp_dim=8, vocab_size=8)
    write_hugging_face(folder, weights(config), config)
    return folder, (folder / "model.safetensors").read_bytes()


@hypothesis.given(data=st.data())
@hypothesis.settings(deadline=None, max_examples=int(os.environ.get("JAXLLM_FUZZ", "100")),
                     suppress_health_check=list(hypothesis.HealthCheck))
def test_fuzzed_files_are_read_or_refused(small_folder, data):
    folder, raw = small_folder
    length = int.from_bytes(raw[:8], "little")
    (folder / "model.safetensors").write_bytes(mutations(data.draw, raw, 8 + length))
    try:
        read_hugging_face(folder)
    except ValueError as error:
        assert str(error)


# Memory

MEASURE = """
import re, sys
import numpy as np
from jaxllm.model.hub import read_hugging_face, write_hugging_face
import jax
from jaxllm.model.config import preset
from jaxllm.model.params import abstract_params
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
config = preset("tiny", layers=16, dim=256, head_dim=64, mlp_dim=1024)
before = peak()
if sys.argv[1] == "read":
    params, _ = read_hugging_face(sys.argv[2])
    result = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
else:
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 2, np.float32), abstract_params(config))
    result = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    write_hugging_face(sys.argv[2], params, config, shard_bytes=8_000_000)
print(before, result, peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's count of peak memory")
def test_peak_memory_is_the_result_and_less_than_one_shard(tmp_path):
    for way in ("write", "read"):
        run = subprocess.run([sys.executable, "-c", MEASURE, way, str(tmp_path)], capture_output=True, text=True,
                             check=True, cwd=pathlib.Path(__file__).parents[2],
                             env={**os.environ, "JAX_PLATFORMS": "cpu"})
        before, result, peak = map(int, run.stdout.split())
        largest = max(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
        print(f"{way}: result {result / 1e6:.1f} MB, largest shard {largest / 1e6:.1f} MB, peak over the start "
              f"{(peak - before) / 1e6:.1f} MB")
        assert result > 60e6 and largest < 8.1e6
        assert 0.9 * result < peak - before <= result + 1.3 * largest
