"""Gets pretrained weights on a machine with a network, so that jobs on nodes without one find them.

Of the selected annotators and of students that start pretrained; with --published, or by name, of published checkpoints too. Files
go under weights_root, timm's weights into the model hub's own cache (HF_HOME). What is there is left alone. Says sizes before it
starts, and what a person must get. Exit code 1 where something is still missing afterwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.errors import CheckpointError, TokenLabelError, one_line, unknown_name
from ..core.files import sha256_of
from ..core.needed_weights import NeededWeights, needed_weights
from ..core.overlays import read_configuration, study_files
from ..core.study import Study
from ..core.weights_files import find_weights_file


@dataclass(frozen=True)
class Item:
    """What is to be done for one file of weights.

    Attributes:
        needed: the weights.
        state: here; get: can be fetched; person: only a person can get it; fail: something is wrong with it.
        said: where it is or comes from, or what is wrong.
        path: where a file from an address shall lie; None for the hub's.
        size_bytes: of what is to be fetched; None where unknown.
    """

    needed: NeededWeights
    state: Literal["here", "get", "person", "fail"]
    said: str
    path: Path | None = None
    size_bytes: int | None = None

    def line(self) -> str:
        """As the terminal shows it."""
        size = (
            f"{self.size_bytes / 1e6:,.1f} MB" if self.size_bytes is not None else "? MB" if self.state == "get" else ""
        )
        return f"{self.state:<6} | {', '.join(self.needed.names)} | {' '.join(filter(None, [size, self.said]))}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="annotators, models, published checkpoints (default: all that the study loads)",
    )
    parser.add_argument(
        "--configfile", type=Path, nargs="+", default=[], metavar="FILE", help="overlays of the study, as for snakemake"
    )
    parser.add_argument("--published", action="store_true", help="the selected published checkpoints too")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be fetched, and how large it is")
    parser.add_argument(
        "--timeout",
        type=float,
        default=30,
        metavar="SECONDS",
        help="without a byte, after which it gives up (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Says what is missing, then gets it; goes on after what fails."""
    study = Study.plan(read_configuration(study_files(args.configfile)))
    root = Path(study.config.weights_root)
    items = [_look(needed, root, args.timeout) for needed in _chosen(study, args.names, published=args.published)]
    for item in items:
        print(item.line(), flush=True)  # noqa: T201 - what the command is for
    to_get = [item for item in items if item.state == "get"]
    known = sum(item.size_bytes or 0 for item in to_get)
    unsaid = " and what says no size" if any(item.size_bytes is None for item in to_get) else ""
    print(f"{len(to_get)} to fetch, {known / 1e6:,.1f} MB{unsaid}")  # noqa: T201
    missing = any(item.state in ("person", "fail") for item in items)
    if args.dry_run:
        return int(missing or bool(to_get))
    for item in to_get:
        try:
            where = _get(item, args.timeout)
        except TokenLabelError as error:
            missing = True
            print(f"fail   | {', '.join(item.needed.names)} | {one_line(error)}", flush=True)  # noqa: T201
        else:
            print(f"got    | {', '.join(item.needed.names)} | {where}", flush=True)  # noqa: T201
    return int(missing)


def _chosen(study: Study, names: Sequence[str], *, published: bool) -> list[NeededWeights]:
    """The weights that are asked for.

    Raises:
        ConfigError: a name that nothing of this study has.
    """
    found = needed_weights(study, published=published or bool(names))
    known = {name for needed in found for name in needed.names}
    for name in names:
        if name not in known:
            raise unknown_name("annotator, model or published checkpoint with weights", name, known)
    return [needed for needed in found if not names or set(names) & set(needed.names)]


def _look(needed: NeededWeights, root: Path, timeout_s: float) -> Item:
    """What is to be done; asks the network for the size of what is missing."""
    try:
        if needed.weights == "hub":
            return _look_at_hub(needed, timeout_s)
        try:
            path = find_weights_file(needed.weights, root)
        except CheckpointError as error:
            return _look_elsewhere(needed, root, str(error), timeout_s)
        assert path is not None
        if needed.sha256 is not None and (digest := sha256_of(path)) != needed.sha256:
            raise CheckpointError(
                f"{path}: sha256 {digest[:16]}..., the configuration states {needed.sha256[:16]}...; remove it and run this again"
            )
    except TokenLabelError as error:
        return Item(needed, "fail", one_line(error))
    return Item(needed, "here", f"{path}{', sha256 fits' if needed.sha256 else ''}")


def _look_elsewhere(needed: NeededWeights, root: Path, missing: str, timeout_s: float) -> Item:
    from .download import size_of

    kind, _, name = needed.weights.partition(":")
    if needed.url is not None:
        size_bytes = size_of(needed.url, timeout_s)
        return Item(needed, "get", f"{needed.url} -> {root / name}", root / name, size_bytes)
    source = f"; from {needed.source}" if needed.source else ""
    if kind == "package":
        return Item(needed, "person", f"{missing}{source}")
    place = root / name
    return Item(needed, "person", f"put {'the folder' if kind == 'folder' else 'the file'} at {place}{source}")


def _look_at_hub(needed: NeededWeights, timeout_s: float) -> Item:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    from ..models.pretrained import cached_hub_file, hub_file

    path = cached_hub_file(needed.architecture)
    if path is not None:
        if needed.sha256 is not None and (digest := sha256_of(path)) != needed.sha256:
            raise CheckpointError(f"{path}: sha256 {digest[:16]}..., the configuration states {needed.sha256[:16]}....")
        return Item(needed, "here", str(path))
    repository, revision, file_name = hub_file(needed.architecture)
    said = f"{file_name} of {repository} on the model hub, licence {_licence(needed.architecture)}"
    try:
        found = get_hf_file_metadata(hf_hub_url(repository, file_name, revision=revision), timeout=timeout_s)
    except Exception as error:  # noqa: BLE001 - the transport's errors belong to another package in each hub version
        return Item(
            needed,
            "fail",
            f"{said}: the hub does not answer ({type(error).__name__}). Is this a node with a network? HF_ENDPOINT names a mirror, "
            "https_proxy a proxy; a repository behind a licence wants `hf auth login` first",
        )
    return Item(needed, "get", said, None, found.size)


def _licence(architecture: str) -> str:
    import timm

    config = timm.get_pretrained_cfg(architecture)
    return (config and config.license) or "not stated"


def _get(item: Item, timeout_s: float) -> str:
    """Gets one; returns where it is then.

    Raises:
        TokenLabelError: it could not be had, with the reason.
    """
    if item.path is None:
        from ..models.pretrained import download_hub_file

        path = download_hub_file(item.needed.architecture)
        if item.needed.sha256 is not None and (digest := sha256_of(path)) != item.needed.sha256:
            raise CheckpointError(
                f"{path}: sha256 {digest[:16]}..., the configuration states {item.needed.sha256[:16]}...."
            )
        return str(path)
    from .download import download

    assert item.needed.url is not None
    download(item.needed.url, item.path, item.needed.sha256, timeout_s)
    return f"{item.path}{', sha256 fits' if item.needed.sha256 else ', no sha256 is stated to check'}"
