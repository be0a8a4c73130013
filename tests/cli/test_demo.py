"""``detectron2 demo``, made very small."""

import io
import json
import re
import sys

import pytest

from detectron2.cli import demo

SMALL = [
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.IMS_PER_BATCH", "2",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.FPN.OUT_CHANNELS", "32",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.RPN.POST_NMS_TOPK_TEST", "20",
]  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch, command):
    """A function that runs the demo in a folder of its own and returns (exit status, what it printed)."""
    monkeypatch.setattr(demo, "_SPLITS", {"train": (4, 1), "val": (3, 2)})

    def run_demo(*args: str) -> tuple[int, str]:
        status, out, err = command("demo", "--output", tmp_path / "demo", "--pictures", "2", *args, *SMALL)
        return status, out + err

    return run_demo


def test_first_and_second_run(run, tmp_path):
    folder = tmp_path / "demo"
    status, text = run("--iters", "2")
    assert status == 0, text
    assert "drawing 4 images" in text and "drawing 3 images" in text
    assert "Found" not in text
    files = {p.name for p in folder.iterdir()}
    assert {
        "config.yaml", "metadata.json", "metrics.json", "model_final.pth", "last_checkpoint", "results.json",
        "report.html", "training_curve.png", "pictures", "data",
    } <= files  # fmt: skip
    assert len(list((folder / "pictures").iterdir())) == 2
    assert set(json.loads((folder / "results.json").read_text())) == {"bbox", "segm"}
    assert json.loads((folder / "metadata.json").read_text())["thing_classes"] == list(demo.SHAPE_CLASSES)
    report = (folder / "report.html").read_text()
    assert (
        len(re.findall(r"<img[^>]+src=.?data:image/jpeg;base64,", report)) == 4
    )  # truth and predictions of two images
    titles = re.findall(r'aria-label="(Chart: [^"]+)"', report)
    assert {"Chart: AP of each class.", "Chart: total_loss.", "Chart: lr."} <= set(titles)
    for words in ("average precision, from 0 (worst) to 100", "intersection over union", " analyze "):
        assert words in report
    assert str(folder / "report.html") in text

    (folder / "mine.txt").write_text("kept")
    drawn = {p: p.stat().st_mtime_ns for p in (folder / "data").rglob("*.*")}
    status, text = run("--iters", "2")
    assert status == 0, text
    assert "Found a finished run" in text and "Starting clean" in text
    assert (folder / "mine.txt").read_text() == "kept"
    assert {p: p.stat().st_mtime_ns for p in (folder / "data").rglob("*.*")} == drawn

    last = (folder / "model_final.pth").stat().st_mtime_ns
    (folder / "report.html").unlink()
    status, text = run("--iters", "2", "--resume")
    assert status == 0, text
    assert "Resuming it" in text
    assert "already trained" in text
    assert (folder / "model_final.pth").stat().st_mtime_ns == last
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_drawing_shows_its_progress_on_a_terminal(tmp_path, monkeypatch, is_terminal):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr("sys.stderr", stream)
    try:
        demo._prepare_data(tmp_path, "cli_demo_progress", 3, seed=1)
    finally:
        demo.DatasetCatalog.remove("cli_demo_progress")
        demo.MetadataCatalog.remove("cli_demo_progress")
    assert len(list((tmp_path / "images").iterdir())) == 3
    assert ("0/3" in stream.getvalue()) == is_terminal
    assert stream.getvalue() == "" or stream.getvalue().endswith("\r")  # the line is gone


def test_resume_in_the_middle(run, tmp_path):
    folder = tmp_path / "demo"
    assert run("--iters", "2")[0] == 0
    # As if it had been interrupted after its first checkpoint.
    (folder / "model_final.pth").rename(folder / "model_0000001.pth")
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    (folder / "results.json").unlink()
    status, text = run("--iters", "3", "--resume")
    assert status == 0, text
    assert "Found an unfinished run" in text
    assert "iterations 2 to 3" in text
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


def test_nothing_to_resume(run):
    status, text = run("--iters", "1", "--resume")
    assert status == 0, text
    assert "Nothing to resume" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--iters", "0"], "--iters must be at least 1, got 0"),
        (["MODEL.FPN.OUT_CHANELS", "3"], "did you mean 'MODEL.FPN.OUT_CHANNELS'"),
        (["SOLVER.BASE_LR", "fast"], "SOLVER.BASE_LR must be float"),
    ],
)
def test_errors(run, args, message):
    status, text = run(*args)
    assert status == 1
    assert message in text
    assert "Traceback" not in text


def test_interrupted_run_is_saved_and_resumed(run, tmp_path, monkeypatch):
    step = demo.DefaultTrainer.run_step

    def interrupted(trainer):
        if trainer.iter == 2:
            raise KeyboardInterrupt
        step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(demo.DefaultTrainer, "run_step", interrupted)
        status, text = run("--iters", "3")
    assert status == 130
    assert "Stopped after iteration 2, and saved" in text
    assert (tmp_path / "demo" / "last_checkpoint").read_text() == "model_0000001.pth"
    status, text = run("--iters", "3", "--resume")
    assert status == 0, text
    assert "Found an unfinished run" in text
    assert "iterations 2 to 3" in text


@pytest.mark.parametrize(
    ("argv0", "on_path", "expected"),
    [
        ("{here}/bin/detectron2", [], "bin/detectron2"),
        ("{here}/bin/detectron2", ["detectron2"], "detectron2"),
        ("{here}/detectron2/__main__.py", [], "bin/python -m detectron2"),
        ("{here}/detectron2/__main__.py", ["detectron2"], "bin/python -m detectron2"),
        ("{here}/detectron2/__main__.py", ["python"], "python -m detectron2"),
    ],
)
def test_commands_to_try_next_run_as_they_are(monkeypatch, tmp_path, argv0, on_path, expected):
    (tmp_path / "bin").mkdir()
    for name in on_path:
        (tmp_path / "bin" / name).touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr(sys, "argv", [argv0.format(here=tmp_path), "demo"])
    assert demo._program() == expected
