"""The road at real size, end to end and small: every stage of it on files as a user has them."""

import json
import os
import random

import pytest

from configs import speedrun as configs
from configs import world_web as web_config
from experiments import speedrun, world_web
from jaxllm.model.config import ModelConfig
from jaxllm.train.checkpoint import load_model

for module, extra in (("datatrove", "curate"), ("gguf", "convert")):
    pytest.importorskip(module, reason=f"needs the extra `{extra}`")
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # datatrove's


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def config(tmp_path):
    """configs/speedrun.py:gpu on a crawl, conversations, tasks and a test set, with a GPT-2 of 50,000 weights."""
    web = web_config.get_config("tiny")
    web.pages, web.files = 400, 1
    world_web.main(web, str(tmp_path / "crawl"))
    rng, config = random.Random(0), configs.get_config("gpu")
    sums = [(rng.randint(1, 9), rng.randint(1, 9)) for _ in range(40)]

    def turns(a, b):
        return [{"role": "user", "content": f"What is {a} + {b}?"}]

    config.curate.input.update({"folder": str(tmp_path / "crawl"), "pattern": "*.warc.gz"})
    config.curate.where.workers = 1  # others take seconds to start at every stage
    config.curate.recipe.language.on = bool(os.environ.get("JAXLLM_LANGUAGE_MODEL"))
    config.sft.data.sources = (write(tmp_path / "talks.jsonl", (
        {"messages": [*turns(a, b), {"role": "assistant", "content": f"{a + b}"}]} for a, b in sums)),)
    config.sft_to_rl.tasks = write(tmp_path / "tasks.jsonl", (
        {"prompt": turns(a, b), "answer": str(a + b), "verifier": "number"} for a, b in sums))
    config.evaluate.tasks = ("sums=" + write(tmp_path / "sums.jsonl", (
        {"context": f"{a} + {b} =", "choices": [f" {a + b}", f" {a + b + 1}"], "gold": 0} for a, b in sums)),)
    config.quantize.text = str(tmp_path / "text.txt")
    (tmp_path / "text.txt").write_text("The old cat sat upon the mat, and the rat ran away from it. " * 60)

    config.tokenizer.vocab_size = 512
    config.pretrain.model.update({"dim": 32, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 16, "mlp_dim": 64,
                                  "max_positions": 256})
    config.pretrain.update({"steps": 4, "batch_size": 16, "row_length": 64, "microbatches": 2, "validation_batches": 1,
                            "sample_steps": 0})
    config.pretrain.data.update({"validation_fraction": 0.1, "processes": 1, "cache": str(tmp_path / "cache")})
    config.sft.update({"steps": 2, "batch_size": 16, "row_length": 64, "microbatches": 2})
    for part in (config.pretrain, config.sft, config.sft_to_rl.rl):
        part.optimizer.warmup_steps = 1
    config.sft_to_rl.update({"asked": 4, "watched": 1, "cache": str(tmp_path / "cache")})
    config.sft_to_rl.rl.update({"steps": 2, "prompts": 2, "samples": 8, "microbatches": 2})
    config.sft_to_rl.rl.sampler.update({"max_tokens": 8, "slots": 4})
    config.quantize.update({"tokens": 512, "length": 64})
    return config


@pytest.mark.slow
def test_every_stage_runs_on_a_users_own_files(config, tmp_path):
    speedrun.main(config, str(tmp_path / "run"))
    told = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(told) == list(configs.REAL)
    (policy,) = (tmp_path / "run").glob("sft_to_rl-*/**/model")
    _, model, tokenizer = load_model(policy)
    assert isinstance(model, ModelConfig) and (model.dim, tokenizer.vocab_size) == (32, 512)
    (export,) = (tmp_path / "run").glob("export-*")
    assert {"assistant.Q8_0.gguf", "assistant.Q4_0.gguf", "hugging_face"} <= {path.name for path in export.iterdir()}
