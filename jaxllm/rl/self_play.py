"""What self-play learns from games: the moves of the learner, with the result of the game against its side's mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxllm.model.params import Params
from jaxllm.rl.advantages import group_advantages
from jaxllm.rl.game_play import Played
from jaxllm.rl.policy_settings import PolicySettings
from jaxllm.rl.policy_step import PolicyBatch, PolicyModel, policy_objective
from jaxllm.train.step import TrainState, make_train_step

# In turn: of some games, which sides (0 began, 1 answered) the learner played.
Learns = Sequence[tuple[int, ...]]


def make_batch(played: Sequence[Played], learns: Learns, kind: str = "reinforce++_baseline") -> PolicyBatch:
    """The learner's moves and their advantages; whoever draws them knows them only as text.

    The baseline is of one side of one kind of games (`group_advantages`): the side that begins wins more often, and
    an old opponent is easier than oneself, which is no merit of any move.

    Args:
      played: games [B] of each kind, all the same number B.
      learns: of each kind, the sides whose moves are learnt from.
      kind: of advantage; its groups are the sides, its samples the games.

    Returns:
      A row per game: [R, 1 + P], numpy; `old_logp` is not yet known and None.

    Raises:
      ValueError: when nothing is learnt, or the kinds differ in their number of games.
    """
    pairs = [(number, side) for number, sides in enumerate(learns) for side in sides]
    if not pairs or len({len(games.tokens) for games in played}) > 1:
        raise ValueError("self-play learns from one side or more, and from as many games of each kind")
    rewards_QG = np.stack([played[number].rewards[:, side] for number, side in pairs])
    advantages_QG = np.asarray(group_advantages(jnp.asarray(rewards_QG), kind=kind))
    tokens = np.stack([games.tokens for games in played])
    advantages, mask = np.zeros(tokens.shape, np.float32), np.zeros(tokens.shape, bool)
    for (number, side), advantages_G in zip(pairs, advantages_QG, strict=True):
        chosen = played[number].chosen(side)
        mask[number] |= chosen
        advantages[number] += np.where(chosen, advantages_G[:, None], 0.0)
    tokens, mask, advantages = (x.reshape(-1, x.shape[-1]) for x in (tokens, mask, advantages))
    return PolicyBatch(tokens=tokens, mask=mask, old_logp=None, reference_logp=None, old_values=None,
                       advantages=advantages, returns=None, importance=None, kl_coefficient=None)


def make_improve(model: PolicyModel, settings: PolicySettings, optimizer: optax.GradientTransformation
                 ) -> Callable[[TrainState, PolicyBatch], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns improve(state, batch) -> (new state, metrics of its last update), compiled.

    It scores the moves under the policy that made them, then goes over all of them `settings.epochs` times.

    Raises:
      ValueError: for settings that need what games do not have: a KL to the start model, a critic, minibatches.
    """
    if settings.kl_in != "none" or settings.baseline == "critic" or settings.minibatches != 1:
        raise ValueError("self-play takes policy.kl_in='none', no critic and policy.minibatches=1")
    update = make_train_step(policy_objective(model, settings, 1), optimizer)

    def improve(state: TrainState, batch: PolicyBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        logp, entropy, _ = model.outputs(state.params, batch.tokens)
        batch = batch.replace(old_logp=jax.lax.stop_gradient(logp))
        moves = jnp.maximum(jnp.sum(batch.mask), 1)
        found = {"entropy": jnp.sum(jnp.where(batch.mask, entropy, 0.0)) / moves, "moves": moves}
        state, metrics = jax.lax.scan(lambda state, _: update(state, batch), state, length=settings.epochs)
        return state, found | {name: values[-1] for name, values in metrics.items()}
    return jax.jit(improve, donate_argnums=0)


def policy_params(params: Params) -> Params:
    """The parameters as `PolicyModel` takes them."""
    return {"model": jax.tree.map(jnp.copy, params)}
