"""``detectron2 plot``."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectron2.cli.plot import Run, choose_metrics, draw_curves, panels, read_run, smooth, value_table


@pytest.fixture
def run(tmp_path):
    """A function that writes the records of a run and returns its folder."""

    def write(name: str, records, end: str = "") -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text("".join(json.dumps(r) + "\n" for r in records) + end)
        return folder

    return write


def records(count=40, slope=1.0):
    return [
        {"iteration": i, "total_loss": slope * (count - i), "loss_cls": 1.0, "lr": 0.1, "time": 0.5}
        for i in range(count)
    ] + [{"iteration": count, "bbox/AP": 30.0, "bbox/AP-cat": 20.0, "val/total_loss": float("nan")}]


@pytest.mark.parametrize("content", ["", "\n", '{"iteration": 3}\n', '{"iterat'])
def test_a_file_without_records_is_named(run, command, content):
    folder = run("empty", [], content)
    status, _, err = command("plot", folder)
    assert status == 1
    assert f"{folder}/metrics.json has no records" in err
    assert sorted(p.name for p in folder.iterdir()) == ["metrics.json"]


def test_a_missing_file_is_named(command, tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        status, _, err = command("plot", path)
        assert status == 1
        assert str(path) in err and "metrics.json" in err


@pytest.mark.parametrize("line", ["hello", "[1, 2]", '{"loss": 3}', '{"iteration": "x"}'])
def test_a_bad_line_is_named(run, command, line):
    folder = run("bad", [{"iteration": 1, "x": 1.0}], f'{line}\n{{"iteration": 2, "x": 1.0}}\n')
    status, _, err = command("plot", folder)
    assert status == 1
    assert "metrics.json, line 2 is not a record" in err and line in err


def test_one_run(run, command):
    folder = run("one", records(), '{"iteration": 41, "total')
    status, out, err = command("plot", folder)
    assert status == 0, err
    assert "line 42 is incomplete" in err
    assert "Drawn 5 metrics of 1 runs" in out
    page = (folder / "curves.html").read_text()
    assert page.count("<svg ") == 5 and "<img" not in page and "http" not in page  # complete in itself
    for text in ("total_loss", "bbox/AP", "val/total_loss"):
        assert re.search(rf"<th scope=row>{text}(</th>| <small>)", page)
    assert "average precision, from 0 (worst) to 100 (best)" in page  # as evaluators write it
    drawn = page.split('aria-label="Chart: bbox/AP."')[1].split("</svg>")[0]
    assert "bbox/AP (%)" in drawn and {"0", "20", "100"} <= set(re.findall(r">(\d+)</text>", drawn))
    assert "bbox/AP-cat" not in page and "nan" in page
    assert sorted(p.name for p in folder.iterdir()) == ["curves.html", "curves.png", "metrics.json"]


def test_where_the_iteration_falls_back_older_points_are_dropped(run):
    """A shorter run in the folder of a longer one; one that was resumed earlier; one that goes on as it should."""

    def lines(*parts):
        return [{"iteration": i, "total_loss": v, "lr": v} for at, v in parts for i in at]

    new = read_run(run("new", lines((range(19, 100, 20), 2.0), (range(19, 60, 20), 9.0))), "new").curves
    for name in ("total_loss", "lr"):
        assert new[name][0].tolist() == [19, 39, 59] and new[name][1].tolist() == [9, 9, 9]
    earlier = [*lines((range(19, 100, 20), 2.0)), {"iteration": 100, "bbox/AP": 5.0}, *lines((range(59, 80, 20), 9.0))]
    curves = read_run(run("resumed", earlier), "resumed").curves
    assert curves["lr"][0].tolist() == [19, 39, 59, 79] and curves["lr"][1].tolist() == [2, 2, 9, 9]
    assert "bbox/AP" not in curves
    same = [*lines(([19, 39], 2.0)), {"iteration": 39, "bbox/AP": 5.0}, {"iteration": 39, "lr": 3.0}]
    curves = read_run(run("same", same), "same").curves
    assert curves["bbox/AP"][1].tolist() == [5] and curves["lr"][1].tolist() == [2, 3]
    assert curves["total_loss"][1].tolist() == [2, 2]


def test_several_runs_are_compared(run, command, tmp_path):
    first, second = run("a/<x>", records()), run("b/<x>", records(60, 2.0))
    out = tmp_path / "new" / "comparison"
    status, _, err = command(
        "plot", first, second / "metrics.json", "--metrics", "total_loss", "bbox/*", "--smooth", 5, "--output", out
    )
    assert status == 0, err
    page = (out / "curves.html").read_text()
    assert "<th scope=col>a/&lt;x&gt;</th><th scope=col>b/&lt;x&gt;</th>" in page
    assert page.count("<th scope=row>") == 3
    assert "Means over 5 points" in page
    colours = {tuple(c) for c in np.asarray(Image.open(out / "curves.png").convert("RGB")).reshape(-1, 3)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # the first two colours of matplotlib: both runs are there


def test_runs_on_several_drives(run, command, monkeypatch):
    def common(paths):
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr("os.path.commonpath", common)
    folders = run("a", records()), run("b", records())
    status, _, err = command("plot", *folders, "--output", folders[0])
    assert status == 0, err
    page = (folders[0] / "curves.html").read_text(encoding="utf-8")
    assert f"<th scope=col>{folders[0]}</th><th scope=col>{folders[1]}</th>" in page


def test_unknown_metrics_and_bad_smoothing(run, command):
    folder = run("one", records())
    status, _, err = command("plot", folder, "--metrics", "total_loss", "mask*")
    assert status == 1
    assert "No metric fits mask*" in err and "bbox/AP-cat" in err
    assert command("plot", folder, "--smooth", 0)[0] == 1


def test_after_a_resume_the_newer_numbers_count(run):
    old = [{"iteration": i, "x": 1.0} for i in (0, 10, 20)]
    new = [{"iteration": i, "x": 2.0, "is_on": True, "text": "a"} for i in (10, 30)]
    curves = read_run(run("one", [*old, *new]), "one").curves
    assert set(curves) == {"x"}
    assert [c.tolist() for c in curves["x"]] == [[0, 10, 30], [1, 2, 2]]


def test_where_nothing_is_known_by_name_everything_is_shown(run):
    only = read_run(run("one", [{"iteration": 0, "my_number": 1.0}]), "one")
    assert choose_metrics([only], None) == ["my_number"]
    shown = choose_metrics([read_run(run("two", records()), "two")], None)
    assert shown == ["total_loss", "loss_cls", "val/total_loss", "bbox/AP", "lr"]


@pytest.mark.parametrize(
    ("values", "window", "expected"),
    [
        ([], 3, []),
        ([4.0], 9, [4.0]),
        ([1.0, 5.0, 3.0], 1, [1.0, 5.0, 3.0]),
        ([1.0, 5.0, 3.0, 7.0], 3, [3.0, 3.0, 5.0, 5.0]),
        ([1.0, 5.0], 100, [3.0, 3.0]),
        ([1.0, np.nan, 3.0], 3, [1.0, np.nan, 3.0]),
        ([1.0, np.inf, 3.0], 5, [2.0, np.inf, 2.0]),
    ],
)
def test_smoothing(values, window, expected):
    curve = (np.arange(len(values), dtype=float), np.array(values, float))
    np.testing.assert_allclose(smooth(curve, window), expected)


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ([], []),
        (["total_loss", "lr"], [("total_loss", None), ("lr", None)]),
        (
            ["total_loss", "loss_a", "validation/loss_b", "validation/total_loss", "bbox/AP"],
            [
                ("total_loss", "validation/total_loss"),
                ("loss_a", None),
                ("validation/loss_b", None),
                ("bbox/AP", None),
            ],
        ),
    ],
)
def test_losses_of_training_and_validation_share_a_panel(metrics, expected):
    assert panels(metrics) == expected


def test_curves_for_papers(command, run, tmp_path):
    status, out, err = command("plot", run("a", records()), "--charts", "pdf", "--output", tmp_path / "o")
    assert status == 0, err
    assert (tmp_path / "o" / "curves.pdf").read_bytes().startswith(b"%PDF") and "curves.pdf" in out
    assert "<svg" in (tmp_path / "o" / "curves.html").read_text()
    assert {p.name for p in (tmp_path / "o").iterdir()} == {"curves.pdf", "curves.html"}


@pytest.mark.parametrize(
    ("metric", "values", "ends"),
    [
        ("bbox/AP", [30.0, 40.0], (0, 100)),
        ("sem_seg/mIoU", [np.nan, 40.0], (0, 100)),
        ("bbox/AP", [-1.0, 40.0], None),
        ("loss_ap", [30.0, 40.0], None),
    ],
)
def test_axes_of_scores_have_their_whole_range(monkeypatch, tmp_path, metric, values, ends):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, _: drawn.append(figure.axes[0].get_ylim()))
    curve = (np.arange(2.0), np.array(values))
    draw_curves([Run("a", tmp_path, {metric: curve})], [metric], 1, tmp_path / "x.png")
    assert (drawn == [ends]) == (ends is not None)


def test_a_metric_of_one_run_only(run, tmp_path):
    runs = [read_run(run("a", records()), "a"), read_run(run("b", [{"iteration": 3, "x": 0.5}]), "b")]
    draw_curves(runs, ["total_loss", "x"], 1, tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").size[0] > 500
    table = value_table(runs, ["total_loss", "x"])
    assert "<td>1 <small>(least 1 at 39, greatest 40 at 0)</small></td><td>-</td>" in table
    assert "<tr><th scope=row>x</th><td>-</td><td>0.5</td></tr>" in table
