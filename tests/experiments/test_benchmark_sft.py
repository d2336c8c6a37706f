"""The fine-tuning benchmark's plumbing: both sides are given the same tokens, and ours reads each of them once."""

import importlib.util
import json

import pytest

from configs import benchmark_sft as config_file
from experiments import benchmark_sft, benchmark_sft_ours
from jaxllm.data.tokenizer_hugging_face import tokenizer_from_hugging_face
from jaxllm.model.hub import read_hugging_face
from jaxllm.train.checkpoint import load_model


@pytest.fixture(scope="module")
def config():
    config = config_file.get_config()
    config.update({"dim": 32, "layers": 1, "heads": 2, "mlp_dim": 48, "vocab_size": 300, "row_length": 64,
                   "batch_size": 4, "rounds": 1})
    config.data.conversations = 20
    return config


@pytest.fixture(scope="module")
def prepared(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    return folder, benchmark_sft.prepare(config, folder)


def test_both_sides_have_one_model_and_one_text(prepared):
    folder, tokens = prepared
    talks = json.loads((folder / "talks.json").read_text())
    assert len(talks) == 20 and sum(len(talk["input_ids"]) for talk in talks) == tokens
    assert all(any(talk["assistant_masks"]) and len(talk["input_ids"]) <= 64 for talk in talks)
    _, model, tokenizer = load_model(folder / "model")
    theirs = read_hugging_face(folder / "hugging_face")
    assert theirs[1] == model
    assert tokenizer_from_hugging_face(folder / "hugging_face").special_tokens == tokenizer.special_tokens


def test_our_side_reads_every_token(prepared, config):
    folder, tokens = prepared
    run, about = benchmark_sft_ours.train(str(folder), 64, 4, scan=False)
    assert run(1) > 0 and 5 < about["loss"] < 6.5
    assert about["places"] == about["updates"] * 4 * 64 >= tokens
    found = benchmark_sft.findings(config, tokens, {"ours: unrolled": [100.0, 300.0, 200.0]}, {"ours: unrolled": about})
    assert found.tables[0].rows[1][:3] == ["ours: unrolled", "200", "100 - 300"]
    assert found.tables[0].rows[1][3] == f"{1 - tokens / about['places']:.1%}"


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="the extra peers is not installed")
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")  # TRL itself gives it
def test_trl_computes_the_same_loss(prepared):
    from experiments import benchmark_sft_trl
    folder, tokens = prepared
    _, ours = benchmark_sft_ours.train(str(folder), 64, 4, scan=False)
    for name in ("padded", "packed bfd"):
        run, about = benchmark_sft_trl.train(str(folder), 64, benchmark_sft.PEERS[name] | {"batch": 4}, threads=1)
        assert about["loss"] == pytest.approx(ours["loss"], abs=2e-4) and about["places"] >= tokens
        assert run(1) > 0


@pytest.mark.parametrize("changes, message", [
    ({"peers": ("fast",)}, "config.peers holds fast"), ({"ours": ("best",)}, "choose from unrolled, scan"),
    ({"rounds": 0}, "config.rounds=0"), ({"heads": 3}, "must divide config.dim"),
    ({"data.sources": ()}, "needs a source")])
def test_bad_settings_are_refused(changes, message):
    config = config_file.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        benchmark_sft.check(config)
