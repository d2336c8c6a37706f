"""AdamW and Muon with decay masks by path, and the three learning-rate schedules; all from optax."""

from __future__ import annotations

from typing import Any

import jax
import optax

SCHEDULES = ("cosine", "linear", "wsd")
OPTIMIZERS = ("adamw", "muon")


def learning_rate_schedule(name: str, peak: float, *, warmup_steps: int, total_steps: int,
                           final_fraction: float = 0.1, decay_fraction: float = 0.2) -> optax.Schedule:
    """Linear warm-up to `peak`, then down to `final_fraction * peak` at `total_steps`.

    Args:
      name: "cosine" and "linear" fall from the end of the warm-up; "wsd" (warm-up, stable, decay) holds the peak
        and falls linearly over the last `decay_fraction` of all steps.
      peak: highest learning rate, above 0.
      warmup_steps: steps from 0 to the peak; step 0 already takes peak / warmup_steps.
      total_steps: steps of the whole run.
      final_fraction: in [0, 1].
      decay_fraction: in (0, 1], of "wsd" alone.

    Raises:
      ValueError: for an unknown name, a number out of range, or a warm-up that leaves no step after it.

    References: Loshchilov and Hutter, SGDR, 2016. https://arxiv.org/abs/1608.03983
      Hu et al., MiniCPM, 2024 (WSD). https://arxiv.org/abs/2404.06395
    """
    if name not in SCHEDULES:
        raise ValueError(f"optimizer.schedule is {name!r}; choose one of {SCHEDULES}")
    if peak <= 0:
        raise ValueError(f"optimizer.learning_rate ({peak}) must be above 0")
    if not 0 <= final_fraction <= 1:
        raise ValueError(f"optimizer.final_fraction ({final_fraction}) must lie in [0, 1]")
    if not 0 < decay_fraction <= 1:
        raise ValueError(f"optimizer.decay_fraction ({decay_fraction}) must lie in (0, 1]")
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"optimizer.warmup_steps ({warmup_steps}) must be at least 0 and less than steps "
                         f"({total_steps})")
    rest = total_steps - warmup_steps
    if name == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, alpha=final_fraction)
    elif name == "linear":
        after = optax.linear_schedule(peak, final_fraction * peak, rest)
    else:
        decay_steps = min(rest, max(1, round(decay_fraction * total_steps)))
        after = optax.linear_schedule(peak, final_fraction * peak, decay_steps, rest - decay_steps)
    warmup = optax.linear_schedule(peak / max(warmup_steps, 1), peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after], [warmup_steps])


def decay_mask(params: Any) -> Any:
    """True for the parameters that weight decay pulls to zero: matrices and embeddings, not norms and biases.

    By path, not by rank: a norm's scale, stacked over the layers, is a matrix too.
    """
    def decays(path, leaf) -> bool:
        name = path[-1].key
        return not (name == "scale" or name.endswith("bias"))
    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(name: str, learning_rate: optax.ScalarOrSchedule, *, beta1: float = 0.9, beta2: float = 0.95,
                   epsilon: float = 1e-8, weight_decay: float = 0.1,
                   clip_norm: float = 1.0) -> optax.GradientTransformation:
    """The optimizer as one optax transformation.

    Args:
      name: "adamw", or "muon": orthogonalised momentum for the matrices of the blocks (its update scaled to
        AdamW's root mean square, so that the same learning rate serves), Adam with Nesterov momentum and no decay
        for the rest.
      learning_rate: a number or a schedule.
      beta1, beta2, epsilon: of Adam; beta1 is also Muon's momentum.
      weight_decay: decoupled, times the learning rate; see `decay_mask`.
      clip_norm: global norm to which gradients are cut first; 0 = not.

    Raises:
      ValueError: for an unknown name.

    References: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2017. https://arxiv.org/abs/1711.05101
      Jordan et al., Muon, 2024; Liu et al., Muon is Scalable for LLM Training, 2025. https://arxiv.org/abs/2502.16982
    """
    if name == "adamw":
        update = optax.adamw(learning_rate, beta1, beta2, epsilon, weight_decay=weight_decay, mask=decay_mask)
    elif name == "muon":
        update = optax.contrib.muon(
            learning_rate, beta=beta1, weight_decay=weight_decay, adam_b1=beta1, adam_b2=beta2, eps=epsilon,
            consistent_rms=0.2, muon_weight_dimension_numbers=_muon_dimensions)
    else:
        raise ValueError(f"optimizer.name is {name!r}; choose one of {OPTIMIZERS}")
    return optax.chain(optax.clip_by_global_norm(clip_norm), update) if clip_norm else update


def _muon_dimensions(params: Any) -> Any:
    """Which axes of a stacked block matrix are its input and its output; None leaves a parameter to Adam."""
    dimensions = {"query": (1, (2, 3)), "key": (1, (2, 3)), "value": (1, (2, 3)), "output": ((1, 2), 3),
                  "up": (1, 2), "gate": (1, 2), "down": (1, 2)}

    def of(path, leaf):
        names = [entry.key for entry in path]
        if names[0] != "blocks" or names[-1] not in dimensions:
            return None
        reduction, output = dimensions[names[-1]]
        return optax.contrib.MuonDimensionNumbers(reduction, output)
    return jax.tree_util.tree_map_with_path(of, params)
