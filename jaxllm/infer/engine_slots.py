"""Who sits in which slot, and what a slot still remembers of earlier prompts.

Keys and values are shared in whole pieces of a prompt only: a piece is always run by the same program, at the same
place and alone in its row, so that what is reused is bit for bit what would have been computed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(eq=False)
class Job:
    """A request on its way.

    Attributes:
      pieces: a key per whole piece of the prompt, which stands for all tokens up to the piece's end.
      whole: the key of the prompt itself.
      computed: prompt tokens that the slot's cache holds for it.
      cached: how many of them were there already.
      sent: tokens that the device has been told to draw, at most.
      made: tokens that it is known to have drawn.
    """

    id: int
    request: Any
    pieces: tuple[bytes, ...]
    whole: bytes
    slot: Slot | None = None
    planned: bool = False
    begun: bool = False
    done: bool = False
    computed: int = 0
    cached: int = 0
    sent: int = 0
    made: int = 0

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt)


@dataclasses.dataclass(eq=False)
class Slot:
    """A row of the cache.

    Attributes:
      held: keys of the pieces whose keys and values it holds.
      whole: key of the prompt of which it holds everything, the state at its end included.
      used: when it was last given away.
    """

    index: int
    job: Job | None = None
    held: tuple[bytes, ...] = ()
    whole: bytes | None = None
    used: int = 0


def prompt_keys(prompt: Sequence[int], chunk: int) -> tuple[tuple[bytes, ...], bytes]:
    """Keys of the prompt's whole pieces, and of the prompt.

    >>> first, second = prompt_keys([1, 2, 3, 4, 5], 2), prompt_keys([1, 2, 3, 9], 2)
    >>> [a == b for a, b in zip(first[0], second[0])], first[1] == second[1]
    ([True, False], False)
    """
    tokens = np.asarray(prompt, np.int32)
    digest, keys = hashlib.blake2b(digest_size=16), []
    whole = len(tokens) // chunk * chunk
    for start in range(0, whole, chunk):
        digest.update(tokens[start:start + chunk].tobytes())
        keys.append(digest.digest())
    digest.update(b"end" + tokens[whole:].tobytes())
    return tuple(keys), digest.digest()


def shared(held: Sequence[bytes], whole: bytes | None, job: Job, chunk: int) -> int:
    """Tokens of the job's prompt that need not be run where these keys are held.

    All of them, or whole pieces short of the last token: the state at its end has to come from somewhere.
    """
    if whole == job.whole:
        return job.length
    same = 0
    while same < min(len(held), len(job.pieces)) and held[same] == job.pieces[same]:
        same += 1
    return min(same, (job.length - 1) // chunk) * chunk


def choose_slot(free: Sequence[Slot], job: Job, chunk: int) -> Slot:
    """The free slot that remembers most of the prompt; of equals the one given away longest ago."""
    return max(free, key=lambda slot: (shared(slot.held, slot.whole, job, chunk), -slot.used))


def choose_source(slots: Sequence[Slot], job: Job, chunk: int) -> tuple[Slot, int]:
    """The slot that remembers most of the prompt, and how much; the job's own wins a draw."""
    amounts = [(shared(slot.held, slot.whole, job, chunk), slot is job.slot, slot.index) for slot in slots]
    amount, _, index = max(amounts)
    return slots[index], amount


def ready_jobs(slots: Sequence[Slot], chunk: int) -> list[Job]:
    """Jobs whose prompt is to be run, less those that wait for an older one to run what they share with it."""
    jobs = sorted((slot.job for slot in slots if slot.job and not slot.job.begun), key=lambda job: job.id)
    ready = []
    for place, job in enumerate(jobs):
        if not job.planned and place:
            now = choose_source(slots, job, chunk)[1]
            if any(shared(older.pieces, older.whole, job, chunk) > now for older in jobs[:place]):
                continue
        ready.append(job)
    return ready
