"""Reading image files into arrays, and converting between colour formats.

Pillow reads them; arrays that NumPy saved (`.npy`, `.npz`) hold what Pillow cannot, such as many channels of 16 bits.
Where OpenCV is installed, it decodes the usual JPEG files: it writes the channels in the order BGR, and into an array.
(The decoder of torchvision is slower, and deprecated.)

Letters: `H`, `W` height and width in pixels, `C` channels. `detection_utils` has these names too, as published.
"""

import io
import logging
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n

from .tar_members import TarMemberHandler
from .transforms.pixels import opencv

__all__ = [
    "check_exif",
    "convert_PIL_to_numpy",
    "convert_array",
    "convert_image_to_rgb",
    "decode_image",
    "read_image",
    "to_chw_tensor",
    "viewable_rgb",
]

logger = logging.getLogger(__name__)

PathManager.register_handler(TarMemberHandler())  # of images in tar archives

# ITU-R BT.601 with 8-bit values scaled to [0, 1]: rows are Y, U, V (or R, G, B).
_M_RGB2YUV = [[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]]
_M_YUV2RGB = [[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]]

# Tag 274 of EXIF 2.32, section 4.6.4: how the stored picture has to be turned to stand upright.
_EXIF_ORIENT = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow has to convert to before our own last step.
_PIL_MODE = {"BGR": "RGB", "YUV-BT.601": "RGB"}

_ARRAY_FILES = (".npy", ".npz")
_START_OF_ARRAY, _START_OF_ARCHIVE = b"\x93NUMPY", b"PK\x03\x04"
_END_OF_JPEG = b"\xff\xd9"


def _decode_with_opencv(file: IO[bytes], image: Image.Image, format: str | None, exif: str) -> np.ndarray | None:
    """Return the pixels of a colour JPEG file that is whole and is not turned; None where that is left to Pillow.

    Both use libjpeg-turbo, with the same results. Pillow has read only the header of `image`.
    """
    if format not in ("BGR", "RGB") or image.format != "JPEG" or image.mode != "RGB":
        return None
    cv2 = opencv()
    if cv2 is None or (exif == "apply" and _exif_orientation(image) in _UPRIGHT):
        return None
    file.seek(0)
    data = file.read()
    if not data.endswith(_END_OF_JPEG):  # perhaps truncated: OpenCV would not always tell
        return None
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # larger than it allows
        return None
    if bgr is None or bgr.shape != (image.height, image.width, 3):
        return None
    return bgr if format == "BGR" else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=bgr)


def _exif_orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_EXIF_ORIENT)
    except Exception as e:  # whatever a broken tag makes the parser raise, the pixels are still good
        logger.warning("ignoring EXIF data that cannot be read in %s: %s", getattr(image, "filename", "an image"), e)
        return None


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Turn an image upright as its EXIF data say; images without EXIF data are returned as they are."""
    if not hasattr(image, "getexif"):
        return image
    image.load()  # Pillow itself turns some formats (TIFF) when it loads them, and then removes the tag
    method = _UPRIGHT.get(_exif_orientation(image))  # pyright: ignore[reportArgumentType]
    return image if method is None else image.transpose(method)


def _as_stored(image: Image.Image) -> Image.Image:
    """Return an image without the turn that its EXIF data ask for."""
    orientation = _exif_orientation(image)
    image.load()
    if image.format != "TIFF" or orientation not in _UPRIGHT:
        return image
    return image.transpose(_UPRIGHT[{6: 8, 8: 6}.get(orientation, orientation)])  # Pillow has turned it


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """Convert a Pillow image to an array.

    Transparency is left out: a pixel has the colour that is stored for it.

    Args:
        image: the image.
        format: a Pillow mode, "BGR", or "YUV-BT.601" (floating point, Y in [0, 1]); None keeps the mode.

    Returns:
        `(H, W, C)`; `(H, W, 1)` for "L"; what Pillow gives for None (indices of colours for an image with a palette).
        It may be written to.

    Raises:
        ValueError: if the conversion does not exist, or would cut off values that are not whole numbers up to 255.
    """
    if format is not None:
        image = _convert(image, _PIL_MODE.get(format, format))
    if format == "BGR":
        # Pillow writes the channels in this order as fast as in its own; turning them around takes longer.
        flat = np.frombuffer(image.tobytes("raw", "BGR"), dtype=np.uint8)
        return flat.reshape(image.height, image.width, 3).copy()
    array = np.array(image.convert("L") if image.mode == "1" else image)  # nothing takes truth values
    if not array.dtype.isnative:  # 16-bit TIFF files may be big-endian, which PyTorch does not take
        array = array.astype(array.dtype.newbyteorder("="))
    if format == "L":
        return array[:, :, None]
    if format == "YUV-BT.601":
        return np.dot(array / 255.0, np.array(_M_RGB2YUV).T)
    return array


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:  # convert() would copy it
        return image
    _check_depth(image, mode)
    if "transparency" in image.info:
        image = image.copy()  # Pillow would warn that the new image cannot hold it
        del image.info["transparency"]
    return image.convert(mode)


def _check_depth(image: Image.Image, mode: str) -> None:
    if image.mode[0] not in "IF" or mode[0] in "IF":
        return
    lowest, highest = image.getextrema()
    cut_off = lowest < 0 or highest > 255  # pyright: ignore[reportOperatorIssue] (one band has two numbers)
    rounded = image.mode == "F" and bool((np.asarray(image) % 1 != 0).any())
    if cut_off or rounded:
        raise ValueError(
            f"the image has mode {image.mode} and values from {lowest} to {highest}, which the format {mode!r} would "
            f"{'cut off at 0 and 255' if cut_off else 'round'}; read it with format=None (INPUT.FORMAT: null in a "
            "file, None on the command line) to keep them, or scale it to 8 bits"
        )


def _read_array(file: IO[bytes], is_archive: bool) -> np.ndarray:
    """Read an array `(H, W)` or `(H, W, C)` from a file of NumPy. Pickled objects are refused."""
    if is_archive:
        with np.load(file, allow_pickle=False) as arrays:
            if len(arrays.files) != 1:
                raise ValueError(f"it has {len(arrays.files)} arrays {arrays.files}; an image file must have one")
            array = arrays[arrays.files[0]]
    else:
        _check_size(file)
        array = np.lib.format.read_array(file, allow_pickle=False)
    if array.ndim not in (2, 3) or array.dtype.kind not in "buif":
        raise ValueError(
            f"it holds an array of shape {array.shape} and type {array.dtype}; expected numbers of shape "
            "(height, width) or (height, width, channels)"
        )
    if array.size == 0:
        raise ValueError(f"it holds an array of shape {array.shape}, which has no pixels")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def _check_size(file: IO[bytes]) -> None:
    """Compare the size in the header of an array file with that of the file, before memory is asked for."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    begin = file.tell()
    left = file.seek(0, os.SEEK_END) - begin
    file.seek(0)
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > left:
        raise ValueError(f"its header claims {dtype} of shape {shape}, but only {left} bytes follow")


def _convert_array(array: np.ndarray, format: str | None) -> np.ndarray:
    """Convert an array like a picture: grey `(H, W)` or `(H, W, 1)`, or 8-bit RGB `(H, W, 3)`."""
    if format is None:
        return array
    is_grey = array.ndim == 2 or array.shape[2] == 1
    if is_grey and array.dtype.kind in "iu" and array.min(initial=0) >= 0 and array.max(initial=0) <= 255:
        return convert_PIL_to_numpy(Image.fromarray(array.reshape(array.shape[:2]).astype(np.uint8)), format)
    if array.dtype == np.uint8 and array.shape[2:] == (3,):
        return convert_PIL_to_numpy(Image.fromarray(array), format)
    raise ValueError(
        f"it holds an array of shape {array.shape} and type {array.dtype}, which cannot be converted to the format "
        f"{format!r}; read it with format=None (INPUT.FORMAT: null in a file, None on the command line), and one value "
        "in MODEL.PIXEL_MEAN and MODEL.PIXEL_STD per channel"
    )


def check_exif(policy: str) -> str:
    """Return what is to be done about the EXIF orientation, if it is "apply" or "ignore"."""
    if policy not in ("apply", "ignore"):
        raise ValueError(f'INPUT.EXIF (exif of a mapper) must be "apply" or "ignore", not {policy!r}')
    return policy


def read_image(file_name: str | os.PathLike, format: str | None = None, exif: str = "apply") -> np.ndarray:
    """Read an image file and turn it upright as its EXIF data say.

    Of several pictures in a file it takes the first. A truncated file is an error; where
    `PIL.ImageFile.LOAD_TRUNCATED_IMAGES` is True, Pillow fills up what is missing instead.

    Args:
        file_name: path or URI that `PathManager` can open: of an image that Pillow reads, or of an array in RGB order
            that NumPy saved (`.npy`, or `.npz` with one array).
        format: a Pillow mode ("RGB", "L" ...), "BGR" or "YUV-BT.601"; None keeps what the file has.
        exif: "apply", or "ignore" to leave the image as it is stored (`INPUT.EXIF`).

    Returns:
        `(H, W, C)` of type uint8 in [0, 255] (floating point for "YUV-BT.601"); `(H, W, 1)` for "L". For None also
        `(H, W)`, other types, and any number of channels. It may be written to.

    Raises:
        FileNotFoundError: if the file does not exist.
        OSError: if the file is damaged or not an image.
        ValueError: if the image cannot be converted to that format.
    """
    path, exif = os.fspath(file_name), check_exif(exif)
    try:
        with _errors_named(path):
            status = None if "://" in path else os.stat(path)
            if status is not None and not stat.S_ISREG(status.st_mode):
                raise OSError("it is a folder, a pipe or a device, not a file")
            if status is not None and not status.st_size:
                raise OSError("it is empty")
            with PathManager.open(path, "rb") as f:
                if path.lower().endswith(_ARRAY_FILES):
                    return _convert_array(_read_array(f, path.lower().endswith(".npz")), format)  # pyright: ignore[reportArgumentType]
                return _decode(f, path, format, exif)  # pyright: ignore[reportArgumentType] (bytes, because of "rb")
    except FileNotFoundError as e:
        raise FileNotFoundError(
            f"image file not found: {path!r}; check the image folder the data set was registered with "
            f"(built-in data sets lie under $DETECTRON2_DATASETS)"
        ) from e


def decode_image(
    data: bytes | bytearray | memoryview | IO[bytes] | Image.Image,
    format: str | None = None,
    exif: str = "apply",
    name: str = "image",
) -> np.ndarray:
    """Decode an image that is in memory, as `read_image` does a file with this content.

    Args:
        data: what an image file has in it (also one of NumPy), a binary file that can seek, or a Pillow image.
        format: as for `read_image`.
        exif: as for `read_image`.
        name: what errors call the image.

    Returns:
        As `read_image`.

    Raises:
        OSError: if the image is damaged, or the data are not an image.
        ValueError: if the image cannot be converted to that format.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (6, 4), "red").save(file, "PNG")
        >>> decode_image(file.getvalue(), "BGR")[0, 0]
        array([  0,   0, 255], dtype=uint8)
    """
    exif = check_exif(exif)
    with _errors_named(name):
        if isinstance(data, Image.Image):
            return convert_PIL_to_numpy(_upright(data, exif), format)
        file: IO[bytes] = io.BytesIO(data) if isinstance(data, (bytes, bytearray, memoryview)) else data
        start = file.read(len(_START_OF_ARRAY))
        file.seek(0)
        if not start:
            raise OSError("it is empty")
        if start == _START_OF_ARRAY or start.startswith(_START_OF_ARCHIVE):
            return _convert_array(_read_array(file, start != _START_OF_ARRAY), format)
        return _decode(file, name, format, exif)


def _decode(file: IO[bytes], name: str, format: str | None, exif: str) -> np.ndarray:
    """Decode a picture, with OpenCV where that is faster."""
    image = Image.open(file)
    if format is None:
        _warn_of_lost_depth(image, name)
    pixels = _decode_with_opencv(file, image, format, exif)
    return convert_PIL_to_numpy(_upright(image, exif), format) if pixels is None else pixels


def _upright(image: Image.Image, exif: str) -> Image.Image:
    return _apply_exif_orientation(image) if exif == "apply" else _as_stored(image)


@contextmanager
def _errors_named(name: str) -> Iterator[None]:
    """Let errors of decoders name the image; a file that does not exist is left to the caller."""
    try:
        yield
    except FileNotFoundError:
        raise
    except UnidentifiedImageError as e:
        raise OSError(
            f"{name!r} is not an image that Pillow can read; convert it (numpy.save keeps any type and number of "
            "channels) or leave it out"
        ) from e
    except Image.DecompressionBombError as e:
        raise OSError(
            f"cannot read the image {name!r}: {e} If you trust the file, set PIL.Image.MAX_IMAGE_PIXELS = None (for a "
            "command in a .py file that --import names); else leave it out"
        ) from e
    except ValueError as e:
        raise ValueError(f"cannot read the image {name!r}: {e}") from e
    except Exception as e:  # decoders and readers of arrays may raise anything when the bytes make no sense
        raise OSError(f"cannot read the image {name!r}: {str(e) or type(e).__name__}") from e


def convert_array(array: np.ndarray, format: str | None, color: Literal["bgr", "rgb"] = "rgb") -> np.ndarray:
    """Convert an image in memory to a format of `read_image`. Values are not scaled.

    Args:
        array: `(H, W)` or `(H, W, C)` numbers: grey, colours, or colours and transparency, which is left out.
        format: "RGB", "BGR", "L", "YUV-BT.601" or another Pillow mode, for which values other than uint8 may not
            exist; None returns the array as it is, with any number of channels.
        color: the order that the channels of the array have.

    Returns:
        `(H, W, C)` in that format, or the array itself where nothing is to be done.

    Raises:
        ValueError: if the array is not an image, or cannot be converted.

    Example:
        >>> convert_array(np.array([[[1, 2, 3]]], dtype=np.uint8), "BGR", "rgb")
        array([[[3, 2, 1]]], dtype=uint8)
        >>> convert_array(np.array([[0.5]]), "RGB").shape
        (1, 1, 3)
    """
    if color not in ("bgr", "rgb"):
        raise ValueError(f'color, the order of the channels, must be "bgr" or "rgb", not {color!r}')
    array = np.asarray(array)  # not a matrix, which stays two-dimensional
    shape = array.shape
    if array.ndim not in (2, 3) or array.dtype.kind not in "buif" or not array.size:
        cure = "; give the images of a batch one by one" if array.ndim == 4 else ""
        raise ValueError(
            f"expected numbers of shape (height, width) or (height, width, channels), got {array.dtype} of shape "
            f"{shape}{cure}"
        )
    if array.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4) and format is not None:
        raise ValueError(
            f"expected an image of shape (height, width, channels), got {shape}: move the channels to the end, with "
            "image.transpose(1, 2, 0)"
        )
    if format is None:
        return array
    if shape[2:] in ((3,), (4,)):
        array = array[:, :, :3]
        if format in ("RGB", "BGR"):
            return array if format.lower() == color else array[:, :, ::-1]
        return _convert_array(np.ascontiguousarray(array if color == "rgb" else array[:, :, ::-1]), format)
    if format in ("RGB", "BGR") and shape[2:] in ((), (1,)):
        return np.repeat(array.reshape(*shape[:2], 1), 3, axis=2)
    if format == "L" and shape[2:] in ((), (1,)):
        return array.reshape(*shape[:2], 1)
    return _convert_array(array, format)


def _warn_of_lost_depth(image: Image.Image, path: str) -> None:
    """Say that Pillow keeps 8 of the 16 bits of several channels."""
    has_16_bits = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    if has_16_bits and len(image.getbands()) > 1:
        log_first_n(
            logging.WARNING,
            f"{path!r} has 16 bits per channel, of which Pillow keeps 8 where there are several channels; save such "
            "images as arrays (numpy.save) to keep all of them.",
        )


def viewable_rgb(image: np.ndarray) -> np.ndarray:
    """Make a picture to look at, `(H, W, 3)` uint8, of an image `(H, W)` or `(H, W, C)` of any type.

    It has the first three channels, or else the first one as grey. Types other than uint8 are scaled such that the
    lowest value is black and the highest white.
    """
    channels = image[:, :, None] if image.ndim == 2 else image
    channels = channels[:, :, :3] if channels.shape[2] >= 3 else channels[:, :, :1].repeat(3, axis=2)
    if channels.dtype == np.uint8:
        return np.ascontiguousarray(channels)
    values = channels.astype(np.float32)
    finite = np.isfinite(values)
    low, high = values.min(initial=np.inf, where=finite), values.max(initial=-np.inf, where=finite)
    scaled = (values - low) * (255 / (high - low) if high > low else 0)
    return np.where(finite, scaled, 0).astype(np.uint8)


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """Convert an image from a format of `read_image` to RGB.

    Args:
        image: `(H, W, C)`.
        format: the format it has: "BGR", "YUV-BT.601", or a Pillow mode.

    Returns:
        `(H, W, 3)` RGB in the range 0 to 255; uint8, or floating point if "BGR" or "YUV-BT.601" is given as such.
    """
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if format == "BGR":
        return image[:, :, [2, 1, 0]]
    if format == "YUV-BT.601":
        return np.dot(image, np.array(_M_YUV2RGB).T) * 255.0
    image = np.ascontiguousarray(image, dtype=np.uint8)
    if format == "RGB":
        return image
    size_wh = (image.shape[1], image.shape[0])
    return np.asarray(Image.frombuffer(format, size_wh, image, "raw", format, 0, 1).convert("RGB"))


def to_chw_tensor(image: np.ndarray) -> torch.Tensor:
    """Convert an image to a tensor whose pixels stay together in memory (channels last), as the array has them.

    A copy into planes would take longer than the resize, and the model copies images into a batch anyway.

    Args:
        image: array `(H, W)` or `(H, W, C)`, in any memory order.

    Returns:
        `Tensor[C, H, W]` of the type of the array; float64 becomes float32.

    Example:
        >>> to_chw_tensor(np.zeros((4, 6, 3), dtype=np.uint8)).shape
        torch.Size([3, 4, 6])
    """
    if image.ndim == 2:
        image = image[:, :, None]
    if image.dtype == np.float64:
        image = image.astype(np.float32)  # models have weights of single precision
    unflipped = image[:, ::-1]
    if unflipped.flags.c_contiguous and not image.flags.c_contiguous and image.dtype != np.uint16:
        # PyTorch knows no negative strides; its own flip takes a sixth of the time of NumPy's copy.
        # PyTorch 2.6 does not flip uint16.
        return torch.flip(torch.from_numpy(unflipped)[None].permute(0, 3, 1, 2), dims=(3,))[0]
    # A view of a larger array would carry all of it from process to process.
    is_whole = image.flags.c_contiguous and image.flags.writeable and min(image.strides) >= 0
    return torch.from_numpy(image if is_whole else np.array(image, order="C")).permute(2, 0, 1)
