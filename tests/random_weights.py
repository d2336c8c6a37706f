"""Weights for tests of what is done with them: distributed as those of `init`, drawn by numpy, so nothing compiles."""

import jax
import numpy as np

from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Leaf, Params, parameter_table


def random_weights(config: ModelConfig, seed: int = 0) -> Params:
    """The tree of `init` with float32 numpy arrays."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(leaf.constant, leaf.std or 0.0, leaf.shape).astype(np.float32),
                        parameter_table(config), is_leaf=lambda node: isinstance(node, Leaf))
