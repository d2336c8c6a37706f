"""Every config key is read by its name: the recorder sees such reads and no others. Flips are in test_every_key_*."""

import dataclasses
import importlib.util
import json
import pathlib

import pytest
import read_keys
from flax.traverse_util import flatten_dict
from flip_keys import leaves

from configs import lab, pretrain_gpt2, pretrain_llama3, pretrain_nano, pretrain_tiny, speedrun
from experiments.speedrun_road import Road
from jaxllm.model.config import ModelConfig

READER = '''
import copy, json, pickle
from ml_collections import ConfigDict

def named(**settings):
    return settings

def by_name(config):
    config.steps
    config["batch_size"]
    copied = ConfigDict(copy.deepcopy(config.to_dict()))
    copied.row_length
    copy.deepcopy(config.execution).scan
    copied.to_dict()["z_loss"]
    named(**config.optimizer)
    named(**copied.data.tokenizer.to_dict())
    named(**{**config.model.to_dict(), "layers": 1})
    config.get("seed", 0), config.to_dict().get("max_skips")

def wholesale(config):
    json.dumps(config.to_dict())
    pickle.loads(pickle.dumps(config.to_dict()))
    str(config), repr(config), config == config
    {**config, "seed": 1}
    {**config.data.to_dict()}
    config.to_dict() | {"seed": 1}
    dict(config.optimizer.to_dict())

def check(config):
    return [config.seed for _ in range(2)]
'''


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A module of the name of an experiment's, and nothing read yet."""
    path = tmp_path / "made_up.py"
    path.write_text(READER)
    spec = importlib.util.spec_from_file_location("experiments.made_up", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(read_keys, "read", set())
    return module


def test_what_is_read_by_name_is_noted(reader):
    config = pretrain_tiny.get_config()
    reader.by_name(config)
    single = {"steps", "batch_size", "row_length", "execution.scan", "z_loss", "seed", "max_skips"}
    blocks = {f"{block}.{key}" for block in ("optimizer", "data.tokenizer")
              for key in config.to_dict()[block.partition(".")[0]].get("tokenizer", config.optimizer)}
    shape = {f"pretrain_tiny.model_fields: {key}" for key in config.model}
    assert read_keys.read == {f"pretrain_tiny: {key}" for key in single | blocks} | shape


def test_what_is_kept_copied_hashed_checked_or_read_by_tests_is_not(reader):
    config = pretrain_tiny.get_config()
    reader.wholesale(config)
    reader.check(config)
    assert config.seed == 0 and json.dumps(config.to_dict())
    assert read_keys.read == set()


def test_a_key_that_nothing_reads_is_found(reader, monkeypatch):
    every = set(read_keys.unread())
    assert "pretrain_tiny: optimizer.decay_fraction" in every and len(every) > 500
    monkeypatch.setattr(read_keys, "read", every - {"sft: lora.alpha"})
    assert read_keys.unread() == ["sft: lora.alpha"]


@pytest.mark.parametrize("module", [pretrain_nano, pretrain_gpt2, pretrain_llama3, lab])
def test_configs_of_pretraining_have_the_keys_that_are_flipped(module):
    config, flipped = module.get_config(), set(leaves(pretrain_tiny.get_config()))
    assert {"model.rope_scaling" if "rope_scaling" in key else key for key in leaves(config)} == flipped


def test_the_scaling_of_llama_3_is_read_by_its_names():
    config = pretrain_llama3.get_config().model
    made = ModelConfig(vocab_size=8, **config.to_dict())
    assert dataclasses.asdict(made.rope_scaling) == config.rope_scaling.to_dict()


def test_every_key_of_the_road_reaches_its_stage():
    """Each gets another value, all at once and all different; what a stage does with it is its own experiment's."""
    config = speedrun.get_config("tiny")
    with config.ignore_type():
        for name in config.stages:
            config[name].update_from_flattened_dict({key: f"{name} {key}" for key in leaves(config[name])
                                                     if key.rpartition(".")[2] not in ("seed", "seeds")})
    road = Road(config, pathlib.Path("road"))
    for name in config.stages:
        given, own = (flatten_dict(part.to_dict(), sep=".") for part in (road.settings(name), config[name]))
        ours = {"seed": config.seed, "seeds": (config.seed,)}  # the road's, whatever a stage's own config says
        assert given == {key: ours.get(key, value) for key, value in own.items()}
