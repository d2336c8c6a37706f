"""Fine-tuning at a size of seconds: it learns what it counts, resumes exactly, merges truly, and refuses bad input."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from random_weights import random_weights

from configs import sft as config_file
from experiments import sft, sft_data, sft_tokens, training
from experiments.training import Run
from jaxllm.data.chat import render
from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from jaxllm.data.world import documents, make_world
from jaxllm.model.config import preset
from jaxllm.model.lora import factors, lora, lora_specs, with_factors
from jaxllm.model.params import init
from jaxllm.model.transformer import forward
from jaxllm.train.checkpoint import Checkpoints, load_model, save_model
from jaxllm.train.metrics import read_metrics
from jaxllm.train.objective import next_token_objective
from jaxllm.train.sharding import make_mesh
from jaxllm.train.step import init_state

TOKENIZER = train_tokenizer([page.text for page in documents(make_world(0, "tiny"))], 400, "digits", SPECIAL_TOKENS)
MODEL = preset("nano", layers=1, vocab_size=448)  # padded beyond the tokenizer, as vocabularies are
TALK = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": " A model."}]
SMALL = {"steps": 4, "batch_size": 8, "row_length": 64, "log_steps": 1, "validation_steps": 0, "sample_steps": 0,
         "sample_tokens": 4, "checkpoint_steps": 0, "sample_prompts": ("Who are you?",), "optimizer.warmup_steps": 1,
         "optimizer.learning_rate": 1e-2}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """One device, whose peak is not measured; that a `Run` does the same on eight is shown in test_pretrain.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "peak_flops", lambda dtype: 0.0)
        patch.setattr(sft.sharding, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a base model, untrained: no chat template."""
    folder = tmp_path_factory.mktemp("models") / "base"
    save_model(folder, jax.device_put(random_weights(MODEL, 1)), MODEL, TOKENIZER)
    return str(folder)


@pytest.fixture(scope="module")
def talks_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("talks") / "own.jsonl"
    long = [{"role": "user", "content": "long " * 60}, TALK[1]]
    records = [[*TALK, {"role": "user", "content": f"{n}?"}, TALK[1]] for n in range(30)] + [[*TALK, *long], long]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in records))
    return str(path)


def small(base, **changes):
    config = config_file.get_config(base)
    config.data.sources = ("world:0:tiny",)
    config.lock()
    config.update_from_flattened_dict(SMALL | changes)
    return config


@pytest.fixture(scope="module")
def finished(base, talks_file, tmp_path_factory):
    """A run of all weights on two sources."""
    folder = tmp_path_factory.mktemp("runs") / "full"
    config = small(base, **{"steps": 12, "data.sources": ("world:0:tiny", talks_file), "data.weights": (1.0, 1.0),
                            "validation_batches": 2})
    assert sft.main(config, str(folder))
    return folder


def test_the_run_learns_and_its_folder_holds_everything(finished, talks_file):
    records = read_metrics(finished)
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 12 and losses[-1] < losses[0] - 1.0
    checks = [record for record in records if "validation_loss" in record]
    assert [record["step"] for record in checks] == [0, 12]
    for spec in ("world:0:tiny", talks_file):
        assert checks[-1][f"validation/{spec}_loss"] < checks[0][f"validation/{spec}_loss"]
    samples = [json.loads(line) for line in (finished / "samples.jsonl").read_text().splitlines()]
    assert {sample["prompt"] for sample in samples} == {"Who are you?"}
    page = (finished / "report.html").read_text()
    assert page.count("<svg") == 6 and "What went in" in page and "Validation by source" in page
    params, model, tokenizer = load_model(finished)
    assert tokenizer.chat_template == "im_sep" and model == MODEL
    assert render(TALK, tokenizer).ids == render(TALK, TOKENIZER, template="im_sep").ids


def test_the_account_adds_up(finished, talks_file):
    own = json.loads((finished / "data.json").read_text())[1]
    parts = [own["training"], own["validation"]]
    assert own["source"] == talks_file and own["format"] == "openai" and own["read"] == 32
    assert sum(part["conversations"] + part["too_long"] for part in parts) == 32
    assert sum(part["too_long"] for part in parts) == sum(part["shortened"] for part in parts) == 1
    per_talk = sum(render([*TALK, {"role": "user", "content": "1?"}, TALK[1]], TOKENIZER, template="im_sep").mask)
    assert abs(own["training"]["counted_tokens"] / own["training"]["conversations"] - per_talk) < 0.5
    for part in parts:
        assert part["padding"] == pytest.approx(1 - part["tokens"] / (part["rows"] * 64))


def test_only_the_assistant_counts(base):
    """The loss and its gradient see the reply and its end, whatever the user's targets are."""
    talks = sft_data.prepare(small(base).data, TOKENIZER, "im_sep", 64, 0)
    batch = talks.training.batch_at(0, batch_size=8)
    rows, places = np.nonzero(batch.weights)
    counted = [TOKENIZER.decode([id]) for id in batch.targets[rows, places]]
    assert "<|im_end|>" in counted and not {"<|im_start|>", "<|im_sep|>"} & set(counted)
    turns = "".join(TOKENIZER.decode(row) for row in batch.tokens).count("assistant<|im_sep|>")
    assert counted.count("<|im_end|>") == turns
    loss_fn = jax.jit(jax.value_and_grad(lambda params, batch: next_token_objective(MODEL)(params, batch)[0].value))
    params = jax.device_put(random_weights(MODEL))
    other = batch.targets.copy()
    other[batch.weights == 0] = 7
    expected = loss_fn(params, batch)
    found = loss_fn(params, dataclasses.replace(batch, targets=other))
    assert all(map(np.array_equal, jax.tree.leaves(expected), jax.tree.leaves(found)))
    other[rows[0], places[0]] += 1
    assert loss_fn(params, dataclasses.replace(batch, targets=other))[0] != expected[0]


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_broken_lora_run_resumes_bit_for_bit_and_its_model_is_merged(base, tmp_path, monkeypatch, capsys):
    config = small(base, **{"lora.rank": 2, "ema_decay": 0.5, "checkpoint_steps": 2, "sample_prompts": (),
                            "data.validation_fraction": 0.0})
    monkeypatch.setattr(sft, "write_report", lambda folder, config, talks: None)
    assert sft.main(config, str(tmp_path / "whole"))
    report = Run.report

    def breaks(run, number, metrics):
        if number == 3:
            raise Killed
        report(run, number, metrics)
    monkeypatch.setattr(Run, "report", breaks)
    with pytest.raises(Killed):
        sft.main(config, str(tmp_path / "broken"))
    monkeypatch.setattr(Run, "report", report)
    assert sft.main(config, str(tmp_path / "broken"))
    assert "resumed at step 2 of 4" in capsys.readouterr().out
    losses = [[(r["step"], r["loss"]) for r in read_metrics(tmp_path / name) if "loss" in r]
              for name in ("whole", "broken")]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    merged, _, _ = load_model(tmp_path / "whole")
    resumed, _, _ = load_model(tmp_path / "broken")
    assert all(map(np.array_equal, jax.tree.leaves(merged), jax.tree.leaves(resumed)))

    # Only factors are in the checkpoint; over the started base model, their average is the merged model.
    frozen = lora(started(base, "like"), MODEL, rank=2, alpha=config.lora.alpha, key=jax.random.key(9))
    made = training.plan_for(config, make_mesh((1, 1, 1), jax.devices()[:1]), MODEL)
    checkpoints = Checkpoints(tmp_path / "whole" / "checkpoints")
    state = checkpoints.restore(init_state(factors(frozen), made.optimizer, ema=True))
    checkpoints.close()
    tokens = np.arange(32, dtype=np.int32).reshape(2, 16)
    run = jax.jit(forward, static_argnums=1)
    expected = run(with_factors(frozen, jax.device_get(state.ema)), MODEL, tokens)
    np.testing.assert_allclose(run(merged, MODEL, tokens), expected, atol=2e-5)
    assert not np.allclose(expected, run(frozen, MODEL, tokens), atol=1e-3)  # it has learnt something


def test_factors_and_their_moments_lie_as_their_weight(base):
    """Rows of a query's `left` are split as the weight's inputs, columns of its `right` as its heads."""
    made = training.plan_for(small(base), make_mesh((2, 2, 2)), MODEL)
    specs = factors(lora_specs(MODEL, rank=2, alpha=4.0))
    layout = jax.tree.map(lambda spec: NamedSharding(made.mesh, spec), specs,
                          is_leaf=lambda node: isinstance(node, PartitionSpec))
    own = jax.eval_shape(lambda: factors(lora(init(MODEL, jax.random.key(0)), MODEL, rank=2, alpha=4.0,
                                              key=jax.random.key(0))))
    state = jax.eval_shape(functools.partial(init_state, optimizer=made.optimizer, ema=True), own)
    placed = sft.factor_shardings(state, made, layout)
    assert jax.tree.structure(placed) == jax.tree.structure(state)
    moments = [leaf.spec for path, leaf in jax.tree_util.tree_leaves_with_path(placed)
               if jax.tree_util.keystr(path).endswith("['query']['left']")]
    assert moments == [PartitionSpec(None, "fsdp", None)] * 4  # weights, two moments, average
    everywhere = [leaf.spec for leaf in (placed.step, placed.skipped)]
    assert everywhere == [PartitionSpec()] * 2


def started(base, how):
    params, model, tokenizer = load_model(base)
    return sft_tokens.start_tokens(params, model, tokenizer, "im_sep", how)


def test_new_tokens_start_from_like_ones_and_no_other_row_moves(base):
    tables = {how: np.asarray(started(base, how)["embedding"]["tokens"]) for how in sft_tokens.STARTS}
    ids = {name: TOKENIZER.special_tokens[name] for name in SPECIAL_TOKENS}
    plain = tables["untouched"]
    new = [id for name, id in ids.items() if name != "<|endoftext|>"]
    others = np.setdiff1d(np.arange(448), new)
    for how in ("like", "mean"):
        assert np.array_equal(tables[how][others], plain[others])
        assert (tables[how][new] != plain[new]).any(axis=1).all()
        assert len(np.unique(tables[how][new], axis=0)) == len(new)
    noise = 5 * sft_tokens.NOISE * plain.std()
    end = plain[ids["<|endoftext|>"]]
    assert np.abs(tables["like"][ids["<|im_end|>"]] - end).max() < noise < np.abs(end).max()
    trained = np.setdiff1d(np.arange(400), new)
    assert np.abs(tables["mean"][new] - plain[trained].mean(axis=0)).max() < noise
    with pytest.raises(ValueError, match="choose one of like, mean, untouched"):
        started(base, "random")


def test_the_format_is_the_models_own_or_the_first_it_has_the_tokens_for():
    without = train_tokenizer(["a b"], 260, special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    bare = train_tokenizer(["a b"], 258, special_tokens=("<|endoftext|>",))
    chats = dataclasses.replace(without, chat_template="chatml")
    assert sft_tokens.chat_format(TOKENIZER, "") == ("im_sep", True)
    assert sft_tokens.chat_format(without, "") == ("chatml", True)
    assert sft_tokens.chat_format(chats, "") == ("chatml", False)
    assert sft_tokens.chat_format(TOKENIZER, "gemma") == ("gemma", True)
    with pytest.raises(ValueError, match="no chat template and lacks the tokens"):
        sft_tokens.chat_format(bare, "")


def test_steps_are_those_that_the_epochs_need(base, talks_file):
    config = small(base, **{"steps": 0, "data.sources": (talks_file,), "data.epochs": (2.0,)})
    talks = sft_data.prepare(config.data, TOKENIZER, "im_sep", 64, 0)
    rows = len(talks.sources[0].training.batch.tokens)
    assert sft.with_steps(config, talks).steps == -(-2 * rows // 8)
    seen = np.concatenate([np.sort(talks.training.rows_at(np.arange(2 * rows)).tokens.sum(axis=1))])
    assert np.array_equal(seen, np.sort(np.repeat(talks.sources[0].training.batch.tokens.sum(axis=1), 2)))


def test_other_data_in_the_same_folder_is_refused(base, talks_file, tmp_path):
    config = small(base, **{"data.sources": (talks_file,)})
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    sft_data.claim_data(folder, talks := sft_data.prepare(config.data, TOKENIZER, "im_sep", 64, 0))
    (folder / "data.json").write_text(json.dumps(sft_data.account(talks)))
    sft_data.claim_data(folder, talks)
    batch = talks.sources[0].training.batch
    batch.tokens[0, 0] += 1
    with pytest.raises(ValueError, match="own.jsonl gives other rows than when the run"):
        sft_data.claim_data(folder, talks)


@pytest.mark.parametrize("changes, message", [
    ({"model": "nowhere"}, "nowhere is neither a model folder nor a run"),
    ({"row_length": 65}, r"row_length \(65\) exceeds the 64 positions"),
    ({"loss_chunks": 5}, r"loss_chunks \(5\) must divide row_length"),
    ({"batch_size": 9, "microbatches": 2}, "must be a multiple of data x fsdp x microbatches"),
    ({"lora.rank": -1}, "lora.rank is -1; it must be at least 0"),
    ({"lora.rank": 2, "lora.targets": ("wings",)}, "no matrix wings"),
    ({"lora.rank": 2, "lora.alpha": 0.0}, "lora.alpha is 0.0"),
    ({"lora.rank": 2, "optimizer.name": "muon"}, "trained by adamw"),
    ({"start_tokens": "random"}, "start_tokens is 'random'; choose one of like"),
    ({"template": "llama3"}, "needs the special tokens"),
    ({"template": "no_such"}, "chat format 'no_such' is unknown"),
    ({"data.weights": (1.0,), "steps": 0}, "give steps with them"),
    ({"data.epochs": (1.0, 2.0)}, "give one number above 0 for each of the 1 sources"),
    ({"data.validation_fraction": 1.0}, "data.validation_fraction is 1.0"),
    ({"data.paths": "some"}, "choose one of best, all"),
    ({"data.sources": ()}, "give at least one source"),
    ({"data.sources": ("world:0", "world:0")}, "names a source twice"),
    ({"data.sources": ("nowhere.jsonl",)}, "nowhere.jsonl: no such file"),
    ({"data.formats": ("essay", "essay")}, "names 1 sources and data.formats 2"),
    ({"row_length": 4}, "world:0:tiny: none of"),
    ({"sample_tokens": 60}, r"exceeds the model's 64 positions"),
    ({"optimizer.warmup_steps": 9}, "warmup_steps"),
])
def test_bad_settings_are_refused_with_a_sentence(base, tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sft.main(small(base, **changes), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()
