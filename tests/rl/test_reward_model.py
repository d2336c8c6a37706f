"""The reward model against transformers' classifier, on meshes, in parts, ragged, and on disk."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_weights

from jaxllm.data.preferences import Ranking
from jaxllm.data.ranking_rows import RankingBatch, RankingRows, completion_rows, ranking_rows, row_width
from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.model.config import Execution, preset
from jaxllm.rl import reward_model
from jaxllm.rl.reward_model import Reward, init_reward, ranking_objective, score
from jaxllm.train.optimizer import make_optimizer
from jaxllm.train.sharding import make_mesh, put_batch, state_shardings
from jaxllm.train.step import init_state, make_train_step

CONFIG = preset("nano", heads=8, kv_heads=4)
PLAIN = Execution(scan=False)
scores = jax.jit(score, static_argnums=(1, 4))


def reward_params(seed=0, config=CONFIG):
    """Weights far enough from zero that every part of the model matters."""
    params = jax.tree.map(lambda x: 3 * x if x.ndim > 2 else x, random_weights(config, seed))
    head = {"weight": np.random.default_rng(seed).normal(0, 0.3, config.dim).astype(np.float32),
            "bias": np.float32(0.25)}
    return {"model": params, "score": head}


def ranking_batch(seed=0, rankings=8, completions=3, width=12):
    """Ragged in tokens and completions; one ranking is all ties."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, width + 1, (rankings, completions)).astype(np.int32)
    lengths[1::3, -1] = 0
    tokens = rng.integers(0, CONFIG.vocab_size, (rankings, completions, width)).astype(np.int32)
    tiers = rng.integers(0, completions, (rankings, completions)).astype(np.int32)
    tiers[2] = 1
    return RankingBatch(tokens, lengths, tiers)


@pytest.fixture(scope="module")
def tokenizer():
    return dataclasses.replace(train_tokenizer(["a joke about a duck and a hen " * 9], 275), chat_template="im_sep")


@pytest.fixture(scope="module")
def reward(tokenizer):
    config = preset("nano", vocab_size=tokenizer.vocab_size, dim=16, heads=2, kv_heads=1, mlp_dim=16, layers=1)
    return Reward(reward_params(3, config), config, tokenizer, row_length=40, mean=0.5, sd=2.0, temperature=1.5)


def ask(text):
    return [{"role": "user", "content": text}]


def test_score_is_that_of_transformers_classifier():
    """LlamaForSequenceClassification reads the last token that is not padding."""
    torch = pytest.importorskip("torch", reason="needs the extra `interop`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `interop`")
    from jaxllm.model.convert import to_hugging_face

    params = reward_params()
    theirs = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(
        vocab_size=CONFIG.vocab_size, hidden_size=CONFIG.dim, num_hidden_layers=CONFIG.layers, num_labels=1,
        num_attention_heads=CONFIG.heads, num_key_value_heads=CONFIG.kv_heads, intermediate_size=CONFIG.mlp_dim,
        head_dim=CONFIG.head_dim, rms_norm_eps=CONFIG.norm_eps, rope_theta=CONFIG.rope_theta, pad_token_id=0,
        attn_implementation="eager"))
    state = {name: torch.tensor(np.asarray(x)) for name, x in to_hugging_face(params["model"], CONFIG).items()
             if not name.startswith("lm_head")}
    state["score.weight"] = torch.tensor(params["score"]["weight"][None])
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and not missing
    rng = np.random.default_rng(1)
    lengths = np.array([9, 1, 5, 12])
    tokens = np.where(np.arange(12) < lengths[:, None], rng.integers(1, CONFIG.vocab_size, (4, 12)), 0)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), torch.tensor(tokens != 0)).logits[:, 0].numpy()
    found = scores(params, CONFIG, tokens.astype(np.int32), lengths, PLAIN)
    np.testing.assert_allclose(found - 0.25, expected, atol=2e-5)  # theirs has no bias
    assert np.ptp(expected) > 0.1


def test_the_loss_of_pairs_is_bradley_terry_of_scores():
    batch = ranking_batch(completions=2)
    params = reward_params()
    loss, metrics = jax.jit(ranking_objective(CONFIG, PLAIN, margin=0.5, centring=0.1))(params, batch)
    better, worse = [], []
    found = np.asarray(scores(params, CONFIG, batch.tokens.reshape(16, -1), batch.lengths.reshape(16), PLAIN))
    for b, (a, c) in enumerate(found.reshape(8, 2)):
        if batch.lengths[b].min() and batch.tiers[b, 0] != batch.tiers[b, 1]:
            pair = (a, c) if batch.tiers[b, 0] < batch.tiers[b, 1] else (c, a)
            better.append(pair[0])
            worse.append(pair[1])
    better, worse = np.array(better), np.array(worse)
    expected = np.logaddexp(0, -(better - worse - 0.5)) + 0.1 * (better + worse) ** 2
    assert 2 <= len(better) == loss.weight and float(loss.value) == pytest.approx(expected.mean(), rel=1e-4)
    assert float(metrics["accuracy"].value) == pytest.approx((better > worse).mean())


def test_what_is_padding_or_absent_does_not_matter():
    batch = ranking_batch()
    filled = np.arange(12) < batch.lengths[..., None]
    other = batch.replace(tokens=np.where(filled, batch.tokens, 7), tiers=np.where(batch.lengths > 0, batch.tiers, 2))
    for loss in reward_model.LOSSES:
        gradient = jax.jit(jax.grad(lambda p, x, f=ranking_objective(CONFIG, PLAIN, loss=loss): f(p, x)[0].total))
        one, two = (gradient(reward_params(), x) for x in (batch, other))
        assert jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b, atol=1e-6), one, two))
        assert all(jnp.abs(x).max() > 0 for x in jax.tree.leaves(one["model"]["blocks"]))


@pytest.mark.slow
def test_training_is_the_same_on_a_mesh():
    def run(mesh):
        optimizer = make_optimizer("adamw", 1e-3, clip_norm=0.0)
        # Centred: the head's bias has no gradient else, and Adam makes a step of its rounding.
        step = make_train_step(ranking_objective(CONFIG, centring=0.1), optimizer, microbatches=2)
        params = jax.tree.map(jnp.asarray, reward_params())
        state, losses = init_state(params, optimizer), []
        if mesh is None:
            step = jax.jit(step)
        else:
            shardings = state_shardings(state, CONFIG, mesh)
            state = jax.device_put(state, shardings)
            step = jax.jit(step, out_shardings=(shardings, None))
            assert state.params["model"]["blocks"]["mlp"]["up"].sharding.spec[2] == "tensor"
        for number in range(3):
            batch = ranking_batch(number % 2, rankings=16)
            state, metrics = step(state, batch if mesh is None else put_batch(batch, mesh))
            losses.append(float(metrics["loss"]))
        return losses, jax.device_get(state.params)

    losses, params = run(None)
    mesh = make_mesh((2, 2, 2))
    with jax.set_mesh(mesh):
        losses_there, params_there = run(mesh)
    assert losses[2] < losses[0]  # batches 0 and 2 are the same
    np.testing.assert_allclose(losses_there, losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), params_there, params)


def test_the_last_blocks_alone():
    params, batch = reward_params(), ranking_batch()
    objective = ranking_objective(CONFIG)
    trained, frozen = reward_model.split_trained(params, 1)
    assert jax.tree.leaves(trained["model"]["blocks"])[0].shape[0] == 1 and "embedding" in frozen
    whole = reward_model.join_trained(trained, frozen, stacked=True)
    jax.tree.map(np.testing.assert_array_equal, whole, params)
    all_grads = jax.jit(jax.grad(lambda p: objective(p, batch)[0].total))(params)
    grads = jax.jit(jax.grad(lambda p: objective(reward_model.join_trained(p, frozen, stacked=False), batch)[0].total)
                    )(trained)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads,
                 reward_model.split_trained(all_grads, 1)[0])
    for blocks in (0, 3):
        with pytest.raises(ValueError, match="the model has 2"):
            reward_model.split_trained(params, blocks)


def test_bad_losses_are_refused():
    with pytest.raises(ValueError, match="choose one of bradley_terry"):
        ranking_objective(CONFIG, loss="hinge")
    with pytest.raises(ValueError, match="leave it 0"):
        ranking_objective(CONFIG, loss="plackett_luce", margin=1.0)


def test_a_new_head_is_zero_or_drawn():
    params = random_weights(CONFIG)
    assert not init_reward(params, CONFIG)["score"]["weight"].any()
    drawn = init_reward(params, CONFIG, jax.random.key(0))["score"]["weight"]
    assert 0.5 < drawn.std() * np.sqrt(CONFIG.dim) < 1.5


def test_rows_share_whole_turns_of_the_prompt(tokenizer):
    prompt = [{"role": "system", "content": "a"}, *ask("duck"), {"role": "assistant", "content": "hen"}, *ask("joke")]

    def length(messages, completion):
        return len(completion_rows(messages, [completion], tokenizer)[0][0])
    texts = ["a", "a duck and a hen and a duck"]
    everything, dropped = completion_rows(prompt, texts, tokenizer)
    assert dropped == 0 and len(everything[0]) < len(everything[1])
    # One token too few for the longest: both lose the first exchange, and neither the system message.
    cut, dropped = completion_rows(prompt, texts, tokenizer, len(everything[1]) - 1)
    assert dropped == 2 and cut == completion_rows([prompt[0], prompt[3]], texts, tokenizer)[0]
    assert completion_rows(prompt, texts, tokenizer, length([prompt[0], prompt[3]], texts[1]) - 1)[0] is None


def test_rankings_become_batches(tokenizer):
    rankings = [Ranking(tuple(ask("a")), ("a", "duck", "a hen"), ((2,), (0, 1))),
                Ranking(tuple(ask("a")), ("a " * 99, "duck"), ((0,), (1,))),
                Ranking(tuple(ask("joke")), ("hen", "a"), ((1,), (0,)))]
    rows = ranking_rows(rankings, tokenizer, 30)
    assert rows.kept == [0, 2] and rows.too_long == 1 and rows.completions == 3
    batch = rows.batch([1, 0], rows=4)
    assert batch.tokens.shape == (4, 3, 30) and batch.tiers[:2].tolist() == [[1, 0, 0], [1, 1, 0]]
    assert (batch.lengths > 0).tolist() == [[True, True, False], [True] * 3, [False] * 3, [False] * 3]
    row = batch.tokens[1, 2, :batch.lengths[1, 2]]
    assert row.tolist() == rows.tokens[0][2] and tokenizer.decode(row.tolist()).count("a hen") == 1
    with pytest.raises(ValueError, match="raise the row length"):
        ranking_rows(rankings[1:2], tokenizer, 30)


def test_an_epoch_holds_every_ranking_once():
    rng = np.random.default_rng(0)
    rankings = [[[1] * int(n), [1]] for n in rng.integers(1, 60, 50)]
    rows = RankingRows(rankings, [[0, 1]] * 50, list(range(50)), 0, 0, 64)
    batches = rows.order(0, 4, 5)
    assert sorted(np.concatenate(batches)) == list(range(50)) and max(map(len, batches)) == 4
    assert [b.tolist() for b in rows.order(1, 4, 5)] != [b.tolist() for b in batches]
    assert [b.tolist() for b in rows.order(0, 4, 5)] == [b.tolist() for b in batches]
    # Rankings of a batch are of like length: the rows hold less padding than in any order.
    spread = np.mean([np.ptp([len(rankings[i][0]) for i in b]) for b in batches])
    assert spread < 0.5 * np.mean([np.ptp([len(rankings[i][0]) for i in b]) for b in np.arange(48).reshape(12, 4)])
    assert [row_width(n) for n in (1, 32, 33, 48, 49, 128, 129)] == [32, 32, 48, 48, 64, 128, 192]


def test_texts_are_scored_in_units_of_the_start(reward):
    prompts, texts = [ask("a joke"), ask("a duck")], [["a hen", "a duck and a hen"], ["a", "and " * 60]]
    found = reward_model.score_texts(reward, prompts, texts, batch=3)
    for q in range(2):
        for g in range(2):
            row = completion_rows(prompts[q], [texts[q][g]], reward.tokenizer)[0][0][:reward.row_length]
            padded = np.pad(row, (0, reward.row_length - len(row)))[None].astype(np.int32)
            raw = scores(reward.params, reward.model, padded, np.array([len(row)]), PLAIN)[0]
            assert found[q, g] == pytest.approx((float(raw) - 0.5) / 2.0, abs=1e-4)
    assert len(completion_rows(prompts[1], [texts[1][1]], reward.tokenizer)[0][0]) > reward.row_length
    for bad in ([], [1] * 41, [reward.model.vocab_size]):
        with pytest.raises(ValueError, match="row 1 has"):
            reward_model.score_rows(reward, [[1], bad])


def test_a_reward_model_on_disk(tmp_path, reward):
    reward_model.save_reward(tmp_path / "r", reward)
    again = reward_model.load_reward(tmp_path / "r")
    rows = [[1, 2, 3], [4, 5]]
    np.testing.assert_array_equal(reward_model.score_rows(again, rows), reward_model.score_rows(reward, rows))
    for name in ("mean", "sd", "temperature", "row_length", "model"):
        assert getattr(again, name) == getattr(reward, name)
    assert again.tokenizer.chat_template == "im_sep"


def test_a_damaged_reward_model_says_what_is_wrong(tmp_path, reward):
    reward_model.save_reward(tmp_path / "r", reward)
    path = tmp_path / "r" / "reward.json"
    good = json.loads(path.read_text())
    for change, message in (({"weight": [1.0]}, "has dim 16"), ({"sd": 0}, "above 0"), ({"bias": "x"}, "is damaged"),
                            ({"mean": float("nan")}, "finite"), ({"row_length": 9999}, "max_positions")):
        path.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=message):
            reward_model.load_reward(tmp_path / "r")
    path.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        reward_model.load_reward(tmp_path / "r")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="lacks reward.json"):
        reward_model.load_reward(tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "params")
    path.write_text(json.dumps(good))
    with pytest.raises(FileNotFoundError, match="is not a model"):
        reward_model.load_reward(tmp_path / "r")
