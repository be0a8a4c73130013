"""Every kind of input as one stream of frames: files, folders, patterns, URLs, arrays, videos, cameras.

Image files are decoded ahead by a few threads, in order: decoders let other threads run. A bounded number of decoded
images waits, whatever the length of the input.

Letters: `H`, `W` height and width in pixels, `C` channels.
"""

import difflib
import fnmatch
import glob
import itertools
import logging
import numbers
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

from detectron2.data.images import check_exif, convert_array, decode_image, read_image
from detectron2.utils.file_io import PathManager
from detectron2.utils.terminal import without_password

from .video import VIDEO_SUFFIXES, Camera, VideoReader, read_ahead

__all__ = ["IMAGE_SUFFIXES", "Frame", "Input", "find_inputs", "is_single", "read_frames"]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".ppm", ".pgm", ".npy", ".npz",
)  # fmt: skip
"""Endings of the files that are taken from a folder. A file that is named is read whatever its ending is."""

_CAMERA = re.compile(r"(?:webcam(?::(\d+))?|/dev/video(\d+))")
_STREAMS = ("rtsp://", "rtsps://", "rtmp://", "rtp://", "udp://", "srt://")  # which FFmpeg opens
_BYTES = (bytes, bytearray, memoryview)
_MOST_NAMED = 5  # inputs in one error message
_SECONDS_TO_END = 5.0  # a download that hangs is left to its own time limit


@dataclass(frozen=True)
class Frame:
    """One image of an input, or why it cannot be read.

    Attributes:
        image: `(H, W, C)` in the format that was asked for, as `detectron2.data.images.read_image` returns it; None
            where there is an `error`.
        name: what messages call it: a path, a URL, "image 3", "clip.mp4, frame 17".
        path: the file, where there is one; of a video its file.
        index: position in the input, from 0.
        time: seconds from the first frame of a video or a camera; None for images.
        error: what reading raised; the stream goes on with the next image.
        source: where it was found: the folder (for a pattern, the part of it before the first wildcard), or else the
            file or URL as it was given. Names of outputs are relative to a folder.

    Example:
        >>> frame = next(read_frames(np.zeros((4, 6, 3), np.uint8)))
        >>> frame.name, frame.image.shape, frame.path
        ('image 0', (4, 6, 3), None)
    """

    image: np.ndarray | None
    name: str
    path: str | None
    index: int
    time: float | None = None
    error: Exception | None = None
    source: str | None = None


@dataclass(frozen=True)
class _Options:
    """How images are read."""

    image_format: str | None
    color: Literal["bgr", "rgb"]
    exif: str
    ahead: int
    workers: int


@dataclass(frozen=True)
class Input:
    """One image, video or camera of an input, as `find_inputs` lists it; or why it is none.

    Attributes:
        value: a path, an address, bytes, an array ... as it was given; an int is the number of a camera.
        source: as `Frame.source`.
        error: why it cannot be read, of a part of an iterator.

    Example:
        >>> Input("clip.mp4").is_video, Input("a.jpg").is_video
        (True, False)
    """

    value: Any
    source: str | None = None
    error: Exception | None = None

    @property
    def is_video(self) -> bool:
        """Whether it gives many frames: a video, a stream or a camera."""
        return isinstance(self.value, int) or (isinstance(self.value, str) and _is_video(self.value))


def is_single(source: Any) -> bool:
    """Tell whether an input is one image: a file, a URL, bytes, a file object, a Pillow image, an array, a tensor.

    Args:
        source: the input of `read_frames`.

    Returns:
        True for one image; False for folders, patterns, videos, cameras, lists and other iterables, whatever they have
        in them.

    Example:
        >>> is_single("a.jpg"), is_single(["a.jpg"]), is_single("clip.mp4"), is_single(np.zeros((4, 6, 3)))
        (True, False, False, True)
    """
    if not isinstance(source, (str, os.PathLike)):
        return _is_in_memory(source)
    text = os.fsdecode(source)
    if "://" in text:
        return not _is_video(text)
    path = _expand(text)
    if os.path.isdir(path) or _is_video(path) or (_CAMERA.fullmatch(text) and not os.path.isfile(path)):
        return False
    return not _is_pattern(path)


def find_inputs(source: Sequence[Any], *, exclude: str | os.PathLike | None = None) -> list[Input]:
    """List the images, videos and cameras that a list names, for programs that have to know them before reading.

    Args:
        source: as a list for `read_frames`.
        exclude: as for `read_frames`.

    Returns:
        What there is, in order. A list of some of them is again a `source` for `read_frames`; frames are named as if
        the folders and patterns had been given.

    Raises:
        FileNotFoundError: if a path or a pattern finds nothing; it names all.
        TypeError: if the list has something else in it.

    Example:
        >>> find_inputs(["https://example.org/a.jpg"])
        [Input(value='https://example.org/a.jpg', source='https://example.org/a.jpg', error=None)]
    """
    items = [source] if isinstance(source, (str, os.PathLike)) else source
    return _find_all(items, None if exclude is None else os.path.realpath(exclude))


def read_frames(
    source: Any,
    *,
    image_format: str | None = "BGR",
    color: Literal["bgr", "rgb"] = "bgr",
    exif: str = "apply",
    workers: int = 2,
    ahead: int = 8,
    exclude: str | os.PathLike | None = None,
) -> Iterator[Frame]:
    """Read any input as a stream of frames, in order.

    The input is one of these, or an iterable of them, which may be mixed:

    - the path of an image (`~` is the home folder), or of a video, which is known by its ending (`VIDEO_SUFFIXES`);
    - a folder: its images, and those in the folders below; a pattern such as `"images/**/*.jpg"`: the images and
      videos that match. Hidden files are left out. The order is that of names, folder by folder, in which numbers
      count as numbers: `img2.png` comes before `img10.png`;
    - an address that `PathManager` opens, such as `https://...`: it is downloaded once, and then read from the cache;
    - the content of an image file as bytes, or a binary file object;
    - an image: of Pillow, an array `(H, W)` or `(H, W, C)`, a tensor `(H, W)` or `(C, H, W)`. Values are not scaled;
    - what `find_inputs` lists;
    - a camera: its number such as `0`, or `"webcam:0"`: it gives the newest picture whenever one is asked for; or the
      address of a stream, such as `rtsp://...`.

    A list is checked before the first frame. Other iterables, which may be endless, are read in the thread of the
    caller as frames are asked for: `ahead` paths at most before the frame that is returned, but images in memory not
    ahead at all. What the iterable raises, the caller gets, after the frames before it.

    An image that cannot be read becomes a frame with an `error`. So does a damaged video, after the frames that it has.

    Closing the iterator, or leaving it to the garbage collector, ends threads and closes files.

    Args:
        source: the input.
        image_format: the format of `Frame.image`, as for `read_image`: "BGR", "RGB", "L" ...; None leaves the channels
            as they are in the file or the array (videos are then RGB).
        color: the order of the channels in arrays and tensors.
        exif: what is done about the EXIF orientation of images: "apply" or "ignore".
        workers: threads that decode images. With 0 the thread of the caller does, one image after the other.
        ahead: how many images are decoded, or being decoded, at a time, beside those that the caller holds.
        exclude: a folder below one of those that are read, which is left out: that of the output.

    Returns:
        An iterator over the frames.

    Raises:
        FileNotFoundError: before the first frame, if a path or a pattern of the input finds nothing; it names all.
        TypeError: if the input, or a thing in a list, is none of the above.
        ValueError: for values of the other arguments that do not exist.
        ImportError: if there is a video, or a camera, and nothing that reads them is installed.

    Example:
        >>> [(f.name, f.image.shape) for f in read_frames([np.zeros((4, 6, 3), np.uint8), np.zeros((5, 5), np.uint8)])]
        [('image 0', (4, 6, 3)), ('image 1', (5, 5, 3))]
    """
    check_exif(exif)
    if color not in ("bgr", "rgb"):
        raise ValueError(f'color, the order of channels in arrays, must be "bgr" or "rgb", not {color!r}')
    if workers < 0 or ahead < 1:
        raise ValueError(f"workers must be at least 0 and ahead at least 1, not {workers} and {ahead}")
    options = _Options(image_format, color, exif, ahead, workers)
    own = None if exclude is None else os.path.realpath(exclude)
    if isinstance(source, (list, tuple)):
        return _stream(iter(_find_all(source, own)), options)
    is_one = isinstance(source, (str, os.PathLike, dict)) or _is_in_memory(source) or not isinstance(source, Iterable)
    if is_one:
        return _stream(iter(_find_all([source], own)), options)
    return _stream(_find_lazily(source, own), options)  # pyright: ignore[reportArgumentType] (no path)


# What there is to read


def _is_video(path: str) -> bool:
    name = urlsplit(path).path if "://" in path else path
    return name.lower().endswith(VIDEO_SUFFIXES) or path.startswith(_STREAMS)


def _is_in_memory(source: Any) -> bool:
    return isinstance(source, (*_BYTES, Image.Image, np.ndarray, torch.Tensor)) or hasattr(source, "read")


def _is_camera_number(source: Any) -> bool:
    return isinstance(source, numbers.Integral) and not isinstance(source, bool)


def _is_pattern(path: str) -> bool:
    return glob.has_magic(path) and not os.path.lexists(path)


def _expand(text: str) -> str:
    return text if os.path.lexists(text) else os.path.expanduser(text)


def _find_all(items: Iterable[Any], exclude: str | None) -> list[Input]:
    """Return what a list names; raise one error for all that does not exist."""
    found: list[Input] = []
    errors: list[Exception] = []
    count = 0
    for item in items:
        count += 1
        try:
            found += _find(item, exclude)
        except (OSError, ValueError, TypeError, ImportError) as e:
            errors.append(e)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        kinds = {type(e) for e in errors}
        lines = [f"{len(errors)} of {count} inputs cannot be read:", *(f"- {e}" for e in errors[:_MOST_NAMED])]
        lines += [f"- and {len(errors) - _MOST_NAMED} more"] if len(errors) > _MOST_NAMED else []
        raise (kinds.pop() if len(kinds) == 1 else ValueError)("\n".join(lines))
    return found


def _find_lazily(items: Iterable[Any], exclude: str | None) -> Iterator[Input]:
    """The same for an iterable, of which a part that does not exist is an error of its own."""
    for item in items:
        try:
            found = _find(item, exclude)
        except (OSError, ValueError, TypeError, ImportError) as e:
            found = [Input(item, error=e)]
        # A generator may write the next image into the same memory.
        copies = isinstance(item, np.ndarray), isinstance(item, torch.Tensor)
        yield from [Input(item.copy() if copies[0] else item.clone())] if any(copies) else found
        del item, found


def _find(item: Any, exclude: str | None) -> list[Input]:
    """Return what one item names, or raise the error that says why that is nothing."""
    if isinstance(item, Input):
        return [item]
    if _is_in_memory(item):
        return [Input(item)]
    if _is_camera_number(item):
        return [Input(Camera(int(item)).number)]
    if not isinstance(item, (str, os.PathLike)):
        cures = {
            "NoneType": ": cv2.imread returns None for a file that it cannot read; give the path itself",
            "dict": ": of a dataset's record give its file_name",
            "list": ": give one flat list",
            "tuple": ": give one flat list",
        }
        raise TypeError(
            "Expected the path of an image, a video or a folder, a URL, bytes, an image as array, tensor or Pillow "
            f"image, or the number of a camera, got {type(item).__name__}{cures.get(type(item).__name__, '')}."
        )
    text = os.fsdecode(item)
    path = _expand(text)
    if _is_video(text):
        VideoReader.require()
    if "://" in text:
        return [Input(text, without_password(text))]
    camera = _CAMERA.fullmatch(text)
    if camera and not os.path.isfile(path):
        return [Input(Camera(int(camera[1] or camera[2] or 0)).number)]
    if os.path.isdir(path):
        files = _images_in(path, exclude)
        if not files:
            raise FileNotFoundError(_no_images(path))
        return [Input(file, path) for file in _sorted_naturally(files, path)]
    if os.path.exists(path):
        return [Input(path, text)]
    if _is_pattern(path):
        return _match(path, exclude)
    raise FileNotFoundError(_missing(text, path))


def _images_in(folder: str, exclude: str | None) -> list[str]:
    return [path for path in _files_in(folder, exclude) if path.lower().endswith(IMAGE_SUFFIXES)]


def _files_in(folder: str, exclude: str | None) -> list[str]:
    """Return the files in a folder and those below. A folder that several links lead to is read once."""
    root, seen, found = os.path.realpath(folder), set(), []
    waiting = deque([folder])
    while waiting:
        place = waiting.popleft()
        real = os.path.realpath(place)
        if real in seen or (real == exclude and real != root):
            continue
        seen.add(real)
        try:
            with os.scandir(place) as scanned:
                entries = [entry for entry in scanned if not entry.name.startswith(".")]
        except OSError as e:
            if place == folder:
                raise
            logger.warning("left out: the folder %s cannot be read: %s", place, e)
            continue
        for entry in entries:
            if _is_folder(entry):
                (waiting.append if entry.is_symlink() else waiting.appendleft)(entry.path)  # links after real folders
            else:
                found.append(entry.path)
    return found


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of a link that leads to itself
        return False


def _match(pattern: str, exclude: str | None) -> list[Input]:
    """Return the images and videos that match a pattern, and the images in the folders that do."""
    parts = pattern.replace(os.altsep or os.sep, os.sep).split(os.sep)
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    root = os.sep.join([*fixed, ""]) or "."
    suffix = os.path.splitext(parts[-1])[1]
    suffixes = (suffix,) if suffix and not glob.has_magic(suffix) else (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    files: list[str] = []
    if "**" in parts:  # Python's own would follow links that lead in circles
        others = _files_in(root, exclude) if os.path.isdir(root) else []
        others = [os.path.normpath(path) for path in others] if root == "." else others
        for path in others:
            names = os.path.relpath(path, root).split(os.sep)
            is_whole = _fits(names, parts[len(fixed) :])
            is_inside = any(_fits(names[:i], parts[len(fixed) :]) for i in range(1, len(names)))
            if path.lower().endswith(suffixes if is_whole else IMAGE_SUFFIXES if is_inside else ()):
                files.append(path)
    else:
        others = glob.glob(pattern)
        inside = os.path.realpath(root)
        own = os.path.join(exclude, "") if exclude and exclude != inside and exclude.startswith(inside) else None
        for path in others:
            found = (
                _images_in(path, exclude) if os.path.isdir(path) else [path] if path.lower().endswith(suffixes) else []
            )
            files += [path for path in found if not own or not os.path.realpath(path).startswith(own)]
    if not files:
        raise FileNotFoundError(
            f"No images or videos ({', '.join(suffixes)}) match the pattern {pattern!r}"
            + (f"; {len(others)} other files or folders were found." if others else ".")
        )
    if any(map(_is_video, files)):
        VideoReader.require()
    return [Input(path, root.rstrip(os.sep) or os.sep) for path in _sorted_naturally(dict.fromkeys(files), root)]


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the names of folders and a file match the parts of a pattern."""
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_fits(names[i:], parts[1:]) for i in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatch(names[0], parts[0]) and _fits(names[1:], parts[1:])


def _sorted_naturally(paths: Iterable[str], root: str) -> list[str]:
    """Sort paths folder by folder, in the order of names in which numbers count as numbers."""

    def key(path: str) -> tuple[Any, ...]:
        names = os.path.relpath(path, root).split(os.sep)
        split = [re.split(r"(\d+)", name.lower()) for name in names]
        return [[int(x) if i % 2 else x for i, x in enumerate(words)] for words in split], path

    return sorted(paths, key=key)


def _no_images(folder: str) -> str:
    """Say what the folder has instead."""
    names = [name for _, _, names in os.walk(folder) for name in names]
    videos = any(map(_is_video, names))
    others = f" It has videos: name them, such as {os.path.join(folder, '*.mp4')!r}." if videos else ""
    others = others or (f" It has {len(names)} other files." if names else "")
    return f"No images ({', '.join(IMAGE_SUFFIXES)}) in the folder {folder!r} and those in it.{others}"


def _missing(text: str, path: str) -> str:
    """Say that a path leads nowhere, with names that are close to it."""
    if not text:
        return "The path of an image, a video or a folder is empty."
    start = f"No such image, video or folder: {text!r} (working directory: {os.getcwd()})."
    folder, name = os.path.split(path.rstrip(os.sep))
    if os.path.islink(path):
        return f"{start} It is a link to {os.readlink(path)!r}, which does not exist."
    if text.isdecimal():
        return f'{start} For a camera give the number {text} itself, or "webcam:{text}".'
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return f"{start} There is no folder {folder!r}."
    # Difflib would find "img1.jpg" close to "IMG1.JPG" only by luck.
    folded = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), folded, n=3)
    return f"{start} Did you mean {' or '.join(repr(folded[c]) for c in close)}?" if close else start


# Reading it


class _Pool:
    """Threads that do not keep the process alive: a download that hangs must not outlast Ctrl-C."""

    def __init__(self, workers: int):
        self._tasks: SimpleQueue = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, args=(self._tasks,), name=f"read_frames_{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, read: Callable[[], Frame]) -> "Future[Frame]":
        future: Future[Frame] = Future()
        self._tasks.put((future, read))
        return future

    @staticmethod
    def _work(tasks: SimpleQueue) -> None:
        while (task := tasks.get()) is not None:
            future, read = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(read())
                except BaseException as e:
                    future.set_exception(e)
            del task, future, read  # which hold an image

    def close(self) -> None:
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(_SECONDS_TO_END)


def _stream(found: Iterator[Input], options: _Options) -> Iterator[Frame]:
    """Yield the frames of what was found, while those after them are decoded."""
    steps = _steps(found, options)
    window: deque[Frame | Future[Frame]] = deque()
    pool: _Pool | None = None
    failure: Exception | None = None
    is_open = True
    ahead = options.ahead if options.workers else 1
    try:
        while True:
            # What is at hand is not collected: the user's generator may wait for what becomes of it.
            while is_open and len(window) < ahead and not (window and isinstance(window[-1], Frame)):
                try:
                    step = next(steps, None)
                except Exception as e:  # of the user's generator
                    step, failure = None, e
                if step is None:
                    is_open = False
                elif isinstance(step, Frame):
                    window.append(step)
                elif options.workers:
                    pool = pool or _Pool(options.workers)
                    window.append(pool.submit(step))
                else:
                    window.append(step())
                del step
            if not window:
                break
            # No name holds the frame while the caller has it, so that it is freed when the caller has done with it.
            yield _result(window.popleft())
        if failure is not None:
            raise failure
    finally:
        failure = None  # no circle with its traceback
        for waiting in window:
            if isinstance(waiting, Future):
                waiting.cancel()
        if pool is not None:
            pool.close()
        steps.close()


def _result(frame: "Frame | Future[Frame]") -> Frame:
    return frame if isinstance(frame, Frame) else frame.result()


def _steps(found: Iterator[Input], options: _Options) -> Generator[Frame | Callable[[], Frame], None, None]:
    """Yield, for each frame, the frame itself or the function that reads it in another thread."""
    index = itertools.count()
    for item in found:
        value = item.value
        if item.error is not None:
            name = os.fsdecode(value) if isinstance(value, (str, os.PathLike)) else None
            i = next(index)
            yield Frame(None, name or f"image {i}", name, i, error=item.error, source=name)
        elif item.is_video:
            with closing(_read_video(item, index, options)) as frames:
                yield from frames
        elif isinstance(value, str):
            yield partial(_read_file, item, next(index), options)
        else:
            yield _take(value, next(index), options)
        del item, value


def _frame(read: Callable[[], np.ndarray], name: str, path: str | None, index: int, source: str | None) -> Frame:
    """Return the frame that a function reads, or one with the error that it raises."""
    try:
        return Frame(read(), name, path, index, source=source)
    except (OSError, ValueError, TypeError) as e:
        return Frame(None, name, path, index, error=e, source=source)


def _read_file(item: Input, index: int, options: _Options) -> Frame:
    """Read an image file, or download and read one."""
    where = item.value

    def read_local() -> np.ndarray:
        try:
            return read_image(where, options.image_format, options.exif)
        except FileNotFoundError:
            raise FileNotFoundError(f"No such image: {where!r}; it was moved or deleted meanwhile.") from None

    def read_remote() -> np.ndarray:
        local = _download(where)
        with open(local, "rb") as file:
            # A bad file stays in the cache, and only the user knows whether the server has a better one by now.
            label = f"{without_password(where)} (downloaded to {local})"
            return decode_image(file, options.image_format, options.exif, label)

    if "://" in where:
        name = without_password(where)
        return _frame(read_remote, name, None, index, item.source)
    return _frame(read_local, where, where, index, item.source)


def _download(url: str) -> str:
    """Return the local copy of a remote file."""
    path = PathManager.get_local_path(url)
    if path == url:
        raise OSError(
            f"{without_password(url)} cannot be opened: PathManager has no handler of {url.partition('://')[0]}://; "
            "register one, or give a local copy."
        )
    return path


def _take(value: Any, index: int, options: _Options) -> Frame | Callable[[], Frame]:
    """Return the frame of an image in memory, or the function that decodes the bytes of a file."""
    path = getattr(value, "filename", None) or getattr(value, "name", None)
    path = path if isinstance(path, str) and os.path.isfile(path) else None
    name = path or f"image {index}"
    decode = partial(decode_image, format=options.image_format, exif=options.exif, name=name)
    if isinstance(value, Image.Image):  # which may not be in a thread when its file is closed
        return _frame(lambda: decode(value), name, path, index, path)
    if isinstance(value, np.ndarray):
        return _frame(lambda: _named(name, value, options), name, None, index, None)
    if isinstance(value, torch.Tensor):
        return _frame(lambda: _named(name, _array_of(name, value, options), options), name, None, index, None)
    try:
        content = value if isinstance(value, _BYTES) else value.read()
        if not isinstance(content, _BYTES):
            raise ValueError(f"{name}: the file gives {type(content).__name__}; open it with mode 'rb'.")
    except (OSError, ValueError) as e:
        return Frame(None, name, path, index, error=e, source=path)
    return partial(_frame, partial(decode, content), name, path, index, path)


def _named(name: str, array: np.ndarray, options: _Options) -> np.ndarray:
    try:
        return convert_array(array, options.image_format, options.color)
    except ValueError as e:
        raise ValueError(f"{name}: {e}.") from e


def _array_of(name: str, image: torch.Tensor, options: _Options) -> np.ndarray:
    """Return a tensor `(H, W)` or `(C, H, W)` as an array."""
    shape = tuple(image.shape)
    is_last = image.ndim == 3 and shape[2] in (1, 3, 4) and shape[0] not in (1, 3, 4)
    if image.ndim not in (2, 3) or (is_last and options.image_format is not None):
        cure = ": move the channels to the front, with image.permute(2, 0, 1)" if is_last else ""
        cure = ": give the images of a batch as list(batch)" if image.ndim == 4 else cure
        raise ValueError(f"{name}: expected a tensor of shape (channels, height, width), got {shape}{cure}.")
    image = image.detach().cpu()
    image = image.float() if image.dtype in (torch.bfloat16, torch.float16) else image
    return image.numpy() if image.ndim == 2 else image.permute(1, 2, 0).numpy()


def _read_video(item: Input, index: Iterator[int], options: _Options) -> Generator[Frame, None, None]:
    """Yield the frames of a video or a camera, and at its end the error of a damaged one."""
    is_camera = isinstance(item.value, int)
    name = f"webcam:{item.value}" if is_camera else without_password(item.value)
    is_remote = "://" in name
    path = None if is_camera or is_remote else item.value
    label, source = name, name if is_camera else item.source
    try:
        if is_camera:  # which has a thread of its own
            frames = iter(Camera(item.value, options.image_format))
        else:
            place = _download(item.value) if is_remote and not item.value.startswith(_STREAMS) else item.value
            frames = iter(VideoReader(place, options.image_format))
            frames = read_ahead(frames, options.ahead) if options.workers else frames
        with closing(frames):
            for i in itertools.count():  # enumerate() would hold the image
                timed = next(frames, None)
                if timed is None:
                    break
                waiting = [Frame(timed[0], f"{name}, frame {i}", path, next(index), timed[1], source=source)]
                label = f"{name}, frame {i + 1}"
                del timed
                yield waiting.pop()
    except (OSError, ValueError, ImportError) as e:
        yield Frame(None, label, path, next(index), error=e, source=source)
