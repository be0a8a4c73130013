"""``detectron2 analyze``: which files there are, what is in them, and what it says about mistakes."""

import base64
import contextlib
import csv
import html.parser
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.cli import _analysis_charts
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator, SemSegEvaluator
from detectron2.evaluation.panoptic_evaluation import id_map_to_rgb
from tests.cli.conftest import run_once

CHARTS = {"classes", "precision_recall", "f1", "errors", "confusion", "parts", "calibration"}
TABLES = {"metrics.json", "per_class.csv", "errors.csv", "confusion.csv", "report.html"}


class Page(html.parser.HTMLParser):
    """The elements of a page, its text, and the tables as lists of rows."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.words, self.tables, self._open = [], [], [], []
        self.feed(path.read_text())
        assert self._open == [], "elements that are not closed"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "br", "path", "use", "image", "rect"):
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def read_table(path):
    """Return the lines of a CSV file as dictionaries."""
    return list(csv.DictReader(io.StringIO(path.read_text())))


def write_predictions(data, file, missing=0):
    """Write all annotations as predictions, but for the first ones, and return the file."""
    annotations = json.loads((data / "annotations.json").read_text())["annotations"]
    rows = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in annotations]
    file.write_text(json.dumps(rows[missing:]))
    return file


@pytest.fixture
def predictions(data, tmp_path):
    """A function that writes predictions in a folder of the test's own."""
    return lambda name="predictions.json", missing=0: write_predictions(data, tmp_path / name, missing)


@pytest.fixture
def no_charts(monkeypatch):
    """Charts take seconds, and most tests are about something else."""
    monkeypatch.setattr("detectron2.cli.analyze.draw_charts", lambda *_: {})


@pytest.fixture(scope="module")
def analyzed(data, coco, tmp_path_factory):
    """A whole analysis of a run in which two objects are missing, compared with a perfect one -> the folder."""
    folder = tmp_path_factory.mktemp("analysis")
    first = write_predictions(data, folder / "a.json")
    second = write_predictions(data, folder / "<b>.json", missing=2)
    argv = ("analyze", second, "--data", "cli_shapes", *coco, "--output", folder / "new" / "o", "--compare", first)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert run_once([str(a) for a in (*argv, "--resamples", 20)]) == 0
    assert "against the other run" in said.getvalue() and f"{folder}/new/o/report.html" in said.getvalue()
    return folder / "new" / "o"


@pytest.mark.usefixtures("no_charts")
def test_no_predictions(command, data, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    status, out, err = command(
        "analyze", tmp_path / "none.json", "--data", data / "annotations.json", "--output", tmp_path / "o"
    )
    assert status == 0, err
    assert "AP 0.000" in out and "best F1" not in out and "There are no predictions." in err
    assert len(list((tmp_path / "o").glob("worst_*.png"))) == 4


@pytest.mark.parametrize(("kind", "begin"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_charts_for_papers(command, data, coco, predictions, tmp_path, monkeypatch, kind, begin):
    few = {"AP by class", "Confusion"}
    draw_all = _analysis_charts._draw_all
    monkeypatch.setattr(
        _analysis_charts, "_draw_all", lambda charts, *rest: draw_all({t: charts[t] for t in few}, *rest)
    )
    options = ("--data", "cli_shapes", *coco, "--worst", 0, "--resamples", 0, "--charts", kind)
    for folder in ("o", "again"):
        status, _, err = command("analyze", predictions(), *options, "--output", tmp_path / folder)
        assert status == 0, err
    for name in ("classes", "confusion"):
        content = (tmp_path / "o" / f"{name}.{kind}").read_bytes()
        assert content.startswith(begin) and content == (tmp_path / "again" / f"{name}.{kind}").read_bytes()
    assert not list((tmp_path / "o").glob("*.png"))
    if kind == "svg":
        assert "triangle" in (tmp_path / "o" / "classes.svg").read_text()
    assert len(Page(tmp_path / "o" / "report.html").all("svg")) == len(few)


def test_all_files(analyzed):
    folder = analyzed
    pictures = {p.stem for p in folder.glob("*.png")}
    assert pictures >= CHARTS | {"comparison", "worst_01"}
    assert all(name.startswith("worst_") for name in pictures - CHARTS - {"comparison"})
    assert {p.name for p in folder.iterdir()} == {f"{name}.png" for name in pictures} | TABLES
    page = Page(folder / "report.html")
    assert len(page.all("svg")) == len(CHARTS) + 1
    assert len(page.all("img")) == 2 * len([name for name in pictures if name.startswith("worst_")])
    content = json.loads((folder / "metrics.json").read_text())
    total = content["overall"]["num_objects"]
    assert content["overall"]["at_threshold"]["recall"] == pytest.approx((total - 2) / total)
    assert content["overall"]["at_threshold"]["precision"] == 1.0
    assert content["errors"]["missed"]["count"] == 2
    assert content["comparison"]["metrics"]["AP"]["first"] == pytest.approx(1.0)
    assert content["comparison"]["metrics"]["AP"]["delta"] < 0
    rows = read_table(folder / "per_class.csv")
    assert [r["class"] for r in rows][-1] == "all" and len(rows) == 7
    assert sum(int(r["objects"]) for r in rows[:-1]) == int(rows[-1]["objects"]) == total
    assert float(rows[-1]["AP"]) == pytest.approx(content["metrics"]["AP"])
    assert float(rows[-1]["AP low"]) < float(rows[-1]["AP"]) < float(rows[-1]["AP high"]) + 1e-9
    errors = read_table(folder / "errors.csv")
    assert sum(int(r["missed"]) for r in errors[:-1]) == int(errors[-1]["missed"]) == 2
    pairs = read_table(folder / "confusion.csv")
    assert sum(int(r["count"]) for r in pairs) == total
    assert sum(int(r["count"]) for r in pairs if r["predicted"] == "background") == 2


def test_the_page_needs_nothing_else(analyzed):
    text, page = (analyzed / "report.html").read_text(), Page(analyzed / "report.html")
    assert "http" not in text and "&lt;b&gt;.json" in text and "<b>.json" not in text
    assert not page.all("link") and not any("src" in attrs for attrs in page.all("script"))
    assert all(attrs["src"].startswith("data:image/jpeg;base64,") for attrs in page.all("img"))
    assert "width=device-width" in text and "prefers-color-scheme: dark" in text and dict(page.elements)["html"]["lang"]
    # everything has a name for those who do not see it, and no name is given twice
    assert all(attrs["alt"] for attrs in page.all("img"))
    assert all(attrs["role"] == "img" and "Chart: " in attrs["aria-label"] for attrs in page.all("svg"))
    assert all(attrs["scope"] in ("col", "row") for attrs in page.all("th"))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids)) > 10
    targets = re.findall(r'(?:url\(|href=")#([^)"]+)', text)
    assert targets and set(targets) <= set(ids)
    for attrs in page.all("img"):
        picture = Image.open(io.BytesIO(base64.b64decode(attrs["src"].split(",")[1])))
        assert picture.size == (480, 320)


def test_the_charts_are_drawings_in_the_colours_of_the_page(analyzed):
    text = (analyzed / "report.html").read_text()
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == len(CHARTS) + 1 and all("currentColor" in d and "<text" in d for d in drawings)
    assert not [d for d in drawings if "#222223" in d or "xmlns" in d or "<metadata" in d]
    words = {re.sub("<.*?>", "", t) for t in re.findall(r"<text.*?</text>", "".join(drawings), re.DOTALL)}
    axes = {"AP with 95 % interval", "recall", "score threshold", "F1 over all classes", "true", "predicted", "score"}
    axes |= {
        "share",
        "at IoU 0.5",
        "share of the true class",
        "no object",
        "missed",
        "precision (IoU 0.5)",
        "AP at IoU 0.5 won by correcting it",
    }
    assert axes | {"second minus first; to the right of 0 the second is better"} <= words


def strange_data(tmp_path, names):
    """Ground truth with an object of each class in an image, and predictions that have found all but the last."""
    (tmp_path / "<i>").mkdir()
    Image.new("RGB", (200, 100)).save(tmp_path / "<i>" / "猫 &amp;.png")
    boxes = [[5 + 3 * (n % 60), 5, 2, 50] for n in range(len(names))]
    content = {
        "images": [{"id": 1, "file_name": "<i>/猫 &amp;.png", "height": 100, "width": 200}],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, 1)],
        "annotations": [{"id": n, "image_id": 1, "category_id": n, "bbox": b} for n, b in enumerate(boxes, 1)],
    }
    rows = [{"image_id": 1, "category_id": n, "bbox": b, "score": 0.9} for n, b in enumerate(boxes[:-1], 1)]
    (tmp_path / "gt.json").write_text(json.dumps(content))
    (tmp_path / "dt.json").write_text(json.dumps(rows))
    return ("analyze", tmp_path / "dt.json", "--data", tmp_path / "gt.json", "--output", tmp_path / "o")


@pytest.mark.filterwarnings("error")
def test_strange_names(command, tmp_path):
    names = [
        "<script>alert(1)</script>",
        "$x_{$",
        "_hidden",
        "猫と犬",
        "a\nb",
        "",
        "\ud800",
        "x" * 300,
        '"',
        "same",
        "same",
    ]
    status, _, err = command(*strange_data(tmp_path, names), "--resamples", 5)
    assert status == 0, err
    page = Page(tmp_path / "o" / "report.html")
    assert all("alert" not in "".join(page.words[page.words.index(w) :][:1]) or "<script>" in w for w in page.words)
    assert len(page.all("script")) == 1 and "alert(1)" not in re.findall(
        r"<script>(.*?)</script>", (tmp_path / "o" / "report.html").read_text(), re.DOTALL
    )
    everything = "".join(page.words)
    assert all(name in everything for name in (*names[:4], "same (10)", "same (11)", "x" * 27 + "…", "猫 &amp;.png: "))
    drawn = re.findall(r"<text.*?>([^<]*)</text>", (tmp_path / "o" / "report.html").read_text())
    assert {"猫と犬", "&lt;script&gt;alert(1)&lt;/script&gt;", "$x_{$", "a b", "(no name)"} <= set(drawn)
    rows = read_table(tmp_path / "o" / "per_class.csv")
    assert [r["class"] for r in rows[:5]] == names[:5] and rows[6]["class"] == "?"


def test_very_many_classes(command, tmp_path):
    names = [f"class number {n}" for n in range(300)]
    status, _, err = command(*strange_data(tmp_path, names), "--resamples", 0, "--worst", 0)
    assert status == 0, err
    page = Page(tmp_path / "o" / "report.html")
    assert (tmp_path / "o" / "report.html").stat().st_size < 1.5e6
    assert (tmp_path / "o" / "metrics.json").stat().st_size < 1.5e6
    (table,) = [t for t in page.tables if t[0][:3] == ["class", "objects", "detections"]]
    assert len(table) == 302 and table[-2][0] == "class number 299"
    assert "of 300 classes" in "".join(page.words) and "mixed up most, of 300" in "".join(page.words)
    assert [attrs["type"] for attrs in page.all("input")] == ["search"] * 2


@pytest.mark.usefixtures("no_charts")
def test_colours_tell_right_from_missed(command, data, predictions, tmp_path):
    options = ("--data", data / "annotations.json", "--output", tmp_path / "o", "--worst", 1)
    assert command("analyze", predictions(missing=1), *options)[0] == 0
    drawn = np.asarray(Image.open(tmp_path / "o" / "worst_01.png")).astype(int)
    left, right = drawn[:, : drawn.shape[1] // 2 - 6], drawn[:, drawn.shape[1] // 2 + 6 :]
    red = [int((np.abs(side - (230, 26, 26)).max(-1) < 12).sum()) for side in (left, right)]
    assert red[0] > 50 and red[0] > 5 * red[1]


@pytest.mark.usefixtures("no_charts")
def test_words_say_what_colours_say(command, data, tmp_path, monkeypatch):
    annotations = json.loads((data / "annotations.json").read_text())
    image, label = annotations["images"][0]["id"], annotations["categories"][0]["id"]
    other = annotations["categories"][1]["id"]
    first = [{"id": n, "image_id": image, "category_id": label, "bbox": [16 * n, 5, 12, 15]} for n in range(1, 5)]
    first[1]["iscrowd"] = 1
    rows = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in first[1:]]
    rows[1]["category_id"] = other
    rows += [{**rows[-1], "score": 0.8}]
    (tmp_path / "gt.json").write_text(json.dumps({**annotations, "annotations": first}))
    (tmp_path / "dt.json").write_text(json.dumps(rows))
    written = []
    monkeypatch.setattr(
        "detectron2.cli.analyze.Visualizer.overlay_instances", lambda self, **given: written.append(given)
    )
    options = ("--data", tmp_path / "gt.json", "--images", data / "images", "--resamples", 0, "--output", tmp_path)
    status, _, err = command("analyze", tmp_path / "dt.json", *options)
    assert status == 0, err
    names = {c["id"]: c["name"] for c in annotations["categories"]}
    true, predicted = (entry["labels"] for entry in written)
    assert true[0] == f"{names[first[0]['category_id']]}, missed"
    assert true[1] == f"{names[first[1]['category_id']]} (not counted)" == predicted[0].replace(" 90%", "")
    assert (
        true[2] == f"{names[label]}, found as {names[other]}" and predicted[1] == f"{names[other]} 90%, classification"
    )
    assert predicted[-1] == f"{names[first[-1]['category_id']]} 80%, duplicate"


@pytest.mark.usefixtures("no_charts")
def test_masks_and_missing_images(command, data, tmp_path):
    annotations = json.loads((data / "annotations.json").read_text())
    (tmp_path / "gt.json").write_text(json.dumps(annotations))
    keys = ("image_id", "category_id", "segmentation")
    rows = [{k: a[k] for k in keys} | {"score": 0.9} for a in annotations["annotations"][1:]]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    options = ("analyze", tmp_path / "p.json", "--data", tmp_path / "gt.json", "--resamples", 0, "--output", tmp_path)
    (tmp_path / "worst_07.png").write_bytes(b"of an earlier analysis")
    status, out, err = command(*options)
    assert status == 0, err
    assert out.startswith("masks: ")
    assert "1 of 1 images could not be read" in err and "--images" in err
    assert not list(tmp_path.glob("worst_*.png"))
    status, _, err = command(*options, "--images", data / "images")
    assert (status, err) == (0, "")
    assert len(list(tmp_path.glob("worst_*.png"))) == 1


@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize(("exif", "by_option"), [("apply", False), ("ignore", False), ("ignore", True)])
def test_turned_photos(command, tmp_path, exif, by_option):
    """They are drawn, and sizes that the ground truth lacks read from them, as by the run or as the option says."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (160, 96)).save(tmp_path / "1.png", exif=turned)
    height, width = (96, 160) if exif == "ignore" else (160, 96)
    mask = {"size": [height, width], "counts": [0, 500, height * width - 500]}
    true = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [9, 9, 9, 9], "segmentation": [[9, 9, 60, 9, 60, 60]]}
    images, categories = [{"id": 1, "file_name": "1.png"}], [{"id": 1, "name": "cat"}]
    truth = {"images": images, "categories": categories, "annotations": [{**true, "area": 81, "iscrowd": 0}]}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    found = [{"image_id": 1, "category_id": 1, "segmentation": mask, "score": 0.9}]
    (tmp_path / "coco_instances_results.json").write_text(json.dumps(found))
    option = ["--exif", exif] if by_option else []
    if not by_option:
        (tmp_path / "config.yaml").write_text(f"INPUT:\n  EXIF: {exif}\n")
    options = ("--data", tmp_path / "gt.json", "--resamples", 0, "--output", tmp_path / "o")
    status, out, err = command("analyze", tmp_path, *options, *option)
    assert status == 0 and out.startswith("masks: "), err
    picture = Image.open(tmp_path / "o" / "worst_01.png")
    assert ((picture.width - 12) / 2 > picture.height) == (exif == "ignore")


def test_every_task_that_there_is(command, tmp_path, monkeypatch):
    points = [[10, 10, 2, 20, 20, 2, 30, 10, 0], [60, 60, 2, 70, 70, 1, 80, 60, 2]]
    boxes = [[5, 5, 30, 20], [55, 55, 30, 20]]
    square = [[5, 5, 35, 5, 35, 25, 5, 25]]
    Image.new("RGB", (100, 100)).save(tmp_path / "1.png")
    shapes = [
        {"bbox": b, "area": 500, "keypoints": k, "segmentation": square} for b, k in zip(boxes, points, strict=True)
    ]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 100, "width": 100}],
        "categories": [
            {"id": 1, "name": "person", "keypoints": ["head", "hand", "foot"], "skeleton": [[1, 2], [1, 3], [9, 1]]}
        ],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, **s} for n, s in enumerate(shapes, 1)],
    }
    (tmp_path / "gt.json").write_text(json.dumps(content))
    row = {"image_id": 1, "category_id": 1, "bbox": boxes[0], "score": 0.9, "keypoints": points[0]}
    (tmp_path / "dt.json").write_text(json.dumps([{**row, "segmentation": square}]))
    options = ("analyze", tmp_path / "dt.json", "--data", tmp_path / "gt.json", "--resamples", 0)
    joined = []
    monkeypatch.setattr("detectron2.cli.analyze.Visualizer.draw_line", lambda self, x, y, **_: joined.append((x, y)))
    sigmas = ("--sigmas", "0.1,0.1,0.1")
    status, out, err = command(*options, "--output", tmp_path / "o", *sigmas, "--task", "keypoints")
    assert status == 0, err
    files = {p.name for p in (tmp_path / "o").iterdir()}
    assert files == {f"{name}.png" for name in CHARTS | {"keypoints", "worst_01"}} | TABLES
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert [(k["name"], k["count"]) for k in metrics["keypoints"]] == [("head", 1), ("hand", 1), ("foot", 0)]
    # files name the pixel, pictures its middle; the second object has all three points
    assert ([10.5, 20.5], [10.5, 20.5]) in joined and ([60.5, 80.5], [60.5, 60.5]) in joined
    monkeypatch.setattr("detectron2.cli.analyze.draw_charts", lambda *_: {})
    status, out, err = command(*options, "--output", tmp_path / "p", *sigmas)
    assert status == 0, err
    assert [line.split(":")[0] for line in out.splitlines() if ": AP" in line] == ["boxes", "masks", "keypoints"]
    assert {p.name for p in (tmp_path / "p").iterdir()} == {"bbox", "segm", "keypoints"}
    status, _, err = command(*options, "--output", tmp_path / "q", "--task", "keypoints")
    assert status == 1 and "3 keypoints, but there are 17 sigmas" in err
    status, _, err = command(*options, "--sigmas", "0.1;2")
    assert status == 1 and "--sigmas are numbers with commas" in err


@pytest.fixture
def run_folder(data, tmp_path):
    """What an evaluation leaves in the folder of a run, whose data set has the name ``cli_shapes``."""
    annotations = json.loads((data / "annotations.json").read_text())["annotations"]
    rows = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in annotations[1:]]
    (tmp_path / "run" / "inference").mkdir(parents=True)
    (tmp_path / "run" / "inference" / "coco_instances_results.json").write_text(json.dumps(rows))
    (tmp_path / "run" / "config.yaml").write_text("DATASETS:\n  TEST:\n  - cli_shapes\n")
    return tmp_path / "run"


@pytest.mark.usefixtures("no_charts")
def test_folder_of_a_run(command, coco, data, run_folder):
    options = ("--resamples", 0, "--worst", 0)
    status, out, err = command("analyze", run_folder, *coco, *options)
    assert status == 0, err
    assert f"{run_folder}/analysis/report.html" in out
    first = json.loads((run_folder / "analysis" / "metrics.json").read_text())
    assert first["data"] == "cli_shapes"
    status, _, err = command("analyze", run_folder, *options)
    assert status == 1 and "--data: 'cli_shapes' is neither a file" in err and "--coco" in err
    # data that were converted for the evaluation lie beside the predictions
    converted = run_folder / "inference" / "cli_shapes_coco_format.json"
    shutil.copy(data / "annotations.json", converted)
    status, _, err = command("analyze", run_folder / "inference", *options, "--compare", run_folder)
    assert status == 0, err
    second = json.loads((run_folder / "inference" / "analysis" / "metrics.json").read_text())
    assert second["data"] == str(converted) and second["metrics"] == first["metrics"]
    assert second["comparison"]["metrics"]["AP"]["delta"] == 0


@pytest.mark.usefixtures("no_charts")
def test_folder_of_a_lazy_run(command, coco, run_folder):
    content = "dataloader:\n  test:\n    dataset:\n      names: cli_shapes\nmodel: {}\n"
    (run_folder / "config.yaml").write_text(content)
    assert command("analyze", run_folder, *coco, "--resamples", 0, "--worst", 0)[0] == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "what data set they belong to; give --data"),
        ("DATASETS: {TEST: []}", "give --data"),
        ("a: !!python/name:os.system", "give --data"),
        ("DATASETS: {TEST: [a, b]}", "The run was evaluated on a, b; say with --data"),
    ],
)
def test_folder_of_a_run_without_data(command, run_folder, config, message):
    (run_folder / "config.yaml").write_text(config)
    status, _, err = command("analyze", run_folder)
    assert status == 1 and message in err


def test_folder_without_predictions(command, run_folder, tmp_path):
    status, _, err = command("analyze", tmp_path)
    assert status == 1 and "has no predictions (coco_instances_results.json, " in err
    assert f"There are some in {run_folder}/inference." in err
    (run_folder / "inference" / "coco_instances_results.json").unlink()
    status, _, err = command("analyze", run_folder)
    assert status == 1 and "'detectron2 eval' writes them" in err


@pytest.fixture
def pixels(tmp_path):
    """Data sets ``cli_labels`` and ``cli_segments`` of one image, and predictions for both -> their files."""
    Image.new("RGB", (40, 30), (90, 90, 90)).save(tmp_path / "0.jpg")
    true, found = np.zeros((30, 40), np.int64), np.zeros((30, 40), np.int64)
    true[:, :20], found[:, :25] = 1, 1
    Image.fromarray(true.astype(np.uint8)).save(tmp_path / "labels.png")
    Image.fromarray(id_map_to_rgb(true + 1)).save(tmp_path / "0.png")
    record = {"file_name": str(tmp_path / "0.jpg"), "image_id": 7, "height": 30, "width": 40}
    DatasetCatalog.register("cli_labels", lambda: [{**record, "sem_seg_file_name": str(tmp_path / "labels.png")}])
    MetadataCatalog.get("cli_labels").set(stuff_classes=["<sea>", "land"], ignore_label=255)
    evaluator = SemSegEvaluator("cli_labels", distributed=False, output_dir=str(tmp_path / "run"))
    evaluator.process([record], [{"sem_seg": torch.nn.functional.one_hot(torch.from_numpy(found)).permute(2, 0, 1)}])
    evaluator.evaluate()
    segments = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 2}]
    categories = [{"id": 1, "name": "sea", "isthing": 0}, {"id": 2, "name": "ship", "isthing": 1}]
    annotation = {"image_id": 7, "file_name": "0.png", "segments_info": segments}
    (tmp_path / "panoptic.json").write_text(
        json.dumps({"images": [{"id": 7}], "categories": categories, "annotations": [annotation]})
    )
    own = [{"id": 1, "category_id": 0, "isthing": False}, {"id": 2, "category_id": 0, "isthing": True}]
    DatasetCatalog.register(
        "cli_segments", lambda: [{**record, "pan_seg_file_name": str(tmp_path / "0.png"), "segments_info": own}]
    )
    MetadataCatalog.get("cli_segments").set(
        panoptic_json=str(tmp_path / "panoptic.json"),
        panoptic_root=str(tmp_path),
        thing_dataset_id_to_contiguous_id={2: 0},
        stuff_dataset_id_to_contiguous_id={1: 0},
        thing_classes=["ship"],
        stuff_classes=["sea"],
    )
    evaluator = COCOPanopticEvaluator("cli_segments", str(tmp_path / "run"))
    evaluator.process([record], [{"panoptic_seg": (torch.from_numpy(found + 1)[:, :30].repeat(1, 2)[:, :40], own)}])
    evaluator.evaluate()
    yield tmp_path / "run" / "sem_seg_predictions.json", tmp_path / "run" / "predictions.json"
    for name in ("cli_labels", "cli_segments"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_labels_of_pixels(command, pixels, tmp_path):
    status, out, err = command("analyze", pixels[0], "--data", "cli_labels", "--output", tmp_path / "o")
    assert status == 0, err
    assert out.startswith("mIoU 0.775  ") and "Labels have no scores" in out  # (15 / 20 + 20 / 25) / 2
    files = {"classes.png", "confusion.png", "worst_01.png", *TABLES} - {"errors.csv"}
    assert {p.name for p in (tmp_path / "o").iterdir()} == files
    page = Page(tmp_path / "o" / "report.html")
    assert len(page.all("svg")) == len(page.all("img")) == 2
    assert page.tables[-1][1][:3] == ["<sea>", "600", "0.750"]
    assert "0.jpg: 150 wrong pixels, 12% of the labelled ones" in "".join(page.words)
    rows = read_table(tmp_path / "o" / "confusion.csv")
    assert ({"true": "<sea>", "predicted": "land", "pixels": "150"}) in rows


def test_segments(command, pixels, tmp_path):
    status, out, err = command("analyze", pixels[1], "--data", "cli_segments", "--output", tmp_path / "o")
    assert status == 0, err
    assert out.startswith("PQ ") and "no curves" in out
    rows = read_table(tmp_path / "o" / "per_class.csv")
    assert [(r["class"], r["is thing"]) for r in rows] == [("sea", "no"), ("ship", "yes")]
    assert (tmp_path / "o" / "worst_01.png").is_file() and not (tmp_path / "o" / "confusion.csv").exists()


def test_pixels_and_detections_do_not_mix(command, pixels, data, tmp_path):
    status, _, err = command("analyze", pixels[0], "--data", data / "annotations.json")
    assert status == 1 and "is a registered data set, and" in err and "--import" in err
    for option in (("--task", "bbox"), ("--compare", pixels[0])):
        status, _, err = command("analyze", pixels[0], "--data", "cli_labels", *option)
        assert status == 1 and "are for detections" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nothing"], "--data: 'nothing' is neither a file"),
        (["--images", "nothing"], "--images: there is no folder nothing"),
        (["--worst", -1], "--worst"),
        (["--compare", "nothing.json"], "No such file: nothing.json"),
        (["--task", "segm"], "lacks segmentation"),
        (["--task", "keypoints"], "The ground truth has no 'keypoints'"),
        (["--resamples", -1], "num_resamples"),
    ],
)
def test_mistakes_are_named(command, data, predictions, tmp_path, options, message):
    output = tmp_path / "o"
    status, _, err = command(
        "analyze", predictions(), "--data", data / "annotations.json", "--output", output, *options
    )
    assert status == 1
    assert message in err
    assert not output.exists()


def test_the_wrong_file(command, data, tmp_path):
    status, _, err = command("analyze", data / "annotations.json", "--data", data / "annotations.json")
    assert status == 1 and "is ground truth in COCO format; predictions are a list" in err


@pytest.mark.usefixtures("no_charts")
def test_tables_hold_no_formulas(command, data, tmp_path):
    truth = json.loads((data / "annotations.json").read_text())
    names = ["=cmd|'/C calc'!A0", "+1+1", "@SUM(1)", "-2", "\ta", " =1", "a=b"]
    for category, name in zip(truth["categories"], names, strict=False):
        category["name"] = name
    rows = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in truth["annotations"]]
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "dt.json").write_text(json.dumps(rows))
    options = ("--data", tmp_path / "gt.json", "--resamples", 0, "--output", tmp_path / "o")
    assert command("analyze", tmp_path / "dt.json", *options)[0] == 0
    for table in ("per_class", "errors", "confusion"):
        with open(tmp_path / "o" / f"{table}.csv", newline="") as f:
            cells = [cell for row in csv.reader(f) for cell in row]
        assert "'=cmd|'/C calc'!A0" in cells
        texts = [c for c in cells if not re.fullmatch(r"-?[\d.e-]*", c)]
        assert not [c for c in texts if c.lstrip(" ").startswith(("=", "+", "-", "@", "\t"))]


def test_page_explains_its_terms_and_the_axis_ends_at_one(command, data, tmp_path):
    truth = json.loads((data / "annotations.json").read_text())
    rows = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in truth["annotations"]]
    (tmp_path / "dt.json").write_text(json.dumps(rows))
    options = ("--data", data / "annotations.json", "--resamples", 0, "--output", tmp_path / "o")
    assert command("analyze", tmp_path / "dt.json", *options)[0] == 0
    page = (tmp_path / "o" / "report.html").read_text()
    for term in (
        "average precision",
        "average recall",
        "AP of small",
        "Precision",
        "Recall",
        "F1",
        "intersection over",
    ):
        assert term in page
    for chart in ("AP by class", "Precision and recall", "F1 and threshold", "Calibration"):
        drawn = page.split(f'aria-label="Chart: {chart}')[1].split("</svg>")[0]
        ticks = [float(t) for t in re.findall(r">(\d\.\d)</text>", drawn)]
        assert (min(ticks), max(ticks)) == (0, 1)


@pytest.mark.parametrize(
    ("counts", "classes", "shades", "texts"),
    [
        ([[0]], [], [[0]], []),
        (
            [[3, 0, 1], [0, 2, 0], [0, 12, 0]],
            ["cat", "dog"],
            [[0.75, 0, 0.25], [0, 1, 0], [0, 0, 0]],  # false positives are a share of nothing
            ["3\n75%", "1\n25%", "2\n100%", "12"],
        ),
    ],
)
def test_confusion_is_shaded_by_shares_of_the_true_class(counts, classes, shades, texts):
    from matplotlib.figure import Figure

    names = [*classes, "background"]
    _, _, draw, _ = _analysis_charts._confusion_chart(
        np.array(counts), names, _analysis_charts.Names(names), is_percent=False
    )
    axes = Figure().add_subplot()
    draw(axes)
    assert axes.images[0].get_array().tolist() == shades
    assert [t.get_text() for t in axes.texts] == texts
    rows, columns = ([t.get_text() for t in labels] for labels in (axes.get_yticklabels(), axes.get_xticklabels()))
    assert rows == [f"{name}  (n={sum(row)})" for name, row in zip(classes, counts, strict=False)] + ["no object"]
    assert columns == [*classes, "missed"]
