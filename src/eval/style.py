"""What all figures share: the style file, colours with a meaning, text that stays on the page, and how a figure is saved.

Read by every module that draws. The style itself is tokenlabel.mplstyle beside this file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager, rc_context
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.textpath import text_to_path

from ..core.files import atomic_path

matplotlib.use("Agg")  # jobs have no display

STYLE: dict[str, Any] = dict(
    matplotlib.rc_params_from_file(Path(__file__).with_name("tokenlabel.mplstyle"), use_default_template=False)
)
# pages of pictures, which need no sharper lines and are as large as their pictures
PHOTOGRAPHS = {**STYLE, "axes.grid": False, "figure.dpi": 150, "savefig.bbox": "tight"}
COLOURS: tuple[str, ...] = tuple(entry["color"] for entry in STYLE["axes.prop_cycle"])
MARKERS: tuple[str, ...] = tuple(entry["marker"] for entry in STYLE["axes.prop_cycle"])
DASHES = ("-", "--", ":", "-.")
BLUE, ORANGE, GREEN, PURPLE = COLOURS[:4]
GREY, PALE = "#666666", "#DDDDDD"  # words beside the data; faces of capped runs
WIDTH_IN, MARGIN_IN = 6.4, 0.1
TITLE_PT, LEGEND_PT, NOTE_PT, SMALL_PT = 9, 8, 7.5, 7.5
OTHER_SCRIPTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans", "WenQuanYi Zen Hei", "Arial Unicode MS")


@contextmanager
def styled(style: dict[str, Any] | None = None) -> Iterator[None]:
    """The style, while a figure is built and saved.

    A letter that no font here has is drawn as an empty box; that is no reason to stop.
    """
    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = [*STYLE["font.sans-serif"], *(name for name in OTHER_SCRIPTS if name in installed)]
    with rc_context({**(style or STYLE), "font.sans-serif": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(?s)Glyph .* missing from font")
        yield


def words(text: str) -> str:
    """Text of a configuration as a figure may show it: matplotlib leaves legend entries out that begin with "_"."""
    return f"\u200a{text}" if text.startswith("_") else text


def width_in(text: str, size_pt: float) -> float:
    """Width of one line of text in inches."""
    properties = font_manager.FontProperties(size=size_pt)
    width_pt, _, _ = text_to_path.get_text_width_height_descent(text, properties, ismath=False)
    return float(width_pt) / 72


def wrapped(text: str, breadth_in: float, size_pt: float, most_lines: int | None = None) -> str:
    """Breaks text into lines that are no broader than so many inches, between words where that is possible.

    What goes beyond `most_lines` is left out, and an ellipsis says so.
    """
    lines: list[str] = []
    for word in text.split():
        if lines and width_in(f"{lines[-1]} {word}", size_pt) <= breadth_in:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and width_in(lines[-1] + letter, size_pt) > breadth_in:
                lines.append("")
            lines[-1] += letter
    if most_lines and len(lines) > most_lines:
        lines = lines[:most_lines]
        while lines[-1] and width_in(f"{lines[-1]}…", size_pt) > breadth_in:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "…"
    return words("\n".join(lines))


def page(body_in: float, title: Sequence[str], notes: Sequence[str], breadth_in: float = WIDTH_IN) -> Figure:
    """An empty figure with a title above and notes below, both within the page. Call it and what follows in `styled`.

    Args:
        body_in: height of what is drawn between them, in inches.
        title: paragraphs.
        notes: paragraphs, in small grey.
        breadth_in: of the page.
    """
    room_in = breadth_in - 2 * MARGIN_IN
    above = "\n".join(wrapped(line, room_in, TITLE_PT) for line in title if line)
    below = "\n".join(wrapped(line, room_in, NOTE_PT) for line in notes if line)
    lines_in = (TITLE_PT * (above.count("\n") + 1) + NOTE_PT * (below.count("\n") + 1)) * 1.3 / 72
    figure = Figure(figsize=(breadth_in, body_in + lines_in))
    FigureCanvasAgg(figure)
    figure.text(MARGIN_IN / breadth_in, 1, above, va="top", fontsize=TITLE_PT)
    figure.text(MARGIN_IN / breadth_in, 0, below, va="bottom", fontsize=NOTE_PT, color=GREY)
    _arrange(figure)
    return figure


def _arrange(figure: Figure) -> None:
    """Title, then the legend, then the charts, then the notes, for the height that the page has now."""
    title, notes = figure.texts
    margin = MARGIN_IN / float(figure.get_figheight())
    title.set_y(1 - margin)
    notes.set_y(margin)
    top = title.get_window_extent().y0 / figure.bbox.height
    for legend in figure.legends:
        legend.set_bbox_to_anchor((MARGIN_IN / float(figure.get_figwidth()), top - margin / 2))
        top = legend.get_window_extent().y0 / figure.bbox.height
    bottom = notes.get_window_extent().y1 / figure.bbox.height if notes.get_text() else 0.0
    figure.set_layout_engine("constrained", rect=(0, bottom, 1, top - bottom))


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend between a page's title and what is drawn, in as many columns as fit; the page grows by its height."""
    if not handles:
        return
    room_in = figure.get_figwidth() - 2 * MARGIN_IN
    labels = [str(handle.get_label()) for handle in handles]
    for columns in range(len(handles), 0, -1):
        rows = -(-len(handles) // columns)
        broadest = [max(map(_legend_entry_in, labels[start : start + rows])) for start in range(0, len(labels), rows)]
        if sum(broadest) <= room_in:
            break
    for handle, label in zip(handles, labels, strict=True):
        handle.set_label(wrapped(label, room_in - _legend_entry_in(""), LEGEND_PT, most_lines=2))
    legend = figure.legend(
        handles=handles, loc="upper left", ncols=columns, borderaxespad=0, borderpad=0, columnspacing=1.2
    )
    figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / figure.dpi + MARGIN_IN / 2)
    _arrange(figure)


def _legend_entry_in(label: str) -> float:
    """Breadth of an entry with its handle and the gaps around it."""
    return width_in(label, LEGEND_PT) + float(STYLE["legend.handlelength"] + 2.2) * LEGEND_PT / 72


def save(figure: Figure, path: Path) -> None:
    """Writes a figure to a PNG file.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
