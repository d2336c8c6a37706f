"""The command: every way between the formats, what rides along, and what is never overwritten."""

import json
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from random_weights import random_weights

from configs import convert as config_file
from experiments import convert as experiment
from jaxllm.data.tokenizer import SPECIAL_TOKENS, load_tokenizer, train_tokenizer
from jaxllm.data.tokenizer_hugging_face import tokenizer_to_hugging_face
from jaxllm.model.config import preset
from jaxllm.model.convert import to_hugging_face
from jaxllm.model.gguf_file import read_gguf_file
from jaxllm.model.hub import find_tensors, read_hugging_face, write_hugging_face
from jaxllm.train.checkpoint import load_model, save_model

TOKENIZER = train_tokenizer(["the old cat sat upon the mat and the rat ran. " * 20], 256 + 12 + len(SPECIAL_TOKENS))
CONFIG = preset("nano", vocab_size=288, tied_embedding=False)


def run(source, target, **changes):
    config = config_file.get_config()
    config.update({"source": str(source), "target": str(target), **changes})
    experiment.main(config, "unused")
    assert [path.name for path in target.parent.iterdir() if path.name.endswith(".tmp")] == []
    return target


def published(folder, dtype=np.float32, mixed=False):
    """A Hugging Face folder as somebody else publishes one: with bits that our files have no place for."""
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), random_weights(CONFIG))
    if mixed:
        params["final_norm"]["scale"] = params["final_norm"]["scale"].astype(np.float32)
    folder.mkdir()
    write_hugging_face(folder, params, CONFIG, shard_bytes=30_000)
    tokenizer_to_hugging_face(TOKENIZER, folder, "{% for m in messages %}{{ m.content }}{% endfor %}<|im_end|>")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=3))
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    (folder / "README.md").write_text("not ours to copy")
    return folder


def tensors(folder):
    return {name: (tensor.dtype, tensor.read().tobytes()) for name, tensor in find_tensors(folder).items()}


@pytest.mark.parametrize("dtype, mixed", [(np.float32, False), (ml_dtypes.bfloat16, False), (ml_dtypes.bfloat16, True)])
def test_hugging_face_to_ours_and_back_is_bitwise(tmp_path, capsys, dtype, mixed):
    source = published(tmp_path / "theirs", dtype, mixed)
    ours = run(source, tmp_path / "ours")
    assert "0.0M parameters" in capsys.readouterr().out
    params, config, tokenizer = load_model(ours, dtype=dtype)
    assert config == CONFIG and tokenizer.ranks == TOKENIZER.ranks and "m.content" in tokenizer.chat_template
    back = run(ours, tmp_path / "back", shard_gb=1e-5)
    assert tensors(back) == tensors(source)
    assert len(list(back.glob("*.safetensors"))) > 3
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (back / name).read_bytes() == (source / name).read_bytes(), name
    assert json.loads((back / "config.json").read_text())["eos_token_id"] == TOKENIZER.special_tokens["<|im_end|>"]
    assert not (back / "README.md").exists()


def test_a_changed_tokenizer_is_not_replaced_by_the_published_one(tmp_path):
    ours = run(published(tmp_path / "theirs"), tmp_path / "ours")
    tokenizer = load_tokenizer(ours / "tokenizer")
    (ours / "tokenizer" / "tokenizer_config.json").unlink()
    other = train_tokenizer(["another text another tongue " * 20], 274)
    other.save(ours / "tokenizer")
    back = run(ours, tmp_path / "back")
    vocabulary = json.loads((back / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(vocabulary) == 267 != len(tokenizer.ranks)


def test_gguf_both_ways_and_dtypes(tmp_path):
    pytest.importorskip("gguf", reason="needs the extra `gguf`")
    source = published(tmp_path / "theirs", ml_dtypes.bfloat16)
    file = read_gguf_file(run(source, tmp_path / "a.gguf", gguf="F32"))  # bfloat16 fits into float32
    assert file.metadata["tokenizer.chat_template"].startswith("{% for m in messages %}")
    assert file.metadata["tokenizer.ggml.eos_token_id"] == TOKENIZER.special_tokens["<|im_end|>"]
    ours = run(tmp_path / "a.gguf", tmp_path / "ours", dtype="bfloat16")
    assert tensors(run(ours, tmp_path / "back")) == tensors(source)
    assert (tmp_path / "back" / "chat_template.jinja").exists()
    straight = run(tmp_path / "a.gguf", tmp_path / "straight", format="hugging_face", dtype="float16")
    assert {tensor.dtype for tensor in find_tensors(straight).values()} == {"F16"}
    again = run(ours, tmp_path / "b.gguf", gguf="Q8_0")
    assert {tensor.type for tensor in read_gguf_file(again).tensors.values()} == {"F32", "Q8_0"}


def test_without_the_package_gguf_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"needs the package gguf: pip install -e '.\[gguf\]'"):
        run(published(tmp_path / "theirs"), tmp_path / "a.gguf")


def test_weights_come_through_without_a_tokenizer_that_is_read_here(tmp_path, capsys):
    """SentencePiece, as in Gemma and Llama-2: its files ride along and come back out."""
    source = published(tmp_path / "theirs")
    (source / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    (source / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    ours = run(source, tmp_path / "ours")
    assert "no tokenizer: " in (text := capsys.readouterr().out) and "its model is Unigram" in text
    assert not (ours / "tokenizer").exists()
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        load_model(ours)
    back = run(ours, tmp_path / "back")
    assert tensors(back) == tensors(source)
    assert (back / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    with pytest.raises(ValueError, match="llama.cpp reads no model without its tokenizer"):
        run(ours, tmp_path / "a.gguf")
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json is damaged"):
        run(source, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer.json", "chat_template.jinja"])
def test_no_rider_comes_from_outside_the_folder(tmp_path, name):
    """A link to a file of the user's would put its content into a folder that is meant to be passed on."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123abc"
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    source = published(snapshot)
    blob = tmp_path / "models--a--b" / "blobs" / "abc"
    (source / name).rename(blob)
    (source / name).symlink_to("../../blobs/abc")
    ours = run(source, tmp_path / "ours")
    assert (run(ours, tmp_path / "back") / name).read_bytes() == blob.read_bytes()
    blob.rename(tmp_path / "secret")
    for folder in (source, ours / "original"):
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / "secret")
    for folder in (source, ours):
        with pytest.raises(ValueError, match=f"{name} is a link to {tmp_path}/secret, outside the folder"):
            run(folder, tmp_path / "out", format="hugging_face")
    (ours / "original" / name).unlink()
    (ours / "original").rename(tmp_path / "elsewhere")
    (ours / "original").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"original is a link to {tmp_path}/elsewhere, outside the folder"):
        run(ours, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path, monkeypatch):
    source = published(tmp_path / "theirs")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    (tmp_path / "a.gguf").write_text("mine")
    for target in (full, tmp_path / "a.gguf", source):
        with pytest.raises(FileExistsError, match="is there already and is never overwritten"):
            run(source, target)
    (tmp_path / "empty").mkdir()
    assert load_model(run(source, tmp_path / "empty"))[1] == CONFIG

    def full_disk(*arguments, **others):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxllm.model.hub.write_tensors", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "empty", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "empty", "full", "theirs"]


@pytest.mark.parametrize("changes, message", [
    ({"source": ""}, "name both --config.source and --config.target"),
    ({"source": "nowhere"}, "config.source: there is no"),
    ({"target": "no/such/out"}, "config.target: there is no folder"),
    ({"dtype": "int4"}, "config.dtype is 'int4'; choose one of float32"),
    ({"gguf": "Q2_K"}, "config.gguf is 'Q2_K'; choose one of F32"),
    ({"shard_gb": 0.0}, "config.shard_gb is 0.0"),
    ({"format": "onnx"}, "config.format is 'onnx'"),
    ({"source": "model.pt"}, "model.pt is a pickle, which can run code"),
    ({"source": "text.txt"}, "text.txt is no GGUF file"),
    ({"source": "."}, r"is neither a Hugging Face folder .* did you mean .*m.gguf"),
])
def test_bad_settings_are_refused_before_anything_is_read(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    for name in ("model.pt", "text.txt", "m.gguf"):
        (tmp_path / name).write_text("x" * 40)
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "config.json").write_text("{}")
    config = config_file.get_config()
    config.update({"source": "good", "target": "out"} | changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        experiment.check(config)


def test_a_model_folder_of_ours_becomes_what_transformers_reads(tmp_path):
    """A model trained here has no chat template and stops at the end of a document."""
    params = random_weights(CONFIG)
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run" / "model", params, CONFIG, TOKENIZER)
    out = run(tmp_path / "run", tmp_path / "out")
    back, config = read_hugging_face(out)
    assert config == CONFIG
    for name, array in to_hugging_face(back, config).items():
        np.testing.assert_array_equal(array, to_hugging_face(params, config)[name])
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == TOKENIZER.end_of_text
    assert not (out / "chat_template.jinja").exists()


def test_every_scheme_of_the_sweep_is_one():
    for changes in config_file.sweep():
        config = config_file.get_config("source")
        config.update(changes)
        assert config.gguf in experiment.SCHEMES and config.source == "source"
