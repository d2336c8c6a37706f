"""Learning from pairs without a reward model: rankings -> rows of pairs -> a `LossFn` for DPO, IPO, KTO or SFT."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxllm.data.chat import render
from jaxllm.data.preferences import Ranking
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.model.params import Params
from jaxllm.rl.policy_loss import average_tokens
from jaxllm.rl.policy_step import PolicyModel
from jaxllm.rl.preference_loss import dpo, ipo, kto, kto_baseline
from jaxllm.train.metrics import Mean, Metrics
from jaxllm.train.step import LossFn

LOSSES = ("dpo", "ipo", "kto", "sft")
CHOSEN, REJECTED, OTHER = range(3)


@struct.dataclass
class PairBatch:
    """Pairs of replies to the same prompt; the second axis is (chosen, rejected, a reply to another prompt).

    Attributes:
      tokens: int32 [B, 3, T], prompt and reply, padded on the right.
      mask: bool [B, 3, T], True for the reply's tokens, the one that ends its turn among them; a row of B without any
        stands for no pair.
      reference_logp: float32 [B, 3], log-probability of each reply under the start model, nats.
    """

    tokens: Any
    mask: Any
    reference_logp: Any


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs as token ids, P of them.

    Attributes:
      prompts: of each pair.
      replies: (chosen, rejected, the best reply of a ranking of another prompt) of each; the last is the same for all
        pairs of a ranking.
      left_out: pairs that are too long, or whose replies are the same tokens.
    """

    prompts: list[list[int]]
    replies: list[tuple[list[int], list[int], list[int]]]
    left_out: int

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def longest(self) -> int:
        """Most tokens of a prompt with a reply."""
        return max(len(prompt) + max(map(len, replies)) for prompt, replies in zip(self.prompts, self.replies,
                                                                                   strict=True))

    def swapped(self, swap: Sequence[bool]) -> Pairs:
        """The same pairs with chosen and rejected exchanged where asked: labels that say nothing, for a control."""
        replies = [(rejected, chosen, other) if exchange else (chosen, rejected, other)
                   for (chosen, rejected, other), exchange in zip(self.replies, swap, strict=True)]
        return dataclasses.replace(self, replies=replies)

    def batch(self, index: Sequence[int], reference_logp: np.ndarray, width: int) -> PairBatch:
        """The pairs with these indices as arrays; `reference_logp` is float [P, 3]."""
        tokens, mask = np.zeros((len(index), 3, width), np.int32), np.zeros((len(index), 3, width), bool)
        for b, i in enumerate(index):
            begin = len(self.prompts[i])
            for r, reply in enumerate(self.replies[i]):
                tokens[b, r, :begin + len(reply)] = [*self.prompts[i], *reply]
                mask[b, r, begin:begin + len(reply)] = True
        return PairBatch(tokens, mask, np.asarray(reference_logp[list(index)], np.float32))


def ranking_pairs(rankings: Sequence[Ranking], tokenizer: Tokenizer, row_length: int, seed: int = 0) -> Pairs:
    """All pairs of all rankings that are not tied.

    Args:
      rankings: of any number of completions each.
      tokenizer: its chat format is used.
      row_length: most tokens of a prompt with a reply; longer pairs are left out.
      seed: of which other reply stands beside a pair.

    Raises:
      ValueError: when the format cannot hold a ranking (names it), or no pair is left.
    """
    rendered = [_rows(ranking, tokenizer) for ranking in rankings]
    order = np.random.default_rng(seed).permutation(len(rankings))
    prompts, replies, left_out = [], [], 0
    for i, (ranking, (prompt, rows)) in enumerate(zip(rankings, rendered, strict=True)):
        other = _other(i, order, rankings, rendered)[:max(row_length - len(prompt), 0)]
        for better, worse in ranking.pairs():
            longest = len(prompt) + max(len(rows[better]), len(rows[worse]))
            if longest > row_length or rows[better] == rows[worse]:
                left_out += 1
            else:
                prompts.append(prompt)
                replies.append((rows[better], rows[worse], other))
    if not prompts:
        raise ValueError(f"none of {left_out} pairs fits rows of {row_length} tokens; raise the row length or give "
                         f"other data")
    return Pairs(prompts, replies, left_out)


def _rows(ranking: Ranking, tokenizer: Tokenizer) -> tuple[list[int], list[list[int]]]:
    """Token ids of a ranking's prompt, and of each reply to it."""
    try:
        prompt = render(ranking.prompt, tokenizer, add_generation_prompt=True).ids
        rows = [render([*ranking.prompt, {"role": "assistant", "content": text}], tokenizer, mask=False).ids
                for text in ranking.completions]
    except ValueError as error:
        raise ValueError(f"{ranking.where or 'a ranking'}: {error}") from error
    if any(row[:len(prompt)] != prompt for row in rows):
        raise ValueError(f"{ranking.where or 'a ranking'}: the chat format writes a prompt otherwise once a reply "
                         f"follows it; choose another format")
    return prompt, [row[len(prompt):] for row in rows]


def _other(i: int, order: np.ndarray, rankings: Sequence[Ranking],
           rendered: Sequence[tuple[list[int], list[list[int]]]]) -> list[int]:
    """The best reply of the first ranking of another prompt, in an order of its own for each ranking."""
    for j in np.roll(order, -i):
        if rankings[j].prompt != rankings[i].prompt:
            return rendered[j][1][rankings[j].ranking[0][0]]
    return rendered[i][1][rankings[i].ranking[-1][0]]  # there is one prompt alone


def orders(count: int, batch_size: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of each step's pairs: every pair once in an epoch, each epoch in another order."""
    if batch_size > count:
        raise ValueError(f"a batch of {batch_size} pairs cannot be taken from {count}; lower the batch size")
    rest, epoch = np.array([], int), 0
    for _ in range(steps):
        while len(rest) < batch_size:
            rest = np.concatenate([rest, np.random.default_rng((seed, epoch)).permutation(count)])
            epoch += 1
        yield rest[:batch_size]
        rest = rest[batch_size:]


def direct_objective(model: PolicyModel, loss: str, *, beta: float = 0.1) -> LossFn:
    """Returns loss_fn(params, PairBatch) -> (loss, metrics), whose totals add over micro-batches.

    dpo, ipo: over pairs. kto: over replies, both of each pair; its baseline is the micro-batch's own, the mean of the
    log-ratios of replies to other prompts. sft: over the tokens of the chosen replies.

    Args:
      model: the policy.
      loss: one of LOSSES.
      beta: of `preference_loss`; of no effect on sft.

    Raises:
      ValueError: for an unknown loss or a beta that is not above 0.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss {loss!r} is unknown; take one of {', '.join(LOSSES)}")
    if not beta > 0.0:
        raise ValueError(f"beta is {beta}; it must be above 0")

    def reply_logp(params: Params, batch: PairBatch, rows: Sequence[int]) -> jax.Array:
        tokens_BRT, mask_BRT = batch.tokens[:, rows], batch.mask[:, rows]
        logp_BT, _, _ = model.outputs({"model": params}, tokens_BRT.reshape(-1, tokens_BRT.shape[-1]))
        return jnp.where(mask_BRT, logp_BT.reshape(tokens_BRT.shape), 0.0)

    def loss_fn(params: Params, batch: PairBatch) -> tuple[Mean, Metrics]:
        if loss == "sft":
            return average_tokens(-reply_logp(params, batch, [CHOSEN])[:, 0], batch.mask[:, CHOSEN]), {}
        valid_B = jnp.any(batch.mask[:, CHOSEN], axis=-1)
        policy_BR = jnp.sum(reply_logp(params, batch, [CHOSEN, REJECTED]), axis=-1)
        reference_BR = batch.reference_logp
        if loss == "kto":
            other_B = jnp.sum(reply_logp(params, batch, [OTHER]), axis=-1)[:, 0]
            baseline = kto_baseline(other_B, reference_BR[:, OTHER], valid_B)
            good_BR = jnp.broadcast_to(jnp.array([[True, False]]), policy_BR.shape)
            return kto(policy_BR, reference_BR[:, :2], good_BR, baseline, beta=beta,
                       valid=jnp.broadcast_to(valid_B[:, None], policy_BR.shape))
        found = dpo if loss == "dpo" else ipo
        return found(policy_BR[:, CHOSEN], policy_BR[:, REJECTED], reference_BR[:, CHOSEN], reference_BR[:, REJECTED],
                     beta=beta, valid=valid_B)
    return loss_fn
