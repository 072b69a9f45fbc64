"""What all sections of the configuration are made of: their base class and the ranges that several share.

Called by `config` and `segment_config`, which hold the sections themselves; knows no key and no value.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PaperTable = Annotated[str, BeforeValidator(lambda found: str(found) if isinstance(found, int) else found)]  # 4 and "4"
Percent = Annotated[float, Field(ge=0.0, le=100.0)]
Positive = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=16, le=4096)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class Frozen(BaseModel):
    """Base of every section: no unknown keys, no change after validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
