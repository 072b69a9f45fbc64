"""Tables: ours beside the paper's, no difference between two experiments, and every defect of an evaluation refused by name."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tokenlabel.cli import main
from tokenlabel.core.errors import DataError
from tokenlabel.core.files import read_json, write_json
from tokenlabel.core.study import Study
from tokenlabel.eval.figures import draw_table
from tokenlabel.eval.tables import as_csv, collect_rows


def write_results(base: Path, table: dict[str, Any], top1: float = 80.0) -> None:
    for position, row in enumerate(table["rows"]):
        for seed, path in row["seeds"].items():
            write_json(base / path, result_at(path, top1 + position + int(seed)))


def result_at(path: str, top1: float) -> dict[str, Any]:
    """A sound evaluation, of the weights that only this place has."""
    return {
        "digest": Path(path).stem.removeprefix("evaluation-"), "top1": top1, "top5": 95.0, "parameters_m": 26.152, "gmacs": 6.57,
        "val_images": 50000, "weights": "model.safetensors", "weights_sha256": hashlib.sha256(path.encode()).hexdigest(),
        "train_seconds": 100.0,
    }  # fmt: skip


def test_a_table_has_the_papers_numbers_and_the_difference(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config["experiments"]["ablation_annotators"]["seeds"] = [0, 1]
    table = Study.plan(raw_config).tables["ablation_annotators"].as_json()
    write_results(tmp_path, table)
    rows = list(csv.DictReader(io.StringIO(as_csv(collect_rows(table, tmp_path)))))
    assert len(rows) == 10
    by_name = {row["name"]: row for row in rows}
    best = by_name["nfnet_f6"]
    assert best["annotator_top1"] == "86.30"
    assert best["paper_top1"] == "83.30"
    assert best["seeds"] == "2"
    assert best["top1_sd"] == "0.71"  # of x and x + 1
    assert float(best["difference"]) == pytest.approx(float(best["top1_mean"]) - 83.3, abs=0.011)
    assert by_name["efficientnet_b4"]["paper_top1"] == ""  # drawn in the figure, not printed
    assert by_name["efficientnet_b4"]["difference"] == ""
    assert by_name["hard_labels"]["annotator"] == ""


def test_a_capped_row_is_marked_and_has_no_difference(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config["caps"]["epochs"] = 2
    table = Study.plan(raw_config).tables["ablation_residual"].as_json()
    write_results(tmp_path, table)
    for row in collect_rows(table, tmp_path):
        assert row.capped == "epochs 300->2"
        assert row.paper_top1 is not None
        assert row.difference is None


def test_agreement_has_columns_where_all_seeds_measured_it(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config["experiments"]["ablation_residual"]["seeds"] = [0, 1]
    table = Study.plan(raw_config).tables["ablation_residual"].as_json()
    write_results(tmp_path, table)
    measured = {"class_top1": 70.0, "token_agreement": 60.0, "token_kl": 1.0}
    for seed, path in table["rows"][0]["seeds"].items():
        write_json(tmp_path / path, read_json(tmp_path / path) | measured | {"token_agreement": 60.0 + int(seed)})
    write_json(
        tmp_path / table["rows"][1]["seeds"]["0"], read_json(tmp_path / table["rows"][1]["seeds"]["0"]) | measured
    )
    first, second, _ = csv.DictReader(io.StringIO(as_csv(collect_rows(table, tmp_path))))
    assert [first[name] for name in ("class_top1_mean", "token_agreement_mean", "token_kl_mean")] == [
        "70.00", "60.50", "1.00"
    ]  # fmt: skip
    assert first["token_agreement_sd"] == "0.71"
    assert {second[name] for name in ("class_top1_mean", "token_agreement_mean", "token_agreement_sd")} == {""}


def test_a_missing_evaluation_is_named(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table = Study.plan(raw_config).tables["main"].as_json()
    with pytest.raises(DataError, match=r"evaluation-.*json: this evaluation is missing"):
        collect_rows(table, tmp_path)


@pytest.mark.parametrize("name", ["main", "ablation_annotators", "ablation_participation", "ablation_residual"])
def test_every_kind_of_figure_is_drawn(raw_config: dict[str, Any], tmp_path: Path, name: str) -> None:
    for annotator in raw_config["annotators"].values():
        del annotator["paper_row"]
        annotator["paper_top1"] = 84.0
    table = Study.plan(raw_config).tables[name].as_json()
    write_results(tmp_path, table, top1=75.0)
    draw_table(table, collect_rows(table, tmp_path), tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert min(picture.size) > 200
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20  # not an empty sheet


def one_row(raw_config: dict[str, Any], tmp_path: Path, seeds: list[int]) -> tuple[dict[str, Any], dict[str, Path]]:
    """A table's plan and where the evaluations of its first row lie, written for all rows."""
    raw_config["experiments"]["ablation_residual"]["seeds"] = seeds
    table = Study.plan(raw_config).tables["ablation_residual"].as_json()
    write_results(tmp_path, table)
    return table, {seed: tmp_path / path for seed, path in table["rows"][0]["seeds"].items()}


def test_other_photographs_than_the_papers_give_no_difference(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config["dataset"]["name"] = "my_photographs"
    raw_config["experiments"]["ablation_residual"]["rows"][0] |= {"paper_row": None, "paper_top1": 70.0}
    table = Study.plan(raw_config).tables["ablation_residual"].as_json()
    write_results(tmp_path, table)
    mine, other, _ = collect_rows(table, tmp_path)
    assert mine.paper_source == "configuration"
    assert mine.difference == pytest.approx(10.0)  # from a number of the user's own study
    assert (other.paper_top1, other.paper_source, other.difference) == (82.4, "Table 10", None)


def test_what_does_not_exist_yet_is_planned_and_empty(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table, paths = one_row(raw_config, tmp_path, [0, 1])
    paths["1"].unlink()
    for path in table["rows"][1]["seeds"].values():
        (tmp_path / path).unlink()
    rows = collect_rows(table, tmp_path, complete=False)
    assert [(row.state, row.seeds, row.seeds_planned) for row in rows] == [
        ("partial", 1, 2),
        ("planned", 0, 2),
        ("done", 2, 2),
    ]
    assert rows[0].top1_sd is None
    _, line, _ = csv.DictReader(io.StringIO(as_csv(rows)))
    known = {
        "name", "label", "state", "seeds", "seeds_planned", "paper_top1", "paper_parameters_m", "paper_source", "model",
        "image_px", "epochs", "run", "supervision", "participation",
    }  # fmt: skip
    assert {name for name, value in line.items() if value} <= known
    assert line["top1_mean"] == line["parameters_m"] == line["gpu_hours"] == line["weights_sha256"] == ""


def test_further_test_sets_have_columns(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table, paths = one_row(raw_config, tmp_path, [0, 1])
    for seed, path in paths.items():
        sets = {"imagenet_v2": {"top1": 70.0 + int(seed), "top5": 90.0, "images": 10000}}
        write_json(
            path, read_json(path) | {"test_sets": sets | ({"imagenet_a": {"top1": 20.0}} if seed == "0" else {})}
        )
    rows = collect_rows(table, tmp_path)
    assert rows[0].test_sets == {"imagenet_v2": 70.5}  # imagenet_a: not of all seeds
    assert next(csv.DictReader(io.StringIO(as_csv(rows))))["imagenet_v2_top1"] == "70.50"


def test_gpu_hours_are_of_all_trainings_and_their_processes(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table = Study.plan(raw_config).tables["main"].as_json()
    write_results(tmp_path, table, top1=70.0)
    row = next(row for row in table["rows"] if row["name"] == "lvvit_s_384")
    first, second = row["chain"]
    for run, seconds in ((first, 7200), (second, 1800)):
        (tmp_path / "benchmarks/runs" / run / "seed0").mkdir(parents=True)
        (tmp_path / "benchmarks/runs" / run / "seed0/train.tsv").write_text(f"s\tmax_rss\n{seconds}\t1\n")
    marker = {"digest": first.rsplit("-", 1)[1], "seed": 0, "processes": 8, "seconds": 100.0}
    write_json(tmp_path / f"results/runs/{first}/seed0/done.json", marker)
    found = {line.name: line.gpu_hours for line in collect_rows(table, tmp_path)}
    # the first training ran in 8 processes, the second has no marker: one
    assert found["lvvit_s_384"] == pytest.approx(8 * 2.0 + 0.5)
    assert found["lvvit_s"] == pytest.approx(16.0)
    assert found["lvvit_m"] is None  # no benchmark file


def change(**values: Any) -> Callable[[Path], None]:
    """Changes keys of an evaluation; None takes a key out."""

    def apply(path: Path) -> None:
        result = read_json(path) | values
        path.write_text(json.dumps({key: value for key, value in result.items() if value is not None}))

    return apply


def mark(**values: Any) -> Callable[[Path], None]:
    """Leaves a training's marker beside an evaluation, sound but for some keys."""

    def apply(path: Path) -> None:
        sound = {
            "digest": path.parent.parent.name.rsplit("-", 1)[1], "seed": 0, "seconds": 100.0,
            "weights_sha256": read_json(path)["weights_sha256"],
        }  # fmt: skip
        write_json(path.parent / "done.json", sound | values)

    return apply


DEFECTS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("half-written", lambda path: path.write_bytes(path.read_bytes()[:40]), "half-written, or no JSON"),
    ("empty", lambda path: path.write_text(""), "half-written, or no JSON"),
    ("no text", lambda path: path.write_bytes(b"\xff\xfe\x00"), "half-written, or no JSON"),
    ("a list", lambda path: path.write_text("[1]"), "an evaluation is a JSON object, found list"),
    ("nested without end", lambda path: path.write_text("[" * 100_000), "half-written, or no JSON"),
    ("a number without end", change(val_images=10**400), "val_images is inf, which is no measurement"),
    ("no accuracy", change(top1=None), "this evaluation has no top1"),
    ("nothing at all", lambda path: path.write_text("{}"), "has no digest, top1, top5, val_images"),
    ("NaN", change(top1=math.nan), "top1 is nan, which is no measurement"),
    ("NaN of what no table shows", change(test_sets={"v2": {"top1": 1.0, "loss": math.nan}}), r"test_sets.v2.loss is nan"),
    ("infinity", change(token_kl=math.inf), "token_kl is inf, which is no measurement"),
    ("above 100 %", change(top5=100.01), "top5 is 100.01; expected between 0 and 100 percent"),
    ("below 0 %", change(top1=-1), "top1 is -1; expected between 0 and 100 percent"),
    ("accuracy in words", change(top1="83.3"), "top1 is '83.3'; expected a number"),
    ("true", change(top1=True), "top1 is True; expected a number"),
    ("a test set without accuracy", change(test_sets={"v2": {}}), "test_sets must give each test set its top1"),
    ("a test set above 100 %", change(test_sets={"v2": {"top1": 170}}), "test_sets.v2.top1 is 170"),
    ("no photographs", change(val_images=0), "val_images is 0; expected above 0"),
    ("no parameters", change(parameters_m=0.0), "parameters_m is 0; expected above 0"),
    ("digest that is a number", change(weights_sha256=7), "weights_sha256 is 7; expected hexadecimal digits"),
    ("another evaluation", change(digest="00000000"), "measured with the evaluation settings '00000000', its name says"),
    ("another run's folder", mark(digest="00000000"), "done.json: of the run '00000000', but its folder belongs to"),
    ("another seed's folder", mark(seed=1), "done.json: of seed 1, but it lies in seed0; the folder was copied"),
    ("another training", mark(seconds=200.0), "train_seconds 100.0 is not that of the training beside it"),
    ("other weights", mark(weights_sha256="0" * 64), "weights_sha256 .* is not that of the training beside it"),
    ("a half-written marker", lambda path: (path.parent / "done.json").write_text("{"), "done.json: half-written"),
]  # fmt: skip


@pytest.mark.parametrize("complete", [True, False], ids=["full", "so far"])
@pytest.mark.parametrize(("spoil", "expected"), [line[1:] for line in DEFECTS], ids=[line[0] for line in DEFECTS])
def test_a_defective_evaluation_is_refused_by_name(
    raw_config: dict[str, Any], tmp_path: Path, spoil: Callable[[Path], Any], expected: str, complete: bool
) -> None:
    table, paths = one_row(raw_config, tmp_path, [0])
    spoil(paths["0"])
    with pytest.raises(DataError, match=expected) as caught:
        collect_rows(table, tmp_path, complete=complete)
    message = str(caught.value)
    assert str(paths["0"].parent) in message
    assert "Delete" in message
    assert message.endswith("run snakemake again.")
    assert "\n" not in message


def test_a_sound_marker_beside_an_evaluation_is_accepted(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table, paths = one_row(raw_config, tmp_path, [0])
    mark()(paths["0"])
    assert collect_rows(table, tmp_path)[0].state == "done"
    # averaged weights have a digest of their own, which the marker does not hold
    mark(weights_sha256="0" * 64)(paths["0"])
    change(weights="model_ema.safetensors")(paths["0"])
    assert collect_rows(table, tmp_path)[0].state == "done"


def test_two_seeds_with_one_checkpoint_are_never_averaged(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table, paths = one_row(raw_config, tmp_path, [0, 1, 2])
    change(weights_sha256=read_json(paths["0"])["weights_sha256"])(paths["2"])
    with pytest.raises(
        DataError, match=rf"{paths['2']}: its checkpoint .* is that of {paths['0']}.*Delete {paths['2'].parent}"
    ):
        collect_rows(table, tmp_path)


@pytest.mark.parametrize(("name", "value"), [("val_images", 49_000), ("parameters_m", 8.5), ("gmacs", 6.6)])
def test_seeds_of_other_photographs_or_networks_are_never_averaged(
    raw_config: dict[str, Any], tmp_path: Path, name: str, value: float
) -> None:
    table, paths = one_row(raw_config, tmp_path, [0, 1])
    change(**{name: value})(paths["1"])
    with pytest.raises(
        DataError, match=rf"{paths['1']}: {name} is {value}, and .* in {paths['0']};.* run snakemake again"
    ):
        collect_rows(table, tmp_path)


def test_an_annotator_alone_has_one_evaluation_for_all_seeds(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config["experiments"]["ablation_residual"] |= {
        "seeds": [0, 1], "set": {}, "rows": [{"name": "alone", "set": {"model": "annotator"}}],
    }  # fmt: skip
    table = Study.plan(raw_config).tables["ablation_residual"].as_json()
    write_results(tmp_path, table)
    (row,) = collect_rows(table, tmp_path)
    assert (row.state, row.seeds, len(row.weights_sha256)) == ("done", 2, 12)
    assert (row.top1_sd, row.real_top1_sd) == (None, None)  # measured once, which has no deviation


def test_two_rows_with_one_name_are_refused(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table, _ = one_row(raw_config, tmp_path, [0])
    table["rows"].append(table["rows"][0])
    with pytest.raises(DataError, match="table ablation_residual: 2 rows are called 'scale_1'"):
        collect_rows(table, tmp_path)


def test_a_figure_is_drawn_where_nothing_is_measured(raw_config: dict[str, Any], tmp_path: Path) -> None:
    for name, plan in Study.plan(raw_config).tables.items():
        table = plan.as_json()
        draw_table(table, collect_rows(table, tmp_path, complete=False), tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 100


def test_the_index_of_tables_so_far_names_what_is_refused_and_goes_on(
    raw_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, paths = one_row(raw_config, tmp_path, [0])
    write_json(tmp_path / "damaged.json", table)
    write_json(tmp_path / "sound.json", Study.plan(raw_config).tables["ablation_architectures"].as_json())
    change(top1=math.nan)(paths["0"])
    monkeypatch.chdir(tmp_path)
    specs = ["--specs", "damaged.json", "sound.json"]
    assert main(["table", "index", *specs, "--csv", "i.csv", "--markdown", "i.md"]) == 0
    damaged, sound = csv.DictReader((tmp_path / "i.csv").read_text().splitlines())
    assert (damaged["table"], damaged["done"]) == (table["name"], "")
    assert "top1 is nan, which is no measurement. Delete it" in damaged["refused"]
    assert (sound["table"], sound["rows"], sound["refused"]) == ("ablation_architectures", "8", "")
