"""The script that draws what a model sees: images, a video, and what is said where there is nothing to draw."""

import runpy

import numpy as np
import pytest
from PIL import Image

from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]


@pytest.fixture
def demo(repo_root, restore_logging, cfg, tmp_path):
    """A function that runs the script with an untrained model, which finds something everywhere."""
    (tmp_path / "tiny.yaml").write_text(cfg.dump())
    script = runpy.run_path(str(repo_root / "demo" / "demo.py"), run_name="demo")

    def call(*argv, **changes):
        options = ["--config-file", tmp_path / "tiny.yaml", "--confidence-threshold", 0, *argv, "--opts"]
        opts = {"MODEL.WEIGHTS": "", "TEST.DETECTIONS_PER_IMAGE": 5, **changes}
        return script["main"]([str(x) for x in [*options, *(word for pair in opts.items() for word in pair)]])

    return call


def picture(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3)).astype(np.uint8)).save(path)
    return path


def test_no_input(demo, tmp_path, capsys):
    with pytest.raises(SystemExit):
        demo("--output", tmp_path)
    assert "one of the arguments --webcam --video-input --input is required" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"There is no file '.*nothing\*\.png'"):
        demo("--input", tmp_path / "nothing*.png")
    with pytest.raises(SystemExit, match=r"cannot open '.*none\.mp4'"):
        demo("--video-input", tmp_path / "none.mp4", "--output", tmp_path / "out.mp4")


def test_images(demo, tmp_path):
    first, _ = picture(tmp_path / "a.png", 0), picture(tmp_path / "b.png", 1)
    demo("--input", tmp_path / "?.png", "--output", tmp_path / "drawn")
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == ["a.png", "b.png"]
    drawn = np.asarray(Image.open(tmp_path / "drawn" / "a.png").convert("RGB"))
    assert drawn.shape == (48, 64, 3) and (drawn != np.asarray(Image.open(first))).any()
    demo("--input", first, "--output", tmp_path / "one.jpg")
    assert Image.open(tmp_path / "one.jpg").size == (64, 48)


def test_windows(demo, tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2")
    shown = []
    monkeypatch.setattr(cv2, "imshow", lambda name, image: shown.append(image.shape), raising=False)
    monkeypatch.setattr(cv2, "waitKey", lambda delay: 27, raising=False)
    demo("--input", picture(tmp_path / "a.png", 0), picture(tmp_path / "b.png", 1))
    assert shown == [(48, 64, 3)]  # Esc leaves out the second


def test_videos(demo, tmp_path):
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(tmp_path / "in.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (64, 48))
    for seed in range(3):
        writer.write(np.random.default_rng(seed).integers(0, 256, (48, 64, 3)).astype(np.uint8))
    writer.release()
    demo("--video-input", tmp_path / "in.avi", "--output", tmp_path / "drawn" / "out.avi")
    assert [p.name for p in (tmp_path / "drawn").iterdir()] == ["out.avi"]
    video = cv2.VideoCapture(str(tmp_path / "drawn" / "out.avi"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and video.get(cv2.CAP_PROP_FPS) == 5
    assert video.read()[1].shape == (48, 64, 3)
    with pytest.raises(SystemExit, match="must name a video file"):
        demo("--video-input", tmp_path / "in.avi", "--output", tmp_path / "folder")
