"""GGUF both ways: llama.cpp runs what is written here, `gguf` reads the same numbers, damaged files are refused."""

import dataclasses
import json
import lzma
import os
import struct
import tracemalloc
import urllib.request

import hypothesis
import jax
import ml_dtypes
import numpy as np
import pytest
from test_hub import FAMILIES, mutations, weights

from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.data.tokenizer_gguf import tokenizer_from_gguf, tokenizer_to_gguf
from jaxllm.data.tokenizer_split import PATTERNS
from jaxllm.model.config import RopeScaling
from jaxllm.model.gguf_file import TYPES, read_gguf_file, type_number
from jaxllm.model.gguf_names import config_from_metadata, rope_factors_of
from jaxllm.model.gguf_read import read_gguf
from jaxllm.model.gguf_write import SCHEMES, write_gguf
from jaxllm.model.transformer import forward

gguf = pytest.importorskip("gguf", reason="needs the extra `gguf`")
TOKENIZER = train_tokenizer(["the old cat sat upon the mat and the rat ran. " * 20], 283, "digits")
# Wider than a block of 32, and than the tokenizer; llama.cpp asks for a query scale of H ** -0.5 in Gemma-2.
CONFIGS = {kind: dataclasses.replace(config, vocab_size=288, dim=64, head_dim=16, mlp_dim=96,
                                     query_scale=16 ** -0.5 if kind == "gemma2" else None)
           for kind, config in FAMILIES.items()}


def metadata(config):
    return tokenizer_to_gguf(TOKENIZER, config.vocab_size, "{{ messages }}")


@pytest.mark.parametrize("kind", CONFIGS)
def test_written_and_read_again(tmp_path, kind):
    """F32 is bitwise (Gemma's norms, of which one is taken away again, to rounding); others to their own rounding."""
    config, params = CONFIGS[kind], weights(CONFIGS[kind])
    for scheme, tolerance in zip(SCHEMES, (1e-7, 1e-3, 1e-2, 0.2), strict=True):
        path = tmp_path / f"{scheme}.gguf"
        write_gguf(path, params, config, metadata(config), scheme=scheme)
        back, found = read_gguf(path)
        assert found == config
        exact = scheme == "F32" and kind != "gemma2"
        worst = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, back)))
        assert worst == 0 if exact else 0 < worst < tolerance
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".gguf")] == []


def test_tensors_are_what_the_package_reads(tmp_path):
    """Every type that is read, against the package's reader and dequantisers; K-quants from random blocks."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "all.gguf", "llama")
    for number, (name, block, block_bytes) in TYPES.items():
        kind, values = gguf.GGMLQuantizationType(number), rng.standard_normal((3, 512), np.float32)
        assert gguf.GGML_QUANT_SIZES[kind] == (block, block_bytes)
        if "_K" in name:
            raw = rng.integers(0, 60, (3, 512 // block * block_bytes), np.uint8)
        else:
            raw = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
    for part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        part()
    writer.close()
    file = read_gguf_file(tmp_path / "all.gguf")
    for tensor in gguf.GGUFReader(tmp_path / "all.gguf").tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        ours = file.tensors[tensor.name].read()
        np.testing.assert_array_equal(ours, expected.reshape(3, 512), err_msg=tensor.name)
        assert ours.dtype == np.float32 and np.abs(ours).max() > 0.01


def test_metadata_and_tokenizer_come_back(tmp_path):
    config = CONFIGS["llama"]
    write_gguf(tmp_path / "a.gguf", weights(config), config, metadata(config), name="a name")
    file = read_gguf_file(tmp_path / "a.gguf")
    theirs = gguf.GGUFReader(tmp_path / "a.gguf")
    for key, value in file.metadata.items():
        assert value == theirs.fields[key].contents(), key
    assert len(file.metadata) == len([key for key in theirs.fields if not key.startswith("GGUF.")])
    tokenizer = tokenizer_from_gguf(file.metadata)
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.fingerprint == TOKENIZER.fingerprint and tokenizer.ranks == TOKENIZER.ranks


# llama.cpp

def serve(path):
    """llama.cpp in this process, on one thread, with a cache that is not rounded."""
    library = pytest.importorskip("xllamacpp", reason="needs the package xllamacpp (llama.cpp)")
    params = library.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(path), 512, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = library.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return library.Server(params)


def llama_cpp(path, prompts, width, likeliest=None):
    """float [prompt, V]: llama.cpp's log-probabilities after each prompt, NaN beyond the `likeliest`."""
    server, out = serve(path), np.full((len(prompts), width), np.nan)
    for row, prompt in zip(out, prompts, strict=True):
        # The bias forces a token that is whole text; the log-probabilities are those before it.
        answer = server.handle_completions({
            "prompt": prompt, "n_predict": 1, "n_probs": likeliest or width, "temperature": 0.0, "ignore_eos": True,
            "logit_bias": [["a", 1000.0]]})
        answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
        for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            row[entry["id"]] = entry["logprob"]
    return out


@pytest.mark.parametrize("pattern", PATTERNS)
def test_llama_cpp_cuts_text_as_we_do(tmp_path, pattern):
    text = ("It's 12345 cats' mats, I'LL x=1;\n\n  def f(x):\n\treturn \u00fcber \u0441\u043b\u043e\u0432\u043e  "
            "HTTPServer 99 !! (\n x")
    tokenizer = train_tokenizer([text * 3, "the cats' mats, 12345 12345 "], 310, pattern)
    config = dataclasses.replace(CONFIGS["qwen2"], vocab_size=320)
    write_gguf(tmp_path / "a.gguf", weights(config), config, tokenizer_to_gguf(tokenizer, 320, "{{ 1 + 1 }}"))
    server = serve(tmp_path / "a.gguf")

    def ask(path, **content):
        request = urllib.request.Request(f"{server.listening_address}/{path}", json.dumps(content).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    for piece in [text, *text.split("\n"), "12345678", "a  1  2"]:
        assert ask("tokenize", content=piece)["tokens"] == tokenizer.encode(piece), piece
    assert ask("apply-template", messages=[{"role": "user", "content": "x"}])["prompt"] == "2"


@pytest.mark.parametrize("kind", CONFIGS)
def test_llama_cpp_agrees(tmp_path, kind):
    """Prompts of 1, 12 and 40 tokens, over the window and the original context. Its GELU is a table in float16."""
    config, params = CONFIGS[kind], weights(CONFIGS[kind])
    tokens = np.random.default_rng(1).integers(0, 283, 40)
    ours = jax.nn.log_softmax(jax.jit(forward, static_argnums=1)(params, config, tokens[None].astype(np.int32)))[0]
    assert np.std(ours) > 0.5
    prompts = [tokens[:n].tolist() for n in (1, 12, 40)]
    for scheme, tolerance in (("F32", 2e-3 if kind in ("gpt2", "gemma2") else 1e-4), ("F16", 2e-2)):
        path = tmp_path / f"{scheme}.gguf"
        write_gguf(path, params, config, metadata(config), scheme=scheme)
        theirs = llama_cpp(path, prompts, 288)
        difference = np.abs(theirs - np.asarray(ours)[[0, 11, 39]])
        print(f"{kind} {scheme}: log-probabilities differ by at most {difference.max():.1e}")
        assert difference.max() < tolerance


@pytest.mark.parametrize("scheme, rounding", [("Q8_0", 0.0), ("Q4_0", 0.15)])
def test_llama_cpp_reads_our_levels(tmp_path, scheme, rounding):
    """Its log-probabilities against ours on the file's numbers: it rounds activations to int8, which is all that they
    differ by. The weights before Q4_0 are farther off."""
    config, params, path = CONFIGS["llama"], weights(CONFIGS["llama"]), tmp_path / "a.gguf"
    write_gguf(path, params, config, metadata(config), scheme=scheme)
    tokens = np.random.default_rng(1).integers(0, 283, 12)
    run = jax.jit(forward, static_argnums=1)
    ours, before = (np.asarray(jax.nn.log_softmax(run(tree, config, tokens[None].astype(np.int32))))[0, -1]
                    for tree in (read_gguf(path)[0], params))
    theirs = llama_cpp(path, [tokens.tolist()], 288)[0]
    difference, moved = np.abs(theirs - ours).max(), np.abs(theirs - before).max()
    print(f"{scheme}: log-probabilities differ by at most {difference:.1e}, from those before rounding by {moved:.1e}")
    assert difference < 0.1 and moved > rounding


# Real weights

@pytest.fixture(scope="module")
def smollm2(real_weights):
    file = read_gguf_file(real_weights("SmolLM2-135M-Instruct.Q4_1.gguf"))
    params, config = read_gguf(file)
    return jax.device_put(params), config, tokenizer_from_gguf(file.metadata)


@pytest.mark.slow
def test_smollm2_knows_english_and_the_capital_of_france(smollm2, real_data):
    params, config, tokenizer = smollm2
    text = lzma.open(real_data("text/wikitext2_valid.txt.xz")).read().decode()[:20_000]
    tokens = np.array(tokenizer.encode(text)[:1024], np.int32)
    run = jax.jit(forward, static_argnums=1)
    logp = jax.nn.log_softmax(run(params, config, tokens[None]))[0]
    nll = -np.asarray(logp)[np.arange(1023), tokens[1:]].mean()
    print(f"SmolLM2-135M: mean NLL {nll:.4f} nats on the first 1,024 tokens of WikiText-2 valid")
    assert abs(nll - 2.5436) < 2e-4, nll
    prompt = np.array([tokenizer.encode("The capital of France is")], np.int32)
    assert tokenizer.decode([int(run(params, config, prompt)[0, -1].argmax())]) == " Paris"


@pytest.mark.slow
def test_llama_cpp_runs_the_real_model(smollm2, real_data, tmp_path):
    """Per scheme: log-probabilities of the 200 likeliest tokens, llama.cpp against ours on the file's numbers.

    llama.cpp rounds activations to float16 before F16 matrices, and to int8 before quantised ones. The control of that
    is the F16 file's numbers once more, as F32: there the two agree.
    """
    params, config, tokenizer = smollm2
    text = lzma.open(real_data("text/wikitext2_valid.txt.xz")).read().decode()[:20_000]
    tokens, prefixes = tokenizer.encode(text)[:64], (4, 16, 64)
    run = jax.jit(forward, static_argnums=1)
    named = tokenizer_to_gguf(tokenizer, config.vocab_size, tokenizer.chat_template)
    path = tmp_path / "model.gguf"
    worst, values = {}, {}
    for scheme in ("F16", "F16 as F32", "Q8_0"):
        write_gguf(path, values.get(scheme, params), config, named, scheme=scheme.split()[-1])
        back, _ = read_gguf(path)
        if scheme == "F16":
            values["F16 as F32"] = back
        ours = np.asarray(jax.nn.log_softmax(run(back, config, np.array(tokens, np.int32)[None])))[0]
        nll = -ours[np.arange(63), tokens[1:]].mean()
        theirs = llama_cpp(path, [tokens[:n] for n in prefixes], config.vocab_size, 200)
        difference = np.abs(theirs - ours[[n - 1 for n in prefixes]])
        worst[scheme] = np.nanmax(difference)
        print(f"SmolLM2-135M {scheme}: {path.stat().st_size / 1e6:.1f} MB, NLL of 63 tokens {nll:.4f} (ours, on the "
              f"file's numbers), llama.cpp differs by at most {worst[scheme]:.1e}, {np.nanmean(difference):.1e} on "
              f"average")
        path.unlink()
    assert worst["F16 as F32"] < 1e-3 and worst["F16"] < 0.05 and worst["Q8_0"] < 2


# What is wrong is refused

@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    config = dataclasses.replace(CONFIGS["llama"], dim=8, heads=2, kv_heads=1, head_dim=4, mlp_dim=8, layers=1,
                                 vocab_size=283)
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    tokenizer = metadata(config) | {"tokenizer.ggml.tokens": ["a"] * 3, "tokenizer.ggml.token_type": [1] * 3,
                                    "tokenizer.ggml.merges": ["a a"]}
    write_gguf(path, weights(config), config, tokenizer, scheme="F32")
    return path, path.read_bytes()


def patched(raw: bytes, key: bytes, value: bytes, offset: int = 4) -> bytes:
    """`raw` with the value of a scalar key (its kind stands `offset` before) replaced."""
    place = raw.index(struct.pack("<Q", len(key)) + key) + 8 + len(key) + offset
    return raw[:place] + value + raw[place + len(value):]


HUGE = struct.pack("<Q", 2**62)


@pytest.mark.parametrize("damage, message", [
    (lambda raw: b"", "is no GGUF file"),
    (lambda raw: b"GGML" + raw[4:], "is no GGUF file"),
    (lambda raw: raw[:4] + struct.pack(">I", 3) + raw[8:], "GGUF version 50331648 is not read"),
    (lambda raw: raw[:8] + HUGE + raw[16:], "claims .* keys and 4611686018427387904 tensors"),
    (lambda raw: raw[:16] + HUGE + raw[24:], "claims 4611686018427387904 keys"),
    (lambda raw: raw[:24] + HUGE + raw[32:], "claims a text of 4611686018427387904 bytes"),
    (lambda raw: patched(raw, b"tokenizer.ggml.tokens", HUGE, 8), "claims a list of 4611686018427387904 items"),
    (lambda raw: patched(raw, b"tokenizer.ggml.token_type", struct.pack("<Q", 2**23), 8), "claims 33554432 more bytes"),
    (lambda raw: patched(raw, b"tokenizer.ggml.merges", struct.pack("<Q", 2**23), 8), "claims 8388608 texts"),
    (lambda raw: patched(raw, b"llama.block_count", struct.pack("<I", 10**9)), "000000 layers, but only 13 tensors"),
    (lambda raw: patched(raw, b"llama.embedding_length", struct.pack("<I", 2**31 - 1)), "has shape"),
    (lambda raw: patched(raw, b"llama.attention.head_count", struct.pack("<I", 0)), "head_count is 0; it must be a"),
    (lambda raw: patched(raw, b"llama.rope.freq_base", struct.pack("<f", np.nan)), "freq_base is nan"),
    (lambda raw: raw.replace(b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama",
                             b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0mamba"), "'mamba' is not supported"),
    (lambda raw: raw.replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_xp.weight"),
     "blk.0.ffn_up.weight is missing; blk.0.ffn_xp.weight is unknown"),
    (lambda raw: patched(raw, b"blk.0.ffn_up.weight", HUGE), "has shape"),
    (lambda raw: patched(raw, b"blk.0.ffn_up.weight", struct.pack("<I", 9), 0), "has 9 dimensions"),
    (lambda raw: patched(raw, b"blk.0.ffn_up.weight", struct.pack("<I", 12), 20), "does not fit into the file"),
    (lambda raw: patched(raw, b"blk.0.ffn_up.weight", struct.pack("<I", 99), 20), "of ggml's type 99; read are F32"),
    (lambda raw: patched(raw, b"blk.0.ffn_up.weight", struct.pack("<Q", 0), 24), "overlaps another"),
    (lambda raw: patched(raw, b"blk.0.ffn_up.weight", struct.pack("<Q", 2**40), 24), "does not fit into the file"),
    (lambda raw: raw[:-40], "does not fit into the file"),
    (lambda raw: raw[:200], "is damaged or cut short"),
])
def test_a_file_that_lies_is_refused_with_bounded_memory(tmp_path, small_file, damage, message):
    path = tmp_path / "model.gguf"
    raw = damage(small_file[1])
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as error:
            read_gguf(path)
        assert str(path) in str(error.value)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(raw) + 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("key, value, message", [
    ("llama.rope.scaling.type", "yarn", "rope.scaling.type is yarn, which is not supported"),
    ("llama.rope.scaling.factor", 4.0, "rope.scaling.factor is 4.0, which is not supported .only 1 or 0."),
    ("llama.rope.scale_linear", 0.5, "rope.scale_linear is 0.5, which is not supported .only 1 or 0."),
    ("llama.expert_count", 8, "expert_count is 8"),
    ("llama.rope.dimension_count", 2, "rope.dimension_count is 2, which is not supported"),
    ("llama.attention.sliding_window", 7, "sliding_window is 7"),
    ("llama.context_length", "many", "context_length is many; it must be a positive whole number"),
    ("jaxllm.rope_scaling.factor", 3.0, "not Llama-3's scaling of rotary"),
])
def test_what_is_not_computed_here_is_refused(small_file, key, value, message):
    file = read_gguf_file(small_file[0])
    with pytest.raises(ValueError, match=message):
        read_gguf(dataclasses.replace(file, metadata=file.metadata | {key: value}))
    plain = {f"llama.rope.{key}": value for key, value in (("scaling.type", "none"), ("scaling.factor", 1.0),
                                                           ("scale_linear", 0.0))}
    assert read_gguf(dataclasses.replace(file, metadata=file.metadata | plain))[1] == read_gguf(file)[1]
    with pytest.raises(ValueError, match=message):  # a type of "none" excuses nothing
        read_gguf(dataclasses.replace(file, metadata=file.metadata | plain | {key: value}))


def test_what_cannot_be_written_is_refused(tmp_path):
    config = CONFIGS["gemma2"]
    with pytest.raises(ValueError, match="query_scale is 0.5, but llama.cpp would take 0.25"):
        other = dataclasses.replace(config, query_scale=0.5)
        write_gguf(tmp_path / "a.gguf", weights(other), other, {})
    with pytest.raises(ValueError, match="scheme 'Q2' is unknown; choose one of F32"):
        write_gguf(tmp_path / "a.gguf", weights(config), config, {}, scheme="Q2")
    large = weights(config)
    large["blocks"]["mlp"]["up"][0, 0, 0] = 1e5
    with pytest.raises(ValueError, match="up_proj.weight holds 1e.05, which F16 cannot; write F32"):
        write_gguf(tmp_path / "a.gguf", large, config, metadata(config))
    (tmp_path / "b.gguf").touch()
    with pytest.raises(FileExistsError, match="is there already"):
        write_gguf(tmp_path / "b.gguf", weights(config), config, {})
    assert [path.name for path in tmp_path.iterdir()] == ["b.gguf"]


def test_llama3_rope_factors_alone_are_recognised(small_file):
    """Published files have the tensor and not our keys: the scaling of Llama-3.1, or nothing."""
    file = read_gguf_file(small_file[0])
    bare = {key: value for key, value in file.metadata.items() if not key.startswith("jaxllm.rope")}
    with pytest.raises(ValueError, match="not Llama-3's scaling"):  # this one is of a context of 16
        read_gguf(dataclasses.replace(file, metadata=bare))
    published = dataclasses.replace(CONFIGS["llama"], rope_theta=5e5, rope_scaling=RopeScaling(32.0), head_dim=64)
    keys = {"rope.freq_base": 5e5, "attention.key_length": 64, "attention.value_length": 64, "rope.dimension_count": 64}
    found = config_from_metadata(bare | {f"llama.{key}": value for key, value in keys.items()}, 283, False,
                                 rope_factors_of(published))
    assert found.rope_scaling == RopeScaling(32.0)


@hypothesis.given(data=hypothesis.strategies.data())
@hypothesis.settings(deadline=None, max_examples=int(os.environ.get("JAXLLM_FUZZ", "100")),
                     suppress_health_check=list(hypothesis.HealthCheck))
def test_fuzzed_files_are_read_or_refused(small_file, tmp_path_factory, data):
    path, raw = small_file
    fuzzed = path.with_name("fuzzed.gguf")
    fuzzed.write_bytes(mutations(data.draw, raw, len(raw) // 2))
    try:
        file = read_gguf_file(fuzzed)
        read_gguf(file)
        tokenizer_from_gguf(file.metadata)
    except ValueError as error:
        assert str(error)


def test_bfloat16_is_kept_apart_from_float16(tmp_path):
    values = np.array([1.0, 1e30, -3e-30], ml_dtypes.bfloat16)
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    kind = gguf.GGMLQuantizationType(type_number("BF16"))
    writer.add_tensor("b", values.view(np.uint8).reshape(1, 6), raw_dtype=kind)
    for part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        part()
    writer.close()
    np.testing.assert_array_equal(read_gguf_file(tmp_path / "b.gguf").tensors["b"].read()[0], values.astype(np.float32))
