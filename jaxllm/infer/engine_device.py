"""The engine's side of the device: weights, state and rows, and the calls of the compiled programs on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.infer import engine_steps as steps
from jaxllm.infer.engine_request import Request
from jaxllm.infer.engine_slots import Job
from jaxllm.infer.engine_steps import Drawn, Fixed
from jaxllm.model.axes import RULES
from jaxllm.model.params import Params, unstack_blocks


class Device:
    """All that lives on the device; calls return before their work is done.

    Args:
      params: the weights.
      fixed: what is compiled in.
      chunk: tokens of a whole piece of a prompt.
      together: prompts of which a piece is run in one call, before rounding up to the devices of a mesh.

    Raises:
      ValueError: when the slots cannot be split over the devices of the mesh.
    """

    def __init__(self, params: Params, fixed: Fixed, chunk: int, together: int) -> None:
        mesh = jax.sharding.get_abstract_mesh()
        shards = math.prod(mesh.shape.get(axis, 1) for axis in RULES["batch"])
        if fixed.slots % shards:
            raise ValueError(f"{fixed.slots} slots cannot be split over {shards} devices; take a multiple")
        self.fixed = fixed
        # A short piece for the end of a prompt, which is often all of it.
        self.widths = max(chunk // 4, 1), chunk
        self.together = -(-together // shards) * shards
        self._params = unstack_blocks(params)
        self._state = steps.empty_state(fixed=fixed)
        self._rows, self._device_rows = steps.empty_rows(fixed.slots), None
        vocab = fixed.config.vocab_size
        self._any, self._any_row = jnp.ones((fixed.slots, vocab), bool), jnp.ones((1, vocab), bool)

    def load(self, params: Params) -> None:
        """Takes new weights, and an empty cache: a NaN that the old ones left would outlive them behind any mask."""
        params = unstack_blocks(params)
        if _layout(params) != _layout(self._params):
            raise ValueError("these weights are not laid out as those before, so everything would compile anew; "
                             "prepare and quantise them in the same way")
        self._params = params
        self._state = steps.empty_state(fixed=self.fixed)

    def warm_up(self) -> None:
        """Runs every program once; slot 0 forgets what it holds."""
        for width in self.widths:
            self.prefill([], width)
        self.copy(0, 0)
        self.begin(0, (0,), 1, None)
        self.advance(1, None)
        jax.block_until_ready(self._state)

    def set_row(self, slot: int, request: Request | None) -> None:
        """Says what the request in a slot asks for, or that there is none."""
        steps.write_row(self._rows, slot, request)
        self._device_rows = None

    def prefill(self, jobs: Sequence[Job], width: int) -> None:
        """Runs the next `width` tokens of the prompts of some jobs, `together` of them at most."""
        P = self.together
        slots, starts, counts = np.full((P,), self.fixed.slots, np.int32), np.zeros(P, np.int32), np.zeros(P, np.int32)
        tokens = np.zeros((P, width), np.int32)
        for row, job in enumerate(jobs):
            piece = job.request.prompt[job.computed:job.computed + width]
            slots[row], starts[row], counts[row] = job.slot.index, job.computed, len(piece)
            tokens[row, :len(piece)] = piece
        self._state = steps.prefill(self._params, self._state, slots, tokens, starts, counts, fixed=self.fixed)

    def copy(self, source: int, target: int) -> None:
        """Gives a slot what another remembers of its prompt."""
        self._state = steps.copy_slot(self._state, np.int32(source), np.int32(target))

    def begin(self, slot: int, prompt: tuple[int, ...], max_tokens: int, mask: np.ndarray | None) -> Drawn:
        """Draws the first token of the request in a slot; `mask` bool [V] are the tokens that it may be."""
        padded = np.zeros((self.fixed.capacity,), np.int32)
        padded[:len(prompt)] = prompt
        mask = self._any_row if mask is None else mask[None]
        self._state, drawn = steps.begin(self._params, self._state, self._current_rows(), mask, np.int32(slot), padded,
                                         np.int32(len(prompt)), np.int32(max_tokens), fixed=self.fixed)
        return drawn

    def advance(self, count: int, masks: np.ndarray | None) -> Drawn:
        """Draws `count` tokens for every row; `masks` bool [B, V] are those that a constrained row may draw."""
        masks = self._any if masks is None else masks
        self._state, drawn = steps.advance(self._params, self._state, self._current_rows(), masks, np.int32(count),
                                           fixed=self.fixed)
        return drawn

    def _current_rows(self) -> Any:
        """The rows, copied to the device if they have changed."""
        if self._device_rows is None:
            self._device_rows = jax.tree.map(jnp.array, self._rows)
        return self._device_rows


def _layout(params: Params) -> Any:
    """What a compiled program depends on."""
    leaves, structure = jax.tree.flatten(params)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
