"""The sampler of jaxllm over logits that come from anywhere: here a table of letter pairs."""

import jax
import jax.numpy as jnp

from jaxllm.infer.sampling import SamplingSettings, sample

text = "the cat sat on the mat and the rat ran at the cat that sat on the hat " * 20
letters = sorted(set(text))
ids = jnp.array([letters.index(letter) for letter in text])
counts = jnp.zeros((len(letters), len(letters))).at[ids[:-1], ids[1:]].add(1.0)
table = jnp.log(counts + 1e-6)  # logits [V, V]: row = the last letter

settings = SamplingSettings(temperature=0.7, top_p=0.95)
draw = jax.jit(sample, static_argnames="settings")
last, out = jnp.array([letters.index("t")]), ["t"]
for i in range(60):
    last = draw(jax.random.fold_in(jax.random.key(0), i), table[last], settings=settings).tokens
    out.append(letters[int(last[0])])
print("".join(out))
