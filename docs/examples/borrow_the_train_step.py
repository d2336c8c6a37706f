"""The update step of jaxllm over somebody else's forward: accumulation, skipping and averages for a curve fit."""

import jax
import jax.numpy as jnp
import optax

from jaxllm.train.metrics import Mean
from jaxllm.train.step import init_state, make_train_step


def loss_fn(params, batch):
    hidden = jnp.tanh(batch["x"][:, None] * params["in"][None] + params["bias"][None])
    error = jnp.square(hidden @ params["out"] - batch["y"])
    # A sum and its weight, not a mean: the step divides once, after all micro-batches.
    return Mean(jnp.sum(error * batch["weight"]), jnp.sum(batch["weight"])), {}


key_in, key_out, key_x = jax.random.split(jax.random.key(0), 3)
params = {"in": jax.random.normal(key_in, (32,)), "bias": jnp.zeros((32,)),
          "out": 0.1 * jax.random.normal(key_out, (32,))}
optimizer = optax.adam(1e-2)
step = jax.jit(make_train_step(loss_fn, optimizer, microbatches=4, ema_decay=0.99), donate_argnums=0)
state = init_state(params, optimizer, ema=True)
x = jax.random.uniform(key_x, (64,), minval=-3.0, maxval=3.0)
batch = {"x": x, "y": jnp.sin(x), "weight": jnp.where(x > 2.5, 0.0, 1.0)}  # micro-batches of unequal weight
first = None
for _ in range(500):
    state, metrics = step(state, batch)
    first = metrics["loss"] if first is None else first
print(f"loss {first:.4f} -> {metrics['loss']:.4f} after {state.step} steps, {state.skipped} skipped")
