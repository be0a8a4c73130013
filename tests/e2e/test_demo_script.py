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
    with pytest.raises(SystemExit, match=r"There is no file '.*none\.mp4'"):
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
    monkeypatch.setattr(cv2, "namedWindow", lambda name: None, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
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
    demo("--video-input", tmp_path / "in.avi", "--output", tmp_path / "folder")
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["in.avi"]
    assert cv2.VideoCapture(str(tmp_path / "folder" / "in.avi")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


@pytest.fixture
def unloadable(monkeypatch):
    """No model may be made."""
    from detectron2.engine import DefaultPredictor

    monkeypatch.setattr(DefaultPredictor, "__init__", lambda self, cfg: pytest.fail("The model was made."))


def test_what_cannot_be_done_is_said_before_the_model_is_made(demo, unloadable, tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2")
    image = picture(tmp_path / "a.png", 0)
    writer = cv2.VideoWriter(str(tmp_path / "in.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    (tmp_path / "bad.mp4").write_text("no video")
    (tmp_path / "b").mkdir()
    other = picture(tmp_path / "b" / "a.png", 1)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    out = ("--output", tmp_path / "out")
    for argv, message in (
        (("--video-input", tmp_path / "in.avi"), "there is no display. Give --output"),
        (("--input", image), "there is no display. Give --output"),
        (("--video-input", tmp_path / "bad.mp4", *out), r"'.*bad\.mp4' is not a video that can be opened"),
        (("--video-input", tmp_path / "in.avi", "--output", tmp_path / "x.txt"), r"cannot write '.*x\.txt'"),
        (("--video-input", tmp_path / "in.avi", "--output", tmp_path), r"would write over .*in\.avi"),
        (("--input", image, "--output", tmp_path), r"would write over .*a\.png"),
        (("--input", image, other, *out), r"Several inputs have the name of .*a\.png"),
    ):
        with pytest.raises(SystemExit, match=message):
            demo(*argv)
    monkeypatch.setenv("DISPLAY", ":0")
    with pytest.raises(SystemExit, match="this OpenCV has no windows"):
        demo("--input", image)
    content = image.read_bytes(), (tmp_path / "in.avi").stat().st_size > 0
    assert content[0] == picture(tmp_path / "c.png", 0).read_bytes() and content[1]


def test_cameras(demo, tmp_path, monkeypatch, unloadable):
    cv2 = pytest.importorskip("cv2")

    class Nothing:
        def __init__(self, number):
            assert number == 0

        def isOpened(self):
            return False

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Nothing)
    with pytest.raises(SystemExit, match=r"The camera 0 cannot be opened"):
        demo("--webcam", "--output", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_video_is_drawn_as_far_as_it_goes(demo, tmp_path):
    """And so is one of which the drawing is interrupted; frames keep their times."""
    av = pytest.importorskip("av")
    rng = np.random.default_rng(0)
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(8):
            pixels = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="bgr24")))
        container.mux(stream.encode(None))
    content = (tmp_path / "in.mkv").read_bytes()
    (tmp_path / "in.mkv").write_bytes(content[: len(content) // 2])
    with pytest.raises(SystemExit, match=r"in\.mkv' is damaged: it is cut off after frame \d"):
        demo("--video-input", tmp_path / "in.mkv", "--output", tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert 2 <= len(times) <= 6 and np.allclose(np.diff(times), 0.5, atol=1e-3)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config-file", "none.yaml", "--input", "a.png"], r"There is no config file 'none\.yaml'"),
        (["--config-file", "bad.yaml", "--input", "a.png"], "bad.yaml"),
        (["--config-file", "tiny.yaml", "--input", "a.png", "--opts", "NO.KEY", "3"], "NO.KEY"),
        (
            ["--config-file", "tiny.yaml", "--input", "a.png", "--output", "o", "--opts", "MODEL.WEIGHTS", "no.pth"],
            "no.pth",
        ),
    ],
)
def test_mistakes_are_said_without_a_traceback(repo_root, restore_logging, cfg, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(cfg.dump())
    (tmp_path / "bad.yaml").write_text("a: [1,")
    picture(tmp_path / "a.png", 0)
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(str(repo_root / "demo" / "demo.py"), run_name="demo")["main"](argv)
