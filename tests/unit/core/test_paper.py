"""The paper's numbers: each against the paper's own text where it lies beside the checkout, and against sums read from it once."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tokenlabel.core import paper
from tokenlabel.core.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[3]
PLACES = [parent / "shared" / "paper.md" for parent in REPOSITORY.parents]

# table -> (rows, numbers, sum of the numbers), as the printed page has them: what stands when its text is not there to compare with
READ_ONCE = {
    "1": (4, 28, 3550.3),
    "2": (5, 5, 414.0),
    "3": (5, 25, 426.5),
    "4": (31, 207, 31132.4),
    "5": (4, 24, 1190.0),
    "6": (14, 61, 2538.2),
    "8": (7, 20, 768.5),
    "9": (6, 18, 662.2),
    "10": (3, 6, 325.0),
    "11": (12, 36, 1869.6),
    "12": (2, 40, 2844.2),
}


def text_of_the_paper() -> str:
    found = next((place for place in PLACES if place.is_file()), None)
    if found is None:
        pytest.skip("the paper's text is not beside this checkout; the numbers read once are checked all the same")
    return found.read_text(encoding="utf-8")


def numbers(cell: str) -> list[float]:
    """The numbers of a printed cell: a tick is 1, a cross 0, a dash nothing, [46] a citation."""
    cell = re.sub(r"\s\[[\d, ]+\]", "", cell).replace("**", "")
    if "✓" in cell or "checkmark" in cell:
        return [1.0]
    if "✗" in cell or cell.strip() == r"$\times$":
        return [0.0]
    return [float(found) for found in re.findall(r"\d+(?:\.\d+)?", cell)]


def all_numbers(cells: list[str]) -> list[float]:
    return [value for cell in cells for value in numbers(cell)]


def printed_table(text: str, number: int) -> list[list[str]]:
    """Lines of a table, each a list of cells, without the header."""
    block = re.split(rf"^Table {number}: .*$", text, flags=re.MULTILINE)[1]
    block = block.replace("<b>", "").replace("</b>", "").split("\n\n")[1]
    return [line.split("\t") for line in block.splitlines()][1:]


def printed(text: str, table: str) -> list[list[float]]:
    """The numbers of each row of a table, in the order of paper.csv's columns."""
    lines = printed_table(text, int(table))
    if table == "1":
        return [[numbers(cell)[0] for cell in line[1:]] for line in lines]
    if table == "3":
        return [all_numbers(line) for line in lines]
    if table == "4":
        cnn = ["EfficientNet" in cells or "NFNet" in cells for cells in map(" ".join, lines)]
        return [
            [float(is_cnn), *all_numbers([cell for cell in line if cell][-6:])]
            for is_cnn, line in zip(cnn, lines, strict=True)
        ]
    if table == "5":
        return [all_numbers(line[1:]) for line in lines]
    if table == "6":
        return [
            [float(position < 4), float("†" in line[-5]), *all_numbers(line[-3:])]
            for position, line in enumerate(lines)
        ]
    if table == "8":
        return [numbers(line[1]) + numbers(line[2]) for line in lines]
    if table == "9":
        return [numbers(line[0]) + numbers(line[3]) + numbers(line[4]) for line in lines]
    if table == "11":
        columns = [[numbers(cell)[0] for cell in line[1:]] for line in lines]
        return [list(column) for column in zip(*columns, strict=True)]
    if table == "12":
        return [settings_of_method(lines, column) for column in (1, 2)]
    return [numbers(line[-2]) + numbers(line[-1]) if table == "10" else numbers(line[-1]) for line in lines]


def settings_of_method(lines: list[list[str]], column: int) -> list[float]:
    found = []
    for line in lines:
        cell = line[column] if column < len(line) else ""
        found.append(numbers(cell)[0] if cell.strip() else 0.0)
        if "Linear" in cell or "Fixed" in cell:
            found.append(float("Fixed" in cell))
    return found


@pytest.mark.parametrize("table", READ_ONCE)
def test_every_number_is_what_the_paper_prints(table: str) -> None:
    expected = printed(text_of_the_paper(), table)
    found = [
        [number.value for number in paper.load() if (number.table, number.row) == (table, row)]
        for row in paper.row_names(table)
    ]
    assert found == expected


@pytest.mark.parametrize("table", READ_ONCE)
def test_every_table_adds_up_to_what_was_read_from_the_page(table: str) -> None:
    found = [number for number in paper.load() if number.table == table]
    total = sum(number.value or 0.0 for number in found)
    assert (len(paper.row_names(table)), len(found), round(total, 1)) == READ_ONCE[table]
    assert all(number.source == "table" and number.value is not None for number in found)


def of(place: str) -> float:
    table, row, column = place.split("/")
    number = paper.value(table, row, column)
    assert number is not None
    assert number.value is not None, place
    return number.value


# what the text says -> what of the file it says: one place, or the difference of two
STATEMENTS = [
    ("84.4% Top-1 accuracy on ImageNet", 84.4, "4/lvvit_s_384/top1", ""),
    ("further increased to 86.4%", 86.4, "4/lvvit_l_512/top1", ""),
    ("with 56M parameters, yields 85.4% top-1", 85.4, "4/lvvit_m_384/top1", ""),
    ("with only 8.5M parameters", 8.5, "1/lvvit_t/params_m", ""),
    ("a top-1 accuracy of 79.1%", 79.1, "1/lvvit_t/top1", ""),
    ("using MixToken is 0.1% higher than using CutMix", 0.1, "2/mixtoken_hard/top1", "2/cutmix_hard/top1"),
    ("an advantage of 0.2% over the CutMix baseline", 0.2, "2/mixtoken_relabel/top1", "2/cutmix_relabel/top1"),
    ("the performance can be further raised to 83.3%", 83.3, "2/mixtoken_token/top1", ""),
    ("a top-1 accuracy of 83.1% is achieved", 83.1, "3/with_mixup/top1", ""),
    ("removing it brings a performance drop of 0.3%", 0.3, "3/all_but_mixup/top1", "3/without_cutout/top1"),
    ("using it brings an improvement of 0.5%", 0.5, "3/all_but_mixup/top1", "3/without_randaugment/top1"),
    ("−0.5% for LV-ViT-S", -0.5, "fig4_left/lvvit_s_participation_0_2/gain", ""),
    ("−0.5% for LV-ViT-S", -0.5, "fig4_left/lvvit_s_participation_0_2/top1", "1/lvvit_s/top1"),
    ("−0.4% for LV-ViT-M", -0.4, "fig4_left/lvvit_m_participation_0_2/gain", ""),
    ("−0.4% for LV-ViT-M", -0.4, "fig4_left/lvvit_m_participation_0_2/top1", "1/lvvit_m/top1"),
    ("EfficientNet-B3 whose Top-1 accuracy is 81.6%", 81.6, "fig4_right/efficientnet_b3/annotator_top1", ""),
    ("which has the best performance of 86.3%", 86.3, "fig4_right/nfnet_f6/annotator_top1", ""),
    ("the best result for LV-ViT-S, which is 83.3%", 83.3, "fig4_right/nfnet_f6/top1", ""),
    ("which has 88.2% Top-1 ImageNet accuracy", 88.2, "fig4_right/efficientnet_l2/annotator_top1", ""),
    ("LV-ViT-S can be further improved to 83.5%", 83.5, "fig4_right/efficientnet_l2/top1", ""),
    ("3.4% higher than the strong baseline DeiT-S", 3.4, "4/lvvit_s/top1", "4/DeiT-S/top1"),
    ("the performance of 85.4%, the same as CaiT-S36", 0.0, "4/lvvit_m_384/top1", "4/CaiT-S36 ↑384/top1"),
    ("an mIoU score of 50.6 with only 77M parameters", 50.6, "6/lvvit_m_upernet/miou_ms", ""),
    ("boosted from 79.9 to 84.4 (+4.5)", 4.5, "8/at_384/top1", "8/deit_s/top1"),
    ("improve the performance by 1.1%", 1.1, "8/at_384/top1", "8/token_labels/top1"),
]


@pytest.mark.parametrize(
    ("words", "expected", "place", "minus"), STATEMENTS, ids=[line[2] + line[3] for line in STATEMENTS]
)
def test_the_text_agrees_with_the_tables(words: str, expected: float, place: str, minus: str) -> None:
    assert of(place) - (of(minus) if minus else 0.0) == pytest.approx(expected, abs=1e-9)
    if any(where.is_file() for where in PLACES):
        assert words in " ".join(text_of_the_paper().split())


def test_a_number_that_stands_in_several_tables_is_one_number() -> None:
    assert of("1/lvvit_s/top1") == of("4/lvvit_s/top1") == of("2/mixtoken_token/top1") == of("3/all_but_mixup/top1")
    assert of("8/at_384/top1") == of("4/lvvit_s_384/top1")
    assert of("12/lvvit_m_384/top1") == of("4/lvvit_m_384/top1")
    assert of("8/residual/top1") == of("10/scale_2/top1")
    assert of("9/four/top1") == of("10/scale_1/top1") == of("8/four_convolutions/top1")
    for row in ("fcn", "upernet"):
        assert of(f"5/lvvit_s_{row}_token/miou_ms") == of(f"6/lvvit_s_{row}/miou_ms")


def test_each_gain_of_table_8_is_a_difference() -> None:
    for row in paper.row_names("8")[1:]:
        assert of(f"8/{row}/top1") - of("8/deit_s/top1") == pytest.approx(of(f"8/{row}/gain"), abs=0.11), row


def test_points_that_are_only_drawn_have_no_value() -> None:
    for number in paper.load():
        assert number.source in {"table", "text", "derived", "digitised", ""}
        assert (number.value is None) == (number.source == ""), number
    drawn = Counter(number.table for number in paper.load() if number.value is None)
    assert drawn == {"fig4_left": 6, "fig4_right": 13, "fig5": 13}
    assert {number.table for number in paper.load()} == set(paper.TITLES)
    assert paper.value("fig4_left", "lvvit_s_participation_0_4", "top1") is not None
    assert paper.value("4", "TNT-B", "real_top1") is None  # a dash
    places = Counter((number.table, number.row, number.column) for number in paper.load())
    assert set(places.values()) == {1}


def test_a_row_is_found_by_its_reference() -> None:
    row = paper.find_row("4/lvvit_s_384", "key")
    assert (row.top1, row.real_top1, row.parameters_m, row.gmacs, row.train_px, row.test_px) == (
        84.4,
        88.9,
        26,
        22.2,
        224,
        384,
    )
    assert row.source == "Table 4"
    assert row.place == ("4", "lvvit_s_384")
    assert paper.find_row("fig4_right/nfnet_f6", "key").source == "Fig. 4 right, printed in the text"
    assert paper.find_row("fig5/deit_t_hard", "key").source == "Fig. 5, drawn but not printed"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("4/lvvit_s_385", "key: unknown row of Table 4 'lvvit_s_385'. Did you mean 'lvvit_s_384'? Legal: BoTNet-S1-128"),
        ("7/epochs", "key: unknown table of the paper '7'.+Legal: 1, 10, 11, 12, 2"),
        ("lvvit_s", "unknown table of the paper 'lvvit_s'"),
        ("4/", "unknown row of Table 4 ''"),
    ],
)  # fmt: skip
def test_an_unknown_reference_lists_the_legal_ones(reference: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected.replace("?", r"\?")):
        paper.find_row(reference, "key")
