"""Videos and cameras: frames with their times out of a file, and a file out of frames.

PyAV reads and writes where it is installed (`pip install 'detectron2[video]'`), and otherwise OpenCV, which cannot
write H.264 or times that vary.

Letters: `H`, `W` height and width in pixels, `C` channels.
"""

import importlib
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from queue import SimpleQueue
from types import ModuleType
from typing import Any, Literal, TypeVar

import numpy as np

from detectron2.data.images import convert_array
from detectron2.data.transforms.pixels import opencv
from detectron2.utils.file_io import full_disk_named

__all__ = ["VIDEO_SUFFIXES", "Camera", "VideoReader", "VideoWriter", "read_ahead"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
_Timed = tuple[np.ndarray, float]

VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts", ".mts", ".m2ts", ".flv", ".3gp",
)  # fmt: skip
"""Endings by which videos are known."""

_INSTALL = "pip install 'detectron2[video]'"
_H264 = ("libx264", "mpeg4")
# The encoders of each kind of file, best first.
_ENCODERS = {
    ".mp4": _H264,
    ".m4v": _H264,
    ".mov": _H264,
    ".mkv": _H264,
    ".webm": ("libvpx-vp9", "libvpx"),
    ".avi": ("mpeg4",),
}
_ENCODER_OPTIONS = {
    "libx264": {"crf": "20", "preset": "veryfast"},
    "libvpx-vp9": {"crf": "32", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"},
    "libvpx": {"crf": "10", "deadline": "realtime", "cpu-used": "4"},
}
_FOURCC = {".avi": "MJPG", ".mkv": "MJPG", ".webm": "VP80"}  # of OpenCV; "mp4v" for others
_CLOCK = 90_000  # ticks a second, as in MPEG: whole numbers for all usual frame rates
_BITS_PER_PIXEL = 0.2  # of encoders without a setting for constant quality
_USUAL_FPS = 25.0
_SECONDS_TO_END = 5.0  # a device that hangs is left to itself


def _pyav() -> ModuleType | None:
    try:
        av = importlib.import_module("av")
    except ImportError:
        return None
    return av


def _require(what: str, backends: Iterable[Any]) -> None:
    if not any(backends):
        raise ImportError(f"{what} cannot be opened, because neither PyAV nor OpenCV is installed: {_INSTALL}.")


class VideoReader:
    """The frames of a video file, upright, with the time at which each is shown.

    Files are open only during an iteration, and each iteration starts at the first frame. Sound is left out.

    Args:
        path: the file, or an address that FFmpeg opens, such as `rtsp://...`.
        image_format: the format of the frames, as for `detectron2.data.images.read_image`; None means "RGB".

    Attributes:
        size_hw: height and width of the first frame, as it is shown: a video that a phone took upright is higher than
            wide.
        fps: frames per second on average; None where the file does not say. Between two frames of a video with a
            variable frame rate there may be more or less time.
        frame_count: the number of frames that the file claims, or else the duration times the frame rate; None where
            neither is known. It may be wrong: count the frames where that matters.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it is not a video, or none of its frames can be decoded.
        ImportError: if neither PyAV nor OpenCV is installed.

    Example:
        >>> reader = VideoReader("clip.mp4")  # doctest: +SKIP
        >>> for image, seconds in reader:  # doctest: +SKIP
        ...     print(image.shape, seconds)
    """

    def __init__(self, path: str | os.PathLike, image_format: str | None = "BGR") -> None:
        self.path = os.fspath(path)
        self.image_format = image_format or "RGB"
        self.require()
        if os.path.isdir(self.path):
            raise IsADirectoryError(f"Expected a video file, got the folder {self.path!r}.")
        if "://" not in self.path and not os.path.exists(self.path):
            raise FileNotFoundError(f"No such video: {self.path!r} (working directory: {os.getcwd()}).")
        if os.path.isfile(self.path) and not os.path.getsize(self.path):
            raise OSError(f"{self.path!r} is empty; expected a video.")
        self.fps: float | None = None
        self.frame_count: int | None = None
        frames = iter(self)
        try:
            first = next(frames, None)
        finally:
            frames.close()
        if first is None:
            raise OSError(f"{self.path!r} has no frames that can be decoded.")
        self.size_hw: tuple[int, int] = first[0].shape[:2]

    @staticmethod
    def require() -> None:
        """Raise an `ImportError` that says what to install, if nothing here reads videos."""
        _require("Videos", (_pyav() or opencv(),))

    def __iter__(self) -> Generator[_Timed, None, None]:
        """Yield `(image, seconds)` for each frame.

        Yields:
            The image `(H, W, C)`, which may be written to, and the time since the first frame.

        Raises:
            OSError: after the frames that there are, if the file is damaged or cut off; it says at which frame.
        """
        order = self.image_format if self.image_format in ("BGR", "RGB") else "RGB"
        start = None
        last = -1.0
        for image, seconds in (_frames_by_opencv if _pyav() is None else _frames_by_pyav)(self, order):
            if seconds is None:  # of raw streams
                seconds = last + 1 / (self.fps or _USUAL_FPS) if start is not None else 0.0
            start = seconds if start is None else start
            last = seconds
            if self.image_format != order:
                image = convert_array(image, self.image_format, "rgb")
            waiting = [(image, seconds - start)]
            del image  # so that it is freed when the caller has done with it
            yield waiting.pop()


def _frames_by_pyav(reader: VideoReader, order: str) -> Iterator[tuple[np.ndarray, float | None]]:
    """Decode with PyAV, beyond damage; raise an error at the end that says where it is."""
    av: Any = _pyav()
    path, count, end = reader.path, 0, None
    damage: list[str] = []
    failures = (av.error.FFmpegError, OSError, ValueError)
    try:
        container = av.open(path)
    except failures as e:
        raise OSError(f"{path!r} is not a video that can be opened, or it is cut off: {_reason(e)}.") from e
    with container:
        streams = [s for s in container.streams.video if not _is_cover(s)]
        if not streams:
            kinds = ", ".join(sorted({"a cover" if _is_cover(s) else s.type for s in container.streams}))
            raise OSError(f"{path!r} has no moving pictures; it contains {kinds or 'nothing'}.")
        stream = streams[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        duration = _duration(container, stream)
        reader.fps = rate or None
        reader.frame_count = stream.frames or round(duration * rate) or None
        for packet in _packets(container, stream, failures, damage):
            if packet is not None and packet.is_corrupt:
                damage.append(f"frame {count} or one soon after it is damaged")
            try:
                frames = stream.decode(packet)
            except failures as e:
                damage.append(f"frame {count} cannot be decoded ({_reason(e)})")
                continue
            for frame in frames:
                if frame.is_corrupt:
                    damage.append(f"frame {count} is damaged")
                count, end = count + 1, frame.time
                yield np.ascontiguousarray(_upright(frame.to_ndarray(format=f"{order.lower()}24"), frame)), frame.time
        # Matroska has its duration at the start of the file, and for readers the end of the file is that of the video.
        missing = duration - end - 1 / rate if end is not None and rate and len(container.streams) == 1 else 0
        if "matroska" in container.format.name and missing > max(0.5, 3 / rate):
            damage.append(f"it is cut off after frame {count - 1}, and {missing:.1f} seconds are missing")
    if damage:
        raise OSError(f"{path!r} is damaged: {damage[0]}; {count} frames were decoded.")


def _packets(container: Any, stream: Any, failures: tuple[type[Exception], ...], damage: list[str]) -> Iterator[Any]:
    """Yield the packets of a stream as far as they can be read, and at the end one that empties the decoder."""
    packets = container.demux(stream)
    count = 0
    while True:
        try:
            packet = next(packets, None)
        except failures as e:
            damage.append(f"what follows packet {count} cannot be read ({_reason(e)})")
            yield None
            return
        if packet is None:
            return
        count += 1
        yield packet


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).rstrip(".").lower()


def _is_cover(stream: Any) -> bool:
    """Whether a stream is the picture that a music file shows."""
    disposition = getattr(stream, "disposition", None)
    return bool(disposition is not None and getattr(type(disposition), "attached_pic", 0) & disposition)


def _duration(container: Any, stream: Any) -> float:
    """Return seconds; 0 where the file does not say."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6


def _upright(image: np.ndarray, frame: Any) -> np.ndarray:
    """Turn an image as the display matrix of its frame says.

    Source: `libavutil/display.h` of FFmpeg: a point `(x, y)` is shown at `(a x + c y, b x + d y)`.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if abs(a) < abs(b):
        image, a, d = image.transpose(1, 0, 2), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _frames_by_opencv(reader: VideoReader, order: str) -> Iterator[tuple[np.ndarray, float | None]]:
    """Decode with OpenCV, which turns frames upright itself."""
    cv2: Any = opencv()
    video = cv2.VideoCapture(reader.path)
    try:
        if not video.isOpened():
            raise OSError(f"{reader.path!r} is not a video that OpenCV can open, or it is cut off.")
        fps, claimed = video.get(cv2.CAP_PROP_FPS), int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        reader.fps = fps if fps > 0 else None
        reader.frame_count = claimed if claimed > 0 else None
        count = 0
        while video.grab():
            milliseconds = video.get(cv2.CAP_PROP_POS_MSEC)
            is_read, image = video.retrieve()
            if not is_read:
                raise OSError(f"{reader.path!r} is damaged: frame {count} cannot be decoded.")
            count += 1
            yield image if order == "BGR" else cv2.cvtColor(image, cv2.COLOR_BGR2RGB), milliseconds / 1000
        if claimed - count > max(2, 0.05 * claimed):
            text = "%s has %d frames, and claims to have %d. OpenCV does not tell whether it is cut off; PyAV does: %s"
            logger.warning(text, reader.path, count, claimed, _INSTALL)
    finally:
        video.release()


class Camera:
    """The pictures of a camera: always the newest, so that what is slower than the camera does not fall behind.

    It is open during an iteration, in which a thread reads from it. The iteration does not end by itself.

    Args:
        number: 0 for the first camera.
        image_format: the format of the pictures, as for `detectron2.data.images.read_image`; None means "RGB".

    Raises:
        ImportError: if neither OpenCV nor, on Linux, PyAV is installed.
        ValueError: if no camera can have this number.

    Example:
        >>> for image, seconds in Camera(0):  # doctest: +SKIP
        ...     print(image.shape, seconds)
    """

    def __init__(self, number: int = 0, image_format: str | None = "BGR") -> None:
        self.require()
        if not 0 <= number < 1 << 31:  # OpenCV ends the process
            raise ValueError(f"Expected the number of a camera, from 0 on, got {number}.")
        self.number = number
        self.image_format = image_format or "RGB"

    @staticmethod
    def require() -> None:
        """Raise an `ImportError` that says what to install, if nothing here reads from cameras."""
        if opencv() is None and not (_pyav() and sys.platform.startswith("linux")):
            raise ImportError("Cameras cannot be opened, because OpenCV is not installed: pip install opencv-python.")

    def __iter__(self) -> Generator[_Timed, None, None]:
        """Yield `(image, seconds)`: the newest picture, once it was taken after the last one that was yielded.

        Yields:
            The image `(H, W, C)`, and the time since the first one.

        Raises:
            OSError: if there is no such camera, or it gives no more pictures.
        """
        newest: list[tuple[np.ndarray, float]] = []
        changed = threading.Condition()
        is_stopped = threading.Event()
        errors: list[Exception] = []
        is_ended = threading.Event()

        def watch() -> None:
            try:
                for image in self._pictures():
                    if is_stopped.is_set():
                        break
                    with changed:
                        newest[:] = [(image, time.monotonic())]
                        changed.notify()
            except Exception as e:
                errors.append(e)
            finally:
                with changed:
                    is_ended.set()
                    changed.notify()

        thread = threading.Thread(target=watch, name=f"webcam_{self.number}", daemon=True)
        thread.start()
        start = None
        try:
            while True:
                with changed:
                    changed.wait_for(lambda: newest or is_ended.is_set())
                    if not newest:
                        break
                    image, seconds = newest.pop()
                start = seconds if start is None else start
                if self.image_format != "BGR":
                    image = convert_array(image, self.image_format, "bgr")
                yield image, seconds - start
            raise errors[0] if errors else OSError(f"The camera {self.number} gives no more pictures.")
        finally:
            is_stopped.set()
            thread.join(_SECONDS_TO_END)

    def _pictures(self) -> Iterator[np.ndarray]:
        """Yield what the camera sees, BGR."""
        lacking = f"The camera {self.number} cannot be opened: there is none, another program uses it, or access to it"
        lacking += " is denied."
        cv2: Any = opencv()
        if cv2 is None:
            av: Any = _pyav()
            try:
                container = av.open(f"/dev/video{self.number}", format="v4l2")
            except (av.error.FFmpegError, OSError, ValueError) as e:
                raise OSError(f"{lacking} ({_reason(e)})") from e
            with container:
                yield from (frame.to_ndarray(format="bgr24") for frame in container.decode(video=0))
            return
        camera = cv2.VideoCapture(self.number)
        try:
            if not camera.isOpened():
                raise OSError(lacking)
            while True:
                is_read, image = camera.read()
                if not is_read:
                    return
                yield image
        finally:
            camera.release()


def read_ahead(items: Iterable[T], ahead: int) -> Generator[T, None, None]:
    """Run an iterator in a thread, which is `ahead` items ahead of the caller and then waits.

    Args:
        items: the iterator. A generator is closed in the thread when this one is closed.
        ahead: how many items are made or wait at a time, beside the one that the caller has.

    Yields:
        The items, in order; what the iterator raises is raised after those before it.

    Example:
        >>> list(read_ahead(range(3), 2))
        [0, 1, 2]
    """
    results: SimpleQueue = SimpleQueue()
    room = threading.Semaphore(ahead)
    is_stopped = threading.Event()

    def work() -> None:
        iterator = iter(items)
        try:
            while room.acquire() and not is_stopped.is_set():
                results.put((True, next(iterator)))
        except StopIteration:
            results.put((False, None))
        except BaseException as e:
            results.put((False, e))
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=work, name="read_ahead", daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = results.get()
            if not is_item:
                break
            room.release()
            waiting = [value]
            del value
            yield waiting.pop()
        if value is not None:
            raise value
    finally:
        is_stopped.set()
        room.release()
        thread.join(_SECONDS_TO_END)


class VideoWriter:
    """A video file made of frames: H.264 in MP4 where the encoder is installed, else MPEG-4.

    The file has a temporary name beside its own until it is closed, and nothing is left where no frame was written.
    Whatever ends the `with` block, Ctrl-C or an error, what was written before is a video that can be played.

    Args:
        path: the file; its ending is the kind: `.mp4`, `.mov`, `.m4v`, `.mkv`, `.webm` or `.avi`.
        fps: frames per second, of frames that are written without a time; None means 25.
        size_hw: height and width; None takes those of the first frame. Odd ones, which H.264 does not have, get one
            more row or column.
        image_format: "BGR" or "RGB", the order of the channels of frames.

    Raises:
        ValueError: for an ending or a frame rate that does not exist.
        OSError: if the file cannot be written.
        ImportError: if neither PyAV nor OpenCV is installed.

    Example:
        >>> with VideoWriter("copy.mp4", fps=reader.fps) as writer:  # doctest: +SKIP
        ...     for image, seconds in reader:
        ...         writer.write(image, seconds)
    """

    def __init__(
        self,
        path: str | os.PathLike,
        fps: float | None = None,
        size_hw: tuple[int, int] | None = None,
        image_format: Literal["BGR", "RGB"] = "BGR",
    ) -> None:
        self.path = os.path.abspath(path)
        root, suffix = os.path.splitext(self.path)
        self._suffix = suffix.lower()
        if self._suffix not in _ENCODERS:
            raise ValueError(f"cannot write {os.fspath(path)!r}: a video ends in {', '.join(_ENCODERS)}")
        if image_format not in ("BGR", "RGB"):
            raise ValueError(f'image_format must be "BGR" or "RGB", not {image_format!r}')
        fps = _USUAL_FPS if fps is None else float(fps)
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps must be a positive number of frames per second, not {fps}")
        _require("Videos", (_pyav() or opencv(),))
        self.fps = fps
        self.size_hw = size_hw
        self.image_format: Literal["BGR", "RGB"] = image_format
        self.frame_count = 0
        self._folder, name = os.path.split(root)
        self._temporary = os.path.join(self._folder, f".{name}.{os.getpid()}{suffix}")  # the ending chooses the format
        self._sink: _PyavSink | _OpencvSink | None = None
        self._is_closed = False
        self._start: float | None = None
        self._last: np.ndarray | None = None
        self._last_tick = -1
        os.makedirs(self._folder, exist_ok=True)
        if not os.access(self._folder, os.W_OK):
            raise OSError(f"The video {self.path} cannot be written: its folder is read-only.")

    def write(self, image: np.ndarray, time: float | None = None) -> None:
        """Append a frame.

        Args:
            image: `(H, W, 3)` uint8.
            time: when it is shown, in seconds from any start; None continues with `fps`. Files of kinds that know no
                times (AVI, or all without PyAV) repeat frames to fit.

        Raises:
            ValueError: if the image has another size or type than the video, or the time is not a number.
            OSError: if the file cannot be written. The video is then discarded.
        """
        if self._is_closed:
            raise ValueError(f"The video {self.path} is closed; no frame can be appended.")
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"Expected a frame of shape (H, W, 3) and type uint8, got {image.dtype} {image.shape}.")
        self.size_hw = self.size_hw or image.shape[:2]
        if image.shape[:2] != tuple(self.size_hw):
            raise ValueError(
                f"Frame {self.frame_count} has height and width {image.shape[:2]}, the video {tuple(self.size_hw)}; "
                "resize it."
            )
        if time is not None and not math.isfinite(time):
            raise ValueError(f"The time of a frame must be a number of seconds, not {time}.")
        try:
            with full_disk_named(self.path):
                if self._sink is None:
                    self._sink = self._open()
                self._put(image, time, self._sink)
        except (OSError, ValueError, RuntimeError) as e:
            self._discard()
            raise OSError(f"The video {self.path} cannot be written: {e}") from e
        self.frame_count += 1

    def _open(self) -> "_PyavSink | _OpencvSink":
        assert self.size_hw is not None
        av = _pyav()
        if av is None:
            return _OpencvSink(self._temporary, self._suffix, self.fps, self.size_hw, self.image_format)
        return _PyavSink(av, self._temporary, self._suffix, self.fps, self.size_hw, self.image_format)

    def _put(self, image: np.ndarray, time: float | None, sink: "_PyavSink | _OpencvSink") -> None:
        """Give the frame to the encoder, at a tick of its clock."""
        ticks = sink.ticks_per_second
        if time is None:
            tick = 0 if self._last_tick < 0 else self._last_tick + max(round(ticks / self.fps), 1)
        else:
            if self._start is None:  # a frame without a time may come first
                self._start = (
                    time - (self._last_tick + round(ticks / self.fps)) / ticks if self._last_tick >= 0 else time
                )
            tick = max(round((time - self._start) * ticks), self._last_tick + 1)
        if not sink.has_times:
            for i in range(self._last_tick + 1, tick):
                assert self._last is not None  # the first tick is 0
                sink.put(self._last, i)
            self._last = image.copy()  # the caller may draw the next frame into it
        sink.put(image, tick)
        self._last_tick = tick

    def close(self) -> None:
        """Complete the file and give it its name; where no frame was written, there is none. May be called again."""
        if self._is_closed:
            return
        try:
            if self._sink is not None:
                with full_disk_named(self.path):
                    self._sink.close()
                    os.replace(self._temporary, self.path)
                self._sink = None
        finally:
            self._discard()

    def _discard(self) -> None:
        """Remove the temporary file."""
        self._is_closed = True
        sink, self._sink, self._last = self._sink, None, None
        try:
            if sink is not None:
                sink.close()
        except Exception as e:  # the cause is known already
            logger.debug("%s: %s", self._temporary, e)
        if os.path.exists(self._temporary):
            os.unlink(self._temporary)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _PyavSink:
    """An encoder of PyAV and the file that it writes."""

    def __init__(
        self, av: ModuleType, path: str, suffix: str, fps: float, size_hw: tuple[int, int], image_format: str
    ) -> None:
        names = [name for name in _ENCODERS[suffix] if _has_encoder(av, name)]
        if not names:
            raise OSError(f"this PyAV has none of the encoders {', '.join(_ENCODERS[suffix])}")
        rate = Fraction(fps).limit_denominator(1001)  # 30000/1001, and whole numbers as they are
        self.has_times = suffix != ".avi"
        self.ticks_per_second = float(_CLOCK if self.has_times else rate)
        self._av = av
        self._input = f"{image_format.lower()}24"
        self._container = av.open(path, "w")
        stream = self._stream = self._container.add_stream(names[0], rate=rate)
        stream.height, stream.width = (n + n % 2 for n in size_hw)
        stream.pix_fmt = "yuv420p"
        self._time_base = Fraction(1, _CLOCK) if self.has_times else 1 / rate
        stream.codec_context.time_base = self._time_base
        stream.codec_context.options = _ENCODER_OPTIONS.get(names[0], {})
        if names[0] in ("mpeg4", "libvpx"):
            stream.bit_rate = max(int(size_hw[0] * size_hw[1] * fps * _BITS_PER_PIXEL), 400_000)

    def put(self, image: np.ndarray, tick: int) -> None:
        h, w = image.shape[:2]
        if h % 2 or w % 2:
            image = np.pad(image, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=self._input)
        frame.pts, frame.time_base = tick, self._time_base
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        try:
            for packet in self._stream.encode(None):
                self._container.mux(packet)
        finally:
            self._container.close()


def _has_encoder(av: ModuleType, name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except (ValueError, av.error.FFmpegError):
        return False
    return True


class _OpencvSink:
    """The same with OpenCV, which writes a constant frame rate."""

    has_times = False

    def __init__(self, path: str, suffix: str, fps: float, size_hw: tuple[int, int], image_format: str) -> None:
        cv2: Any = opencv()
        self._cv2 = cv2
        self.ticks_per_second = fps
        self._is_rgb = image_format == "RGB"
        code = cv2.VideoWriter_fourcc(*_FOURCC.get(suffix, "mp4v"))
        self._writer = cv2.VideoWriter(path, code, fps, size_hw[::-1])
        if not self._writer.isOpened():
            raise OSError(f"OpenCV has no encoder for {suffix} files of this size: {_INSTALL}")

    def put(self, image: np.ndarray, tick: int) -> None:
        self._writer.write(self._cv2.cvtColor(image, self._cv2.COLOR_RGB2BGR) if self._is_rgb else image)

    def close(self) -> None:
        self._writer.release()
