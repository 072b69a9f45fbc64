"""Tar files that others made: which errors tarfile raises on them, and their members without end. Called by the readers of tars."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator

# tarfile trusts its headers: a hostile one ends in any of these
TAR_ERRORS = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, MemoryError)


def forward_members(
    archive: tarfile.TarFile, damaged: Callable[[tarfile.TarInfo], Exception]
) -> Iterator[tarfile.TarInfo]:
    """The members of an archive, each behind the one before: a negative size would have them listed without end.

    Args:
        archive: open for reading.
        damaged: the error to raise for a member that is not.
    """
    behind = -1
    while (member := archive.next()) is not None:
        if member.size < 0 or member.offset <= behind:
            raise damaged(member)
        behind = member.offset
        yield member
