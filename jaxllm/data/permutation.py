"""A shuffle without state: a keyed permutation of 0 ... size-1, computed index by index."""

import functools
import math

import numpy as np

_MASK = 2**64 - 1
_BLOCK = 1024
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(29), np.uint64(32))
_ROUND_OFFSETS = np.array([[r * 0x9E3779B97F4A7C15 & _MASK] for r in range(1, 7)], np.uint64)


def permute(index: np.ndarray, size: int, seed: int, epoch: np.ndarray | int = 0) -> np.ndarray:
    """Maps each index to its place in a permutation of 0 ... size-1, one for each (seed, epoch).

    Six Feistel rounds over pairs (l, r) of numbers below a = ceil(sqrt(size)),
      l, r <- r, (l + f(r)) mod a,
    permute 0 ... a^2 - 1; an image >= size is mapped again until it falls below ("cycle walking"),
    which keeps it a permutation. Whole-number arithmetic only, so the same on every platform;
    memory is O(len(index)).

    Note: below a dozen items not every order is equally likely (six rounds mix so few too little).

    Args:
      index: in [0, size). integers [n]
      size: of the permutation, at least 1.
      seed: any integer; its lowest 64 bits count.
      epoch: which permutation under that seed; one, or one per index. integers, >= 0
    Returns:
      The images, int64 [n].
    Raises:
      ValueError: if an index is outside [0, size).
    References:
      Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002, sections 3 and 5; f follows
      splitmix64 (Steele et al., 2014). Shuffling a corpus in this way: levanter.
    Example:
      >>> sorted(permute(np.arange(5), 5, seed=1).tolist())
      [0, 1, 2, 3, 4]
    """
    index = np.asarray(index, np.int64)
    if size < 1 or (index.size and (index.min() < 0 or index.max() >= size)):
        raise ValueError(f"every index must be in [0, {size})")
    epoch = np.zeros(index.shape, np.uint64) + np.asarray(epoch).astype(np.uint64)
    key = _mix(_mix(np.array([seed & _MASK], np.uint64)) + epoch)
    round_keys = key + _ROUND_OFFSETS
    side = np.uint64(math.isqrt(size - 1) + 1)
    image = _feistel(index.astype(np.uint64), side, round_keys)
    outside = np.flatnonzero(image >= size)
    while len(outside):
        image[outside] = _feistel(image[outside], side, round_keys[:, outside])
        outside = outside[image[outside] >= size]
    return image.astype(np.int64)


def shuffled(examples: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Returns which of `size` items stands at each place of their endless shuffled sequence.

    Places 0 ... size-1 hold every item once, the next `size` places every item once in another
    order, and so on: item = permute(place mod size, size, seed, place div size).

    Args:
      examples: places in the sequence, >= 0. integers [n]
      size, seed: as for `permute`.
    Returns:
      Items in [0, size), int64 [n].
    """
    examples = np.asarray(examples, np.int64)
    if not len(examples):
        return examples
    block, within = np.divmod(examples, _BLOCK)
    blocks, row = np.unique(block, return_inverse=True)
    return np.stack([_shuffled_block(b, size, seed) for b in blocks.tolist()])[row, within]


@functools.lru_cache(maxsize=64)  # a small batch would else pay the fixed cost of permute each time
def _shuffled_block(block: int, size: int, seed: int) -> np.ndarray:
    epoch, index = np.divmod(np.arange(block * _BLOCK, (block + 1) * _BLOCK), size)
    return permute(index, size, seed, epoch)


def _feistel(value: np.ndarray, side: np.uint64, round_keys: np.ndarray) -> np.ndarray:
    left, right = np.divmod(value, side)
    for key in round_keys:
        mixed = (right ^ key) * _FACTORS[0]
        mixed ^= mixed >> _SHIFTS[1]
        mixed *= _FACTORS[1]
        mixed >>= _SHIFTS[1]  # the high half: well mixed, and far from overflow in the sum below
        mixed += left
        mixed %= side
        left, right = right, mixed
    return left * side + right


def _mix(x: np.ndarray) -> np.ndarray:
    """Scrambles 64 bits; products wrap around on purpose. uint64, any shape"""
    x = (x ^ (x >> _SHIFTS[0])) * _FACTORS[0]
    x = (x ^ (x >> _SHIFTS[0])) * _FACTORS[1]
    return x ^ (x >> _SHIFTS[1])
