"""Random numbers that depend on what is drawn and never on who draws it.

A seed derives from words and numbers (run seed, epoch, sample id), so worker count, order and restarts change nothing.
"""

from __future__ import annotations

import hashlib


def derived_seed(*parts: int | str) -> int:
    """Hashes the parts to a seed in [0, 2**63).

    Example:
        derived_seed("augment", run_seed, epoch, sample_id)
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def sample_id(relative_path: str) -> int:
    """Identifies a photograph: 64-bit BLAKE2b of its POSIX path relative to the data set's root, UTF-8.

    Example:
        sample_id("train/n01440764/a.JPEG")
    """
    return int.from_bytes(hashlib.blake2b(relative_path.encode("utf-8"), digest_size=8).digest(), "big")
