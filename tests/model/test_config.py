"""ModelConfig and Execution: what they refuse, and that they survive a file."""

import dataclasses
import json

import pytest

from jaxllm.model.config import (
    PRESETS,
    Execution,
    RopeScaling,
    load_config,
    preset,
    save_config,
)


@pytest.mark.parametrize("field, value", [
    ("vocab_size", 0), ("dim", -1), ("layers", 2.0), ("heads", "4"), ("kv_heads", True),
    ("head_dim", 0), ("mlp_dim", None), ("max_positions", 0), ("norm", "batch"), ("mlp", "relu"),
    ("positions", "alibi"), ("bias", "some")])
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(ValueError, match=rf"model\.{field} "):
        preset("nano", **{field: value})


@pytest.mark.parametrize("changes, sentence", [
    (dict(heads=4, kv_heads=3), r"model.heads \(4\) must be a multiple of model.kv_heads \(3\)"),
    (dict(head_dim=7), "must be even"),
    (dict(windows=5), "a tuple of integers"),
    (dict(windows=()), "one or more"),
    (dict(windows=(4, 0, 0)), r"divides model.layers \(2\)"),
    (dict(windows=(-1,)), ">= 0")])
def test_fields_that_do_not_fit_together(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        preset("nano", **changes)


def test_odd_heads_do_for_learned_positions():
    assert preset("nano", head_dim=7, positions="learned").head_dim == 7


@pytest.mark.parametrize("field, value", [
    ("dtype", "float64"), ("remat", "some"), ("attention", "triton")])
def test_execution_names_a_wrong_field(field, value):
    with pytest.raises(ValueError, match=rf"execution\.{field} is '{value}'; choose one of"):
        Execution(**{field: value})


def test_unknown_preset_and_field():
    with pytest.raises(ValueError, match="'gpt5' is unknown; choose one of nano, tiny"):
        preset("gpt5")
    with pytest.raises(ValueError, match="model has no field depth, width"):
        preset("nano", width=3, depth=4)


def test_a_configuration_can_be_a_static_argument():
    assert hash(preset("gemma2_2b")) == hash(preset("gemma2_2b", windows=[4096, 0]))
    assert preset("gemma2_2b", windows=[4096, 0]) == PRESETS["gemma2_2b"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("nano").dim = 3


@pytest.mark.parametrize("name", PRESETS)
def test_a_file_gives_the_configuration_back(name, tmp_path):
    save_config(PRESETS[name], tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == PRESETS[name]
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_rope_scaling_comes_back_as_a_record(tmp_path):
    save_config(PRESETS["llama3_8b"], tmp_path / "config.json")
    assert load_config(tmp_path / "config.json").rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)


NANO = dataclasses.asdict(PRESETS["nano"])


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"vocab_size": 3}', b"\xff\xfe",
                                  json.dumps(NANO | {"x": 1}), json.dumps(NANO | {"kv_heads": 3})])
def test_a_wrong_file_is_named(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="config.json does not hold a model configuration: "):
        load_config(tmp_path / "config.json")


def test_published_architectures():
    """Values from each model's published config.json that no parameter count would show."""
    llama = PRESETS["llama3_1b"]
    assert (llama.rope_theta, llama.rope_scaling) == (500_000.0, RopeScaling(32.0, 1.0, 4.0, 8192))
    assert PRESETS["llama3_70b"].rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)
    assert PRESETS["qwen3_0.6b"].max_positions == 40960 and PRESETS["qwen3_0.6b"].rope_theta == 1e6
    assert PRESETS["gemma2_27b"].query_scale == 144 ** -0.5
    assert PRESETS["gemma2_9b"].windows == (4096, 0)
    assert PRESETS["smollm2_1.7b"].rope_theta == 130_000.0
    for name, config in PRESETS.items():
        assert config.norm_eps == (1e-6 if name[:4] in ("qwen", "gemm") else 1e-5)
