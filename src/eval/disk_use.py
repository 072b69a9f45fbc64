"""Every file of a study's folder, once: what there is, how large, of which kind. Called by `status`; reads names and sizes only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

KINDS = {
    "data": "manifests", "scenes": "manifests", "labels": "labels", "annotators": "annotators",
    "features": "features of annotators",
}  # fmt: skip


@dataclass
class Tree:
    """The files below a folder.

    Attributes:
        sizes: path relative to the folder, with /, -> bytes.
        problems: folders that could not be listed, with the reason.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, base: Path, folders: tuple[str, ...]) -> Tree:
        """Lists some folders of `base`, each one that exists."""
        tree = cls()
        for name in folders:
            if (base / name).is_dir():
                tree.sizes.update(tree._files(base / name, name))
        return tree

    def _files(self, folder: Path, name: str) -> Iterator[tuple[str, int]]:
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            self.problems.append(f"{folder}: cannot be listed ({os.strerror(error.errno or 0)})")
            return
        for entry in entries:
            path = f"{name}/{entry.name}"
            try:
                if entry.is_dir(follow_symlinks=False):
                    yield from self._files(folder / entry.name, path)
                else:
                    yield path, entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:  # renamed or removed by a job meanwhile
                continue
            except OSError as error:
                self.problems.append(f"{folder / entry.name}: cannot be looked at ({os.strerror(error.errno or 0)})")

    def by_folder(self, depth: int) -> dict[str, int]:
        """Folder of so many parts -> bytes of everything below it."""
        sums: dict[str, int] = {}
        for path, size in self.sizes.items():
            parts = path.split("/")
            if len(parts) > depth:
                folder = "/".join(parts[:depth])
                sums[folder] = sums.get(folder, 0) + size
        return sums

    def by_kind(self) -> dict[str, int]:
        """What the files are -> bytes, the largest first."""
        sums: dict[str, int] = {}
        for path, size in self.sizes.items():
            kind = kind_of(PurePosixPath(path))
            sums[kind] = sums.get(kind, 0) + size
        return dict(sorted(sums.items(), key=lambda item: -item[1]))


def kind_of(path: PurePosixPath) -> str:
    """What a file is, by where it lies and how it is called."""
    top, *rest = path.parts
    if top != "results":
        return "logs and benchmarks"
    if len(rest) > 1 and rest[0] in ("runs", "segmentation"):
        if path.name.startswith(("checkpoint-", ".checkpoint-")):
            return "checkpoints of unfinished runs"
        return "weights of runs" if path.suffix == ".safetensors" else "records of runs"
    return KINDS.get(rest[0], "tables, figures, report") if len(rest) > 1 else "tables, figures, report"
