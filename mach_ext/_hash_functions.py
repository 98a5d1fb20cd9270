"""The seeded family of hash functions: random polynomials over the integers modulo a Mersenne prime."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

PRIME = 2**31 - 1  # a Mersenne prime: x mod p needs no division
MAX_LABELS = PRIME - 1
MAX_BUCKETS = PRIME
_CHUNK = 2**15  # labels hashed at a time, so that temporaries stay in the cache


def _coefficients(seed: int, repetition: int) -> list[int]:
    """Return the four coefficients mod p, highest power first.

    Each comes from 64 bits, so it is uniform up to 2^-33.
    """
    digest = hashlib.sha256(f"mach_ext.LabelHash/{seed}/{repetition}".encode()).digest()
    return [int.from_bytes(digest[i : i + 8], "little") % PRIME for i in range(0, 32, 8)]


def hash_labels(
    num_labels: int,
    num_buckets: int,
    num_repetitions: int,
    seed: int,
    first_label: int = 0,
    first_repetition: int = 0,
) -> NDArray[np.int32]:
    """Return the table [R, L] of the seeded family. Besides it, only a few chunks of labels take memory.

    Labels and repetitions are counted from the first ones given, so that a part needs no whole table.
    """
    polynomials = [_coefficients(seed, first_repetition + r) for r in range(num_repetitions)]
    table = np.empty((num_repetitions, num_labels), dtype=np.int32)
    for start in range(0, num_labels, _CHUNK):
        end = min(start + _CHUNK, num_labels)
        label = np.arange(first_label + start, first_label + end, dtype=np.int64)
        for r, (first, *others) in enumerate(polynomials):
            code = np.full_like(label, first)
            for coefficient in others:  # Horner; code <= p and label < p, so all stays below 2^62
                code *= label
                code += coefficient
                for _ in range(2):  # 2^31 = 1 mod p, so high bits fold onto low ones. Two folds give [0, p].
                    high = code >> 31
                    code &= PRIME
                    code += high
            code[code == PRIME] = 0
            table[r, start:end] = code.astype(np.int32) % np.int32(num_buckets)
    return table
