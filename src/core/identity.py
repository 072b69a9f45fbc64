"""Run identity: which settings make the digest in a folder's name, and the version of each stage's code.

A digest covers scientific settings only. Raising a stage's version here makes a new folder beside the old one; do it
when a change of code changes that stage's numbers, because Snakemake does not look into the package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

STAGE_VERSIONS = {
    "data": 1, "annotate": 1, "adapt": 1, "train": 3, "finetune": 3, "evaluate": 2, "fidelity": 1,
    "scenes": 1, "segment": 1, "evaluate_segmentation": 1,
}  # fmt: skip
DIGEST_LENGTH = 8  # 32 bits: a collision among 1,000 specs of one name has odds of about 1e-4


def digest_of(spec: Mapping[str, Any]) -> str:
    """First eight hexadecimal digits of the SHA-256 of a spec in canonical JSON (sorted keys, no spaces)."""
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:DIGEST_LENGTH]
