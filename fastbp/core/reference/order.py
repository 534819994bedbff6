"""The order of an epoch, and the random numbers behind it and behind dropout."""

from __future__ import annotations

import numpy as np

from fastbp.core.plan import Array

ROUNDS = 4
FEWEST_BITS = 8  # smaller domains would have too few permutations
GOLDEN = 0x9E3779B97F4A7C15
MASK = 0xFFFFFFFFFFFFFFFF


def mix(h: Array) -> Array:
    """SplitMix64's output function (Steele, Lea & Flood 2014) on uint64."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def _scramble(h: Array) -> Array:
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
    return h ^ (h >> np.uint32(16))


def _feistel(x: Array, keys: Array, low_bits: int, high_bits: int) -> Array:
    low = (x % 2**low_bits).astype(np.uint32)
    high = (x >> np.uint64(low_bits)).astype(np.uint32)
    for i in range(0, ROUNDS, 2):
        high ^= _scramble(low ^ keys[i]) & np.uint32(2**high_bits - 1)
        low ^= _scramble(high ^ keys[i + 1]) & np.uint32(2**low_bits - 1)
    return (high.astype(np.uint64) << np.uint64(low_bits)) | low


def batch_order(rows: Array, first: int, samples: int, order: int | Array | None) -> None:
    """rows (count,) int64 = the numbers first..first+count of an epoch's order of its samples, or of no shuffle.

    The order is a pseudo-random permutation that takes no memory: a Feistel network (Luby & Rackoff 1988) permutes the
    numbers of so many bits, and numbers beyond the last sample are sent through it again until they fall inside (cycle
    walking, Black & Rogaway 2002). order is its key, below 2**64; None leaves the samples in their order, and row
    numbers (n,) int64 are taken as they are.
    """
    if isinstance(order, np.ndarray):
        rows[:] = order[first : first + len(rows)]
        return
    rows[:] = np.arange(first, first + len(rows))
    if order is None:
        return
    bits = max(FEWEST_BITS, (samples - 1).bit_length())
    seeds = np.array([(order + GOLDEN * (i + 1)) & MASK for i in range(ROUNDS)], np.uint64)
    keys = (mix(seeds) >> np.uint64(32)).astype(np.uint32)
    x = rows.astype(np.uint64)
    outside = np.ones(len(x), bool)
    while outside.any():
        x[outside] = _feistel(x[outside], keys, bits // 2, bits - bits // 2)
        outside = x >= samples
    rows[:] = x
