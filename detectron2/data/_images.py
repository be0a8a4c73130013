"""Reading image files into arrays, and converting between colour formats.

Letters: `H`, `W` height and width in pixels, `C` channels. The public names are those of `detection_utils`.
"""

import logging
import os

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)

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


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Turn an image upright as its EXIF data say; images without EXIF data are returned as they are."""
    if not hasattr(image, "getexif"):
        return image
    image.load()  # Pillow itself turns some formats (TIFF) when it loads them, and then removes the tag
    try:
        orientation = image.getexif().get(_EXIF_ORIENT)
    except Exception as e:  # whatever a broken tag makes the parser raise, the pixels are still good
        logger.warning("ignoring EXIF data that cannot be read in %s: %s", getattr(image, "filename", "an image"), e)
        return image
    method = _UPRIGHT.get(orientation)  # pyright: ignore[reportArgumentType]
    return image if method is None else image.transpose(method)


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """Convert a Pillow image to an array.

    Args:
        image: the image.
        format: a Pillow mode, "BGR", or "YUV-BT.601" (floating point, Y in [0, 1]); None keeps the mode.

    Returns:
        `(H, W, C)`; `(H, W, 1)` for "L"; what Pillow gives for None. It may be a read-only view.

    Raises:
        ValueError: if the conversion does not exist, or would cut 16-bit values off at 255.
    """
    if format is not None:
        mode = _PIL_MODE.get(format, format)
        if image.mode != mode:  # convert() would copy an image that is in the mode already
            _check_depth(image, mode)
            image = image.convert(mode)
    if format == "BGR":
        # Pillow writes the channels in this order as fast as in its own; turning them around here is a copy more.
        return np.frombuffer(image.tobytes("raw", "BGR"), dtype=np.uint8).reshape(image.height, image.width, 3)
    array = np.asarray(image)
    if format == "L":
        return array[:, :, None]
    if format == "YUV-BT.601":
        return np.dot(array / 255.0, np.array(_M_RGB2YUV).T)
    return array


def _check_depth(image: Image.Image, mode: str) -> None:
    if not image.mode.startswith("I") or mode[0] in "IF":
        return
    _, highest = image.getextrema()
    if highest > 255:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(
            f"the image has mode {image.mode} and values up to {highest}, which the format {mode!r} would cut off at "
            f"255; read it with format=None to keep them, or scale it to 8 bits"
        )


def read_image(file_name: str | os.PathLike, format: str | None = None) -> np.ndarray:
    """Read an image file and turn it upright as its EXIF data say.

    Args:
        file_name: path or URI that `PathManager` can open.
        format: a Pillow mode ("RGB", "L" ...), "BGR" or "YUV-BT.601"; None keeps what the file has.

    Returns:
        `(H, W, C)` of type uint8 in [0, 255] (floating point for "YUV-BT.601"); `(H, W, 1)` for "L".

    Raises:
        FileNotFoundError: if the file does not exist.
        OSError: if it is no image, or a damaged one.
        ValueError: if the image cannot be converted to that format.
    """
    path = os.fspath(file_name)
    try:
        with PathManager.open(path, "rb") as f:
            image = Image.open(f)  # pyright: ignore[reportArgumentType] (bytes, because of "rb")
            return convert_PIL_to_numpy(_apply_exif_orientation(image), format)
    except FileNotFoundError as e:
        raise FileNotFoundError(
            f"image file not found: {path!r}; check the image folder the data set was registered with "
            f"(built-in data sets lie under $DETECTRON2_DATASETS)"
        ) from e
    except UnidentifiedImageError as e:
        raise OSError(
            f"{path!r} is not an image that Pillow can read; convert it or take it out of the data set"
        ) from e
    except ValueError as e:
        raise ValueError(f"cannot read the image {path!r}: {e}") from e
    except (OSError, SyntaxError, Image.DecompressionBombError) as e:  # Pillow's word for some broken files is syntax
        raise OSError(f"cannot read the image {path!r}: {e}") from e


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
