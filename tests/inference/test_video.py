"""Videos in and out: frames, times, what turns them upright, damage, Ctrl-C; and cameras, of which a fake is used."""

import os
import threading
import wave
from fractions import Fraction

import numpy as np
import pytest

from detectron2.inference import video as module
from detectron2.inference.sources import read_frames
from detectron2.inference.video import Camera, VideoReader, VideoWriter, read_ahead

av = pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")

H, W = 48, 64


@pytest.fixture(params=["pyav", "opencv"])
def backend(request, monkeypatch):
    if request.param == "opencv":
        monkeypatch.setattr(module, "_pyav", lambda: None)
    return request.param


def frame_of(i, size_hw=(H, W)):
    """A grey frame, whose brightness survives the encoder."""
    return np.full((*size_hw, 3), 20 + 20 * (i % 11), np.uint8)


def write(path, times, codec="libx264", rotation=0, image=None, rate=10, options=None):
    """A video made with PyAV itself."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(frame_of(i) if image is None else image, format="bgr24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if rotation:
        turn(path, rotation)
    return path


def turn(path, degrees):
    """Write the matrix by which an MP4 file is shown turned counterclockwise; it lies in the header of the track."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1 << 14]]) << 16
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    content[start : start + 36] = matrix.astype(">i4").tobytes()
    path.write_bytes(content)


def numbers_of(frames):
    return [round((float(image.mean()) - 20) / 20) for image in frames]


def write_noise(path, count, options=None):
    rng = np.random.default_rng(0)
    codec = "mpeg4" if path.suffix == ".avi" else "libx264"
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"
        for _ in range(count):
            pixels = rng.integers(0, 256, (H, W, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="bgr24")))
        container.mux(stream.encode(None))
    return path


def test_nothing_to_write_or_read(tmp_path, backend):
    with VideoWriter(tmp_path / "a.mp4") as writer:
        pass
    writer.close()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_bytes(b"no video" * 100)
    for bad, error, text in (
        (tmp_path / "none.mp4", FileNotFoundError, "No such video"),
        (tmp_path, IsADirectoryError, "folder"),
        (tmp_path / "empty.mp4", OSError, "is empty"),
        (tmp_path / "text.mp4", OSError, "is not a video"),
    ):
        with pytest.raises(error, match=text):
            VideoReader(bad)
    (frame,) = read_frames(tmp_path / "empty.mp4")
    assert frame.image is None and "is empty" in str(frame.error) and frame.name == str(tmp_path / "empty.mp4")


def test_sound_is_no_video(tmp_path, backend):
    with wave.open(str(tmp_path / "sound.mkv"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    with pytest.raises(OSError, match="contains audio" if backend == "pyav" else "is not a video"):
        VideoReader(tmp_path / "sound.mkv")


@pytest.mark.skipif(not hasattr(av.stream, "Disposition"), reason="old versions of PyAV do not tell what is a cover")
def test_the_cover_of_a_song_is_no_video(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        sound, cover = container.add_stream("aac", rate=44100), container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = W, H, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(frame_of(0), format="bgr24")))
        container.mux(cover.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 4410), np.float32), format="fltp", layout="stereo")
        silence.rate = 44100
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    with pytest.raises(OSError, match="has no moving pictures; it contains a cover, audio"):
        VideoReader(tmp_path / "song.mp4")


@pytest.mark.parametrize("times", [[0, 0.1, 0.2, 0.3], [0, 0.1, 0.2, 1.0, 1.05, 2.0], [3.0, 3.5, 3.6], [0.0]])
def test_frames_have_their_times(tmp_path, backend, times):
    reader = VideoReader(write(tmp_path / "a.mp4", times))
    for _ in range(2):  # each iteration starts at the first frame
        images, seconds = zip(*reader, strict=True)
        assert numbers_of(images) == list(range(len(times)))
        np.testing.assert_allclose(seconds, np.array(times) - times[0], atol=1e-3)
    assert reader.size_hw == (H, W) == images[0].shape[:2] and reader.frame_count == len(times)
    assert images[0].flags.writeable and images[0].flags.c_contiguous


def test_channels_have_the_order_that_was_asked_for(tmp_path, backend):
    blue = np.full((H, W, 3), (220, 30, 30), np.uint8)
    path = write(tmp_path / "a.mp4", [0, 0.1], image=blue)
    for image_format, expected in (("BGR", (220, 30, 30)), ("RGB", (30, 30, 220)), (None, (30, 30, 220)), ("L", (52,))):
        (image, _), *_ = VideoReader(path, image_format)
        assert image.shape == (H, W, len(expected))
        np.testing.assert_allclose(image.mean(axis=(0, 1)), expected, atol=6)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_videos_of_a_turned_phone_are_upright(tmp_path, backend, rotation):
    image = np.full((H, W, 3), 40, np.uint8)
    image[: H // 2, : W // 2] = 200  # top left
    reader = VideoReader(write(tmp_path / "a.mp4", [0, 0.1], rotation=rotation, image=image))
    expected = np.rot90(image, rotation // 90)  # counterclockwise
    assert reader.size_hw == expected.shape[:2]
    for got, _ in reader:
        assert np.abs(got.astype(int) - expected).mean() < 5


def test_mirrored_videos_are_upright():
    image = np.arange(2 * 3 * 3).reshape(2, 3, 3)

    class Frame:
        def __init__(self, a, b, c, d):
            matrix = np.array([[a, b, 0], [c, d, 0], [0, 0, 1]], np.int32) * 65536
            self.side_data = {"DISPLAYMATRIX": matrix.tobytes()}

    same = np.testing.assert_array_equal
    same(module._upright(image, Frame(1, 0, 0, 1)), image)
    same(module._upright(image, Frame(-1, 0, 0, 1)), image[:, ::-1])
    same(module._upright(image, Frame(1, 0, 0, -1)), image[::-1])
    same(module._upright(image, Frame(0, 1, 1, 0)), image.transpose(1, 0, 2))
    same(module._upright(image, Frame(0, 1, -1, 0)), np.rot90(image, -1))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_file_that_is_cut_off(tmp_path, suffix):
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    whole = write_noise(tmp_path / f"whole{suffix}", 30, options)
    assert len(list(VideoReader(whole))) == 30
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    images = []
    with pytest.raises(OSError, match=r"cut\.\w+' is damaged: .*frame \d+.*; \d+ frames were decoded") as raised:
        for image, _ in VideoReader(cut):
            images.append(image)
    assert 8 <= len(images) <= 20 and f"{len(images)} frames were decoded" in str(raised.value)
    *good, bad = read_frames(cut)
    assert len(good) == len(images) and bad.image is None and bad.name == f"{cut}, frame {len(good)}"
    assert str(bad.error) == str(raised.value)


def test_opencv_warns_of_a_file_that_is_cut_off(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "_pyav", lambda: None)
    whole = write_noise(tmp_path / "a.mkv", 30)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    assert 8 <= len(list(VideoReader(whole))) <= 20
    assert "claims to have 30" in caplog.text and "detectron2[video]" in caplog.text


def test_videos_are_part_of_the_stream(tmp_path):
    path = write(tmp_path / "clip.mp4", [0, 0.5, 0.6])
    image = np.zeros((4, 6, 3), np.uint8)
    for workers in (0, 2):
        frames = list(read_frames([image, path, image], workers=workers))
        assert [f.index for f in frames] == list(range(5)) and frames[0].time is None
        assert [f.time for f in frames[1:4]] == pytest.approx([0, 0.5, 0.6])
        assert frames[3].name == f"{path}, frame 2" and frames[3].path == frames[3].source == str(path)
    assert len(list(read_frames(str(tmp_path / "*.mp4")))) == 3


def test_addresses_of_videos(tmp_path, monkeypatch):
    path = write(tmp_path / "clip.mp4", [0, 0.5])
    assert len(list(VideoReader(f"file://{path}"))) == 2
    opened = []

    class Reader(VideoReader):
        def __init__(self, place, image_format):
            opened.append(place)
            super().__init__(path, image_format)

    monkeypatch.setattr("detectron2.inference.sources.VideoReader", Reader)
    frames = list(read_frames("rtsp://me:word@host/live"))
    assert opened == ["rtsp://me:word@host/live"] and frames[1].name == "rtsp://host/live, frame 1"
    assert frames[1].path is None and frames[1].error is None


def test_decoding_waits_for_the_consumer(tmp_path, monkeypatch):
    path = write(tmp_path / "clip.mp4", [0.1 * i for i in range(40)])
    decoded, real = [], module._frames_by_pyav

    def counted(reader, order):
        for item in real(reader, order):
            decoded.append(item[1])
            yield item

    monkeypatch.setattr(module, "_frames_by_pyav", counted)
    frames = read_frames(path, ahead=3)
    for _ in range(4):
        next(frames)
    assert len(decoded) <= 1 + 4 + 3  # one to learn the size
    frames.close()
    assert not [t for t in threading.enumerate() if t.name == "read_ahead"]


def test_without_anything_that_reads_videos(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_pyav", lambda: None)
    monkeypatch.setattr(module, "opencv", lambda: None)
    path = tmp_path / "a.mp4"
    path.write_bytes(b"x")
    for call in (lambda: VideoReader(path), lambda: VideoWriter(tmp_path / "b.mp4"), lambda: read_frames([path])):
        with pytest.raises(ImportError, match=r"pip install 'detectron2\[video\]'"):
            call()
    with pytest.raises(ImportError, match="pip install opencv-python"):
        read_frames(0)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_what_is_written_is_read(tmp_path, backend, suffix, image_format):
    colour = np.full((H, W, 3), (30, 120, 200), np.uint8)
    path = tmp_path / "new" / f"a{suffix}"
    with VideoWriter(path, fps=10, image_format=image_format) as writer:
        for _ in range(5):
            assert not path.exists()
            writer.write(colour)
    assert os.listdir(tmp_path / "new") == [f"a{suffix}"] and writer.frame_count == 5
    reader = VideoReader(path, image_format)
    images, seconds = zip(*reader, strict=True)
    np.testing.assert_allclose(seconds, np.arange(5) / 10, atol=2e-3)
    assert reader.fps == pytest.approx(10, rel=0.01)
    for image in images:
        np.testing.assert_allclose(image.mean(axis=(0, 1)), (30, 120, 200), atol=6)


def test_times_are_kept(tmp_path):
    times = [5.0, 5.1, 5.15, 6.0, 6.001]
    with VideoWriter(tmp_path / "a.mp4", fps=30) as writer:
        for i, time in enumerate(times):
            writer.write(frame_of(i), time)
        writer.write(frame_of(5))
    images, seconds = zip(*VideoReader(tmp_path / "a.mp4"), strict=True)
    np.testing.assert_allclose(seconds, [*(np.array(times) - 5), 1.001 + 1 / 30], atol=1e-3)
    assert numbers_of(images) == list(range(6))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_frames_are_repeated_where_times_cannot_be_kept(tmp_path, monkeypatch, suffix):
    if suffix == ".mp4":
        monkeypatch.setattr(module, "_pyav", lambda: None)
    with VideoWriter(tmp_path / f"a{suffix}", fps=10) as writer:
        for i, time in enumerate((1.0, 1.1, 1.5)):
            writer.write(frame_of(i), time)
    images, _ = zip(*VideoReader(tmp_path / f"a{suffix}"), strict=True)
    assert numbers_of(images) == [0, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("size_hw", [(47, 63), (48, 63), (1, 1)])
def test_odd_sizes(tmp_path, size_hw):
    with VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(frame_of(3, size_hw))
    (image, _), *_ = VideoReader(tmp_path / "a.mp4")
    assert image.shape == (size_hw[0] + size_hw[0] % 2, size_hw[1] + size_hw[1] % 2, 3) and numbers_of([image]) == [3]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_was_written_before_an_interruption_can_be_played(tmp_path, backend, error):
    with pytest.raises(error), VideoWriter(tmp_path / "a.mp4", fps=10) as writer:
        for i in range(6):
            writer.write(frame_of(i))
            if i == 3:
                raise error
    images, _ = zip(*VideoReader(tmp_path / "a.mp4"), strict=True)
    assert numbers_of(images) == [0, 1, 2, 3] and os.listdir(tmp_path) == ["a.mp4"]


def test_bad_frames_and_files(tmp_path, monkeypatch):
    for options, text in (
        ({"path": tmp_path / "a.txt"}, r"cannot write '.*a\.txt': a video ends in \.mp4"),
        ({"path": tmp_path / "a.mp4", "fps": 0}, "fps must be"),
        ({"path": tmp_path / "a.mp4", "fps": float("nan")}, "fps must be"),
        ({"path": tmp_path / "a.mp4", "image_format": "L"}, "image_format"),
    ):
        with pytest.raises(ValueError, match=text):
            VideoWriter(**options)
    (tmp_path / "b.mp4").write_bytes(b"older")
    with VideoWriter(tmp_path / "b.mp4") as writer:
        for bad in (frame_of(0).astype(float), frame_of(0)[:, :, 0], np.zeros((0, 4, 3), np.uint8)):
            with pytest.raises(ValueError, match="Expected a frame"):
                writer.write(bad)
        writer.write(frame_of(0))
        with pytest.raises(ValueError, match=r"Frame 1 has height and width \(24, 64\), the video \(48, 64\)"):
            writer.write(frame_of(0)[:24])
        with pytest.raises(ValueError, match="number of seconds"):
            writer.write(frame_of(0), float("nan"))
        monkeypatch.setattr(module._PyavSink, "put", lambda *args: (_ for _ in ()).throw(OSError("disk")))
        with pytest.raises(OSError, match=r"b\.mp4 cannot be written: disk"):
            writer.write(frame_of(0))
        with pytest.raises(ValueError, match="is closed"):
            writer.write(frame_of(0))
    assert os.listdir(tmp_path) == ["b.mp4"] and (tmp_path / "b.mp4").read_bytes() == b"older"


class FakeCamera:
    """An OpenCV camera of ten pictures, which waits after the second until the third is to be taken."""

    go_on = threading.Event()

    def __init__(self, number):
        self.is_there, self.taken, self.released = number == 0, 0, False
        FakeCamera.last = self

    def isOpened(self):
        return self.is_there

    def read(self):
        if self.taken == 2:
            self.go_on.wait(10)
        self.taken += 1
        return (False, None) if self.taken > 10 else (True, np.full((4, 6, 3), self.taken, np.uint8))

    def release(self):
        self.released = True


def test_a_camera_gives_its_newest_picture(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera)
    FakeCamera.go_on.clear()
    frames = read_frames("webcam:0")
    first = next(frames)
    assert first.name == "webcam:0, frame 0" and first.path is None and first.time == 0 and first.source == "webcam:0"
    FakeCamera.go_on.set()
    rest = list(frames)
    values = [int(f.image[0, 0, 0]) for f in (first, *rest[:-1])]
    assert values == sorted(set(values)) and values[-1] == 10  # some may be missing, none comes twice
    times = [f.time for f in rest[:-1]]
    assert times == sorted(times) and "gives no more pictures" in str(rest[-1].error) and FakeCamera.last.released
    FakeCamera.go_on.set()
    stream = iter(Camera(0, "RGB"))
    assert next(stream)[0].shape == (4, 6, 3)
    stream.close()
    assert FakeCamera.last.released and not [t for t in threading.enumerate() if t.name.startswith("webcam")]


def test_where_there_is_no_camera(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera)
    (frame,) = read_frames(7)
    assert frame.image is None and "The camera 7 cannot be opened" in str(frame.error)


@pytest.mark.parametrize("source", [-1, [-1], "webcam:2147483648", "/dev/video99999999999"])
def test_a_number_that_no_camera_has(source):
    """OpenCV ends the process, or raises an error of its own."""
    with pytest.raises(ValueError, match="Expected the number of a camera, from 0 on, got "):
        read_frames(source)


def test_items_are_made_ahead_in_a_thread():
    assert list(read_ahead([], 1)) == []
    made, closed = [], []

    def items():
        try:
            for i in range(100):
                made.append(i)
                yield i
        finally:
            closed.append(threading.current_thread().name)

    stream = read_ahead(items(), 3)
    assert [next(stream) for _ in range(4)] == [0, 1, 2, 3]
    stream.close()
    assert len(made) <= 8 and closed == ["read_ahead"]

    def failing():
        yield 1
        raise KeyError("mine")

    seen = []
    with pytest.raises(KeyError, match="mine"):
        for item in read_ahead(failing(), 5):
            seen.append(item)
    assert seen == [1]
