"""The model as a linen module, for users of Flax: `.init` and `.apply` around `init` and `forward`."""

from __future__ import annotations

import jax
from flax import linen as nn

from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import init
from jaxllm.model.transformer import forward


class Transformer(nn.Module):
    """Holds our parameter tree under the one name "model".

    Attributes:
      config: the architecture.
      execution: dtype, scan, remat, attention.

    `variables["params"]["model"]` is what every function of jaxllm takes as `params`, and the other way round for a
    plain tree with stacked blocks: linen refuses one that is quantised or prepared for decoding.

    >>> from jaxllm.model.config import preset
    >>> module = Transformer(preset("nano"))
    >>> tokens = jax.numpy.ones((1, 4), int)
    >>> logits, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), tokens)
    >>> logits.shape, variables["params"]["model"]["embedding"]["tokens"].shape
    ((1, 4, 256), (256, 32))
    """

    config: ModelConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, tokens: jax.Array, segment_ids: jax.Array | None = None,
                 positions: jax.Array | None = None) -> jax.Array:
        """Logits float32 [B, T, V] for tokens int32 [B, T]; see `jaxllm.model.transformer.forward`."""
        params = self.param("model", lambda key: init(self.config, key))
        return forward(params, self.config, tokens, segment_ids=segment_ids, positions=positions,
                       execution=self.execution)
