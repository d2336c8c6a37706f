"""The reward model: a transformer with a scalar head at the last token, learnt from rankings.

    r(prompt, completion) = w . h_last + b      h: hidden states behind the final norm, of the whole row

It starts from the model that it will judge; the language model's own head takes no part. `ranking_objective` is a
`LossFn` like any other, so `make_train_step`, micro-batches and meshes are those of pretraining. Where a model is too
large to be trained whole, `split_trained` sets its last blocks apart.

References:
  Stiennon et al., Learning to summarize from human feedback, 2020. https://arxiv.org/abs/2009.01325
  Ouyang et al., Training language models to follow instructions, 2022, section 3.5. https://arxiv.org/abs/2203.02155
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.data.chat_messages import Message
from jaxllm.data.ranking_rows import RankingBatch, completion_rows, row_width
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params, split_layers
from jaxllm.model.transformer import hidden_states
from jaxllm.rl.preference_loss import pairwise_ranking, plackett_luce
from jaxllm.train.checkpoint import load_model, save_model
from jaxllm.train.metrics import Mean, Metrics
from jaxllm.train.step import LossFn

LOSSES = ("bradley_terry", "plackett_luce")
_FILE = "reward.json"


@dataclasses.dataclass(frozen=True)
class Reward:
    """A reward model with what is needed to use it.

    Attributes:
      params: {"model": as `init` returns them, "score": {"weight": [D], "bias": []}}.
      model: the architecture.
      tokenizer: its chat format writes the rows.
      row_length: most tokens of a row.
      mean, sd: of raw scores on the start model's samples; `score_texts` gives (raw - mean) / sd.
      temperature: P(a better than b) = sigmoid((raw_a - raw_b) / temperature), fitted on held-out rankings.
    """

    params: Params
    model: ModelConfig
    tokenizer: Tokenizer
    row_length: int
    mean: float = 0.0
    sd: float = 1.0
    temperature: float = 1.0


def init_reward(params: Params, config: ModelConfig, key: jax.Array | None = None) -> Params:
    """A language model's parameters with a new head.

    Args:
      params: as `init` returns them, blocks stacked; they are not copied.
      config: the architecture.
      key: draws the head from normal(1 / (D + 1)), as Stiennon et al.; members of an ensemble then differ from the
        start. None: zeros.
    """
    weight_D = jnp.zeros((config.dim,), jnp.float32)
    if key is not None:
        weight_D = jax.random.normal(key, (config.dim,)) / math.sqrt(config.dim + 1)
    return {"model": params, "score": {"weight": weight_D, "bias": jnp.zeros((), jnp.float32)}}


def score(params: Params, config: ModelConfig, tokens_BT: jax.Array, lengths_B: jax.Array,
          execution: Execution = Execution()) -> jax.Array:
    """Raw scores of rows, at the last token of each.

    Args:
      params: as `init_reward` returns them.
      config: the architecture.
      tokens_BT: int32, padded on the right with anything.
      lengths_B: int32, tokens of each row; the score of a row of length 0 means nothing.
      execution: dtype, scan, remat, attention. The head is float32.

    Returns:
      float32 [B].
    """
    hidden_BTD = hidden_states(params["model"], config, tokens_BT, execution=execution)
    last_BD = jnp.take_along_axis(hidden_BTD, jnp.maximum(lengths_B - 1, 0)[:, None, None], axis=1)[:, 0]
    return last_BD.astype(jnp.float32) @ params["score"]["weight"] + params["score"]["bias"]


def ranking_objective(config: ModelConfig, execution: Execution = Execution(), *, loss: str = "bradley_terry",
                      margin: float = 0.0, centring: float = 0.0) -> LossFn:
    """Returns loss_fn(params, RankingBatch) -> (loss, metrics): a mean over rankings, nats.

    Args:
      config, execution: as `score` takes them.
      loss: "bradley_terry" over all pairs of a ranking (InstructGPT), or "plackett_luce" of the whole order.
      margin: score by which the better is to lead, per tier; of Bradley-Terry.
      centring: pull of scores to 0, which orders leave open.

    Raises:
      ValueError: for an unknown loss, or a margin with Plackett-Luce.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; choose one of {', '.join(LOSSES)}")
    if loss == "plackett_luce" and margin:
        raise ValueError(f"margin ({margin}) is a term of pairs: leave it 0 with plackett_luce")
    compare = functools.partial(pairwise_ranking, margin=margin) if loss == "bradley_terry" else plackett_luce

    def loss_fn(params: Any, batch: RankingBatch) -> tuple[Mean, Metrics]:
        B, K, T = batch.tokens.shape
        scores_R = score(params, config, batch.tokens.reshape(B * K, T), batch.lengths.reshape(B * K), execution)
        return compare(scores_R.reshape(B, K), batch.tiers, batch.lengths > 0, centring=centring)
    return loss_fn


def split_trained(params: Params, blocks: int) -> tuple[Params, Params]:
    """(what is trained, what is frozen): the last blocks, the final norm and the head, against all before them.

    Args:
      params: as `init_reward` returns them.
      blocks: how many of the last blocks are trained, from 1.

    Raises:
      ValueError: when the model has fewer.
    """
    model = params["model"]
    layers = len(jax.tree.leaves(model["blocks"])[0])
    if not 1 <= blocks <= layers:
        raise ValueError(f"{blocks} of the last blocks cannot be trained: the model has {layers}")
    trained = {"model": {"blocks": jax.tree.map(lambda x: x[layers - blocks:], model["blocks"]),
                         "final_norm": model["final_norm"]}, "score": params["score"]}
    frozen = {**{name: part for name, part in model.items() if name != "final_norm"},
              "blocks": jax.tree.map(lambda x: x[:layers - blocks], model["blocks"])}
    return trained, frozen


def join_trained(trained: Params, frozen: Params, *, stacked: bool) -> Params:
    """The inverse of `split_trained`.

    Args:
      trained, frozen: its two halves.
      stacked: True gives blocks as `init_reward` has them. False gives a tuple of layers: for training, because the
        gradient then ends at the first trained layer, where one scan over all would run back to the first of all.
    """
    before, after = frozen["blocks"], trained["model"]["blocks"]
    blocks = (jax.tree.map(lambda *x: jnp.concatenate(x), before, after) if stacked
              else (*split_layers(before), *split_layers(after)))
    return {"model": {**frozen, **trained["model"], "blocks": blocks}, "score": trained["score"]}


_compiled_score = jax.jit(score, static_argnames=("config", "execution"))


def score_rows(reward: Reward, rows: Sequence[Sequence[int]], *, batch: int = 64,
               execution: Execution = Execution(scan=False)) -> np.ndarray:
    """Raw scores of rows of token ids: float64 [N]. One program is compiled for each `row_width` that occurs.

    Args:
      reward: the model.
      rows: each from 1 token to `reward.row_length`.
      batch: rows run together; the last batch is filled up, so that its size compiles nothing.
      execution: as `score`.

    Raises:
      ValueError: for a row that is empty, too long, or of another tokenizer.
    """
    for i, row in enumerate(rows):
        if not 1 <= len(row) <= reward.row_length or max(row) >= reward.model.vocab_size or min(row) < 0:
            raise ValueError(f"row {i} has {len(row)} tokens: give 1 to {reward.row_length} of them, each an id below "
                             f"{reward.model.vocab_size}")
    scores = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(rows), batch):
        some = order[start:start + batch]
        width = min(row_width(len(rows[some[-1]])), reward.row_length)
        tokens_BT, lengths_B = np.zeros((batch, width), np.int32), np.zeros(batch, np.int32)
        for b, i in enumerate(some):
            tokens_BT[b, :len(rows[i])], lengths_B[b] = rows[i], len(rows[i])
        scores[some] = np.asarray(_compiled_score(reward.params, reward.model, tokens_BT, lengths_B, execution)
                                  )[:len(some)]
    return scores


def score_texts(reward: Reward, prompts: Sequence[Sequence[Message]], texts: Sequence[Sequence[str]], *,
                batch: int = 64, execution: Execution = Execution(scan=False)) -> np.ndarray:
    """Scores of completions in standard deviations of the start model's samples: float64 [Q, G].

    Args:
      reward: the model.
      prompts: Q conversations that each end with a message to the assistant.
      texts: G completions of each.
      batch, execution: as `score_rows`.

    A prompt is cut from the left by whole turns until its longest completion fits, and a completion that does not fit
    with the last turn alone is cut on the right: while a policy is trained, a rambling one must not end the run.
    """
    rows: list[list[int]] = []
    for prompt, some in zip(prompts, texts, strict=True):
        found, _ = completion_rows(prompt, some, reward.tokenizer, reward.row_length)
        if found is None:
            found = [row[:reward.row_length] for row in completion_rows(prompt, some, reward.tokenizer)[0]]
        rows += found
    raw = score_rows(reward, rows, batch=batch, execution=execution)
    return ((raw - reward.mean) / reward.sd).reshape(len(prompts), -1)


def save_reward(folder: str | os.PathLike, reward: Reward) -> None:
    """Writes a model folder with one more file: reward.json, which holds the head and the other fields.

    Raises:
      OSError: when it could not be written.
    """
    folder = pathlib.Path(folder)
    save_model(folder, reward.params["model"], reward.model, reward.tokenizer)
    head = {name: np.asarray(part, np.float64).tolist() for name, part in reward.params["score"].items()}
    fields = {name: getattr(reward, name) for name in ("row_length", "mean", "sd", "temperature")}
    temporary = folder / f"{_FILE}.tmp"
    temporary.write_text(json.dumps({**fields, **head}) + "\n", encoding="utf-8")
    os.replace(temporary, folder / _FILE)


def load_reward(folder: str | os.PathLike, *, dtype: Any = jnp.float32) -> Reward:
    """Reads what `save_reward` wrote.

    Args:
      folder: of the reward model.
      dtype: of the weights in memory; the head is float32.

    Raises:
      FileNotFoundError: when there is no model, or one without a head; says what is missing.
      ValueError: when a part is damaged or does not fit the others.
    """
    path = pathlib.Path(folder) / _FILE
    if path.parent.is_dir() and not path.exists():
        raise FileNotFoundError(f"{folder} is not a reward model: it lacks {_FILE}. A language model becomes one by "
                                f"experiments.reward_model; if this was one, its writing was cut off")
    params, model, tokenizer = load_model(folder, dtype=dtype)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        row_length, weight, *numbers = (found[name] for name in ("row_length", "weight", "bias", "mean", "sd",
                                                                 "temperature"))
        bias, mean, sd, temperature = map(float, numbers)
        weight_D = np.asarray(weight, np.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): it must hold row_length, mean, sd, "
                         f"temperature, weight and bias") from error
    if weight_D.shape != (model.dim,):
        raise ValueError(f"{path} holds a head of shape {weight_D.shape}, and the model beside it has dim {model.dim}: "
                         f"they are not of one reward model")
    if not np.isfinite([*weight_D, bias, mean]).all() or not 0 < sd < math.inf or not 0 < temperature < math.inf:
        raise ValueError(f"{path}: its numbers must be finite, sd ({sd}) and temperature ({temperature}) above 0")
    if not isinstance(row_length, int) or not 1 <= row_length <= model.max_positions:
        raise ValueError(f"{path}: row_length ({row_length!r}) must lie from 1 to the model's max_positions "
                         f"({model.max_positions})")
    head = {"weight": jnp.asarray(weight_D), "bias": jnp.asarray(bias, jnp.float32)}
    return Reward({"model": params, "score": head}, model, tokenizer, row_length, mean, sd, temperature)
