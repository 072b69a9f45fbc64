"""Data sets that Hugging Face's `datasets` saved to disk: an image column and a ClassLabel column, read by row.

Only this module loads the package `datasets` (extra `huggingface`). Called by `readers`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, DataError
from .listing import Entry, Listing


class SavedDataset:
    """A data set on disk, photographs as the bytes that were saved.

    Args:
        place: folder of `Dataset.save_to_disk`, or `DICT_FOLDER/train` of a DatasetDict.

    Raises:
        ConfigError: the package `datasets` is not installed.
        DataError: no such data set, or it has not one image and one ClassLabel column.
    """

    def __init__(self, place: Path) -> None:
        try:
            import datasets
        except ImportError:
            raise ConfigError(
                "dataset.format huggingface needs the package datasets: pip install 'tokenlabel[huggingface]'"
            ) from None
        try:
            rows = datasets.load_from_disk(str(place))
        except (FileNotFoundError, ValueError, OSError) as error:
            raise DataError(
                f"{place}: no data set that was saved with save_to_disk ({' '.join(str(error).split())})."
            ) from None
        if isinstance(rows, datasets.DatasetDict):
            raise DataError(
                f"{place}: holds the splits {', '.join(rows)}. Give one of them, as in dataset.train: FOLDER/train."
            )
        images = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
        labels = [name for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)]
        if len(images) != 1 or len(labels) != 1:
            raise DataError(
                f"{place}: expected one image and one ClassLabel column, found {images} and {labels} among {list(rows.features)}."
            )
        self.image_column, label_column = images[0], labels[0]
        self.classes: list[str] = list(rows.features[label_column].names)
        self.labels: list[int] = list(rows[label_column])
        self._rows: Any = rows.cast_column(self.image_column, datasets.Image(decode=False))

    def image_bytes(self, row: int) -> bytes:
        """A photograph as it was saved; of a file outside the data set if it was saved by path."""
        image = self._rows[row][self.image_column]
        if image["bytes"] is not None:
            content: bytes = image["bytes"]
            return content
        return Path(image["path"]).read_bytes()


def list_saved_dataset(place: Path) -> Listing:
    """Lists a data set on disk; classes keep the data set's own order.

    Raises:
        DataError: as `SavedDataset`, or a row without a label.
    """
    saved = SavedDataset(place)
    entries = []
    for row, label in enumerate(saved.labels):
        if label is None or not 0 <= label < len(saved.classes):
            raise DataError(f"{place}: row {row} has no label (found {label}).")
        name = saved.classes[label]
        entries.append(Entry(f"{name}/{row:09d}.jpg", len(saved.image_bytes(row)), row, 0, name))
    return Listing(entries, saved.classes, ordered=True)
