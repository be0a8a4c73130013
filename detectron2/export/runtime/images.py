"""From an image to the inputs of an exported model, with NumPy and Pillow.

Letters: `N` images, `H`, `W` height and width in pixels; `h`, `w` those that the model sees.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["load_image", "preprocess", "resized_size"]

# Tag 274 of EXIF 2.32, section 4.6.4: how the stored picture has to be turned to stand upright.
_ORIENTATION = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(source: str | Path | Image.Image | np.ndarray, exif: str = "apply") -> np.ndarray:
    """Read an image as uint8 `(H, W, 3)`, RGB.

    Args:
        source: a path, a Pillow image, or an array uint8 `(H, W, 3)` in RGB order or `(H, W)` in grey.
        exif: "apply" turns files and Pillow images upright as their EXIF data say; "ignore" leaves them as stored.

    Returns:
        The pixels. Transparency is left out.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file is damaged or not an image, or has more than 178,956,970 pixels.
        ValueError: an image has values that are not whole numbers from 0 to 255, or an array has another shape.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (3,)):
            raise ValueError(
                f"Expected an array of uint8, (height, width, 3) in RGB order, got {source.dtype} {source.shape}."
            )
        if source.size == 0:
            raise ValueError(f"The image has no pixels: its shape is {source.shape}.")
        return np.repeat(source[:, :, None], 3, axis=2) if source.ndim == 2 else source
    if isinstance(source, Image.Image):
        return _to_rgb(source, exif)
    path = Path(source)
    if not path.is_file():
        what = (
            f"{str(path)!r} is a folder: name the images in it" if path.is_dir() else f"There is no image {str(path)!r}"
        )
        raise FileNotFoundError(f"{what}.")
    try:
        with Image.open(path) as image:
            return _to_rgb(image, exif)
    except Image.DecompressionBombError as e:
        raise OSError(f"{path} has more pixels than Pillow opens ({e}) Make it smaller, or cut it into parts.") from e
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
    except Exception as e:  # decoders may raise anything when the bytes make no sense
        raise OSError(f"{path} is damaged, or not an image that Pillow reads ({e}).") from e


def _to_rgb(image: Image.Image, exif: str) -> np.ndarray:
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # whatever a broken tag makes the parser raise, the pixels are still good
        turn = None
    is_tiff = image.format == "TIFF"
    image.load()  # Pillow turns TIFF files itself
    if turn is not None and (exif == "apply") != is_tiff:
        back = {
            Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
            Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
        }
        image = image.transpose(back.get(turn, turn) if is_tiff else turn)
    if image.mode[0] in "IF":
        values = np.asarray(image)
        low, high = values.min(), values.max()
        if low < 0 or high > 255 or (values % 1).any():
            raise ValueError(f"its values are from {low} to {high}; scale them to whole numbers from 0 to 255.")
    if image.mode != "RGB":
        image = image.copy()
        image.info.pop("transparency", None)
        image = image.convert("RGB")
    return np.array(image)


def resized_size(size: tuple[int, int], meta: Mapping[str, Any]) -> tuple[int, int]:
    """Return the height and width that an image of `size` (height, width) has when the model sees it.

    The shorter edge gets its length unless the longer one would be too long. Where the model's input has one fixed
    size, the image is shrunk further to fit into it.
    """
    preparation = meta["preprocessing"]
    height, width = size
    new_h, new_w = float(height), float(width)
    if short := float(preparation["short_edge"]):
        scale = short / min(height, width)
        new_h, new_w = (short, scale * width) if height < width else (scale * height, short)
        longest, limit = max(new_h, new_w), preparation["long_edge"] or float("inf")
        if longest > limit:
            new_h, new_w = new_h * (limit / longest), new_w * (limit / longest)
    new_hw = max(int(new_h + 0.5), 1), max(int(new_w + 0.5), 1)
    square = preparation.get("square") or 0
    room = meta.get("size") or ((square, square) if square else new_hw)
    if new_hw[0] > room[0] or new_hw[1] > room[1]:
        scale = min(room[0] / height, room[1] / width)
        new_hw = max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)
    return new_hw


def preprocess(image: np.ndarray, meta: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Make the inputs of the model of one image.

    Args:
        image: uint8 `(H, W, 3)`, RGB, as of `load_image`.
        meta: what `model.json` says.

    Returns:
        `images`, float32 `[1, 3, h, w]` with values from 0 to 255 in the model's order of channels, resized; and
        `image_sizes`, int64 `[1, 2]`, the height and width of the part that the image fills.
    """
    height, width = resized_size((image.shape[0], image.shape[1]), meta)
    if (height, width) != image.shape[:2]:
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    if meta["preprocessing"]["channels"] == "BGR":
        image = image[:, :, ::-1]
    room_h, room_w = meta.get("size") or (height, width)
    images = np.zeros((1, 3, room_h, room_w), np.float32)
    images[0, :, :height, :width] = image.transpose(2, 0, 1)
    return images, np.array([[height, width]], np.int64)
