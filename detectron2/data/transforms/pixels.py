"""Resampling of numpy images: bytes as Pillow does it, floating point through PyTorch.

Letters: `H`, `W` height and width in pixels, `C` channels, `N` images. Images are `(H, W)` or `(H, W, C)` arrays.
Coordinates are continuous: the centre of the first pixel lies at `(0.5, 0.5)`.
"""

import importlib
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

__all__ = ["INTER_CUBIC", "INTER_LINEAR", "INTER_NEAREST", "opencv", "resize", "through_pil", "warp_affine"]

PilOperation = Callable[[Image.Image], Image.Image]

_TORCH_MODE = {
    Image.Resampling.NEAREST: "nearest",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}

# OpenCV's numbers for interpolation, which are the public ones of RotationTransform.
INTER_NEAREST, INTER_LINEAR, INTER_CUBIC = 0, 1, 2
_GRID_SAMPLE_MODE = {INTER_LINEAR: "bilinear", INTER_CUBIC: "bicubic"}


def through_pil(img: np.ndarray, operate: PilOperation) -> np.ndarray:
    """Apply an operation on Pillow images to an array of any type and number of channels.

    Four channels are four independent ones: Pillow would multiply the colours of an RGBA image with its alpha.

    Args:
        img: `(H, W)` or `(H, W, C)`.
        operate: maps a Pillow image to one of the same mode; its size may change.

    Returns:
        An array of the type of `img` and with as many dimensions, which may be written to.

    Example:
        >>> from PIL import ImageOps
        >>> from detectron2.data.transforms.pixels import through_pil
        >>> through_pil(np.array([[1, 2, 3]], dtype=np.uint8), ImageOps.mirror)
        array([[3, 2, 1]], dtype=uint8)
    """
    if img.dtype == np.bool_:
        return through_pil(img.view(np.uint8) * np.uint8(255), operate) >= 128
    if img.ndim == 3:
        if img.dtype == np.uint8 and img.shape[2] in (3, 4):
            return np.array(operate(_pil_from_array(img, "RGB" if img.shape[2] == 3 else "RGBX")))
        return np.stack([through_pil(img[:, :, c], operate) for c in range(img.shape[2])], axis=2)
    if img.dtype == np.uint8:
        return np.array(operate(_pil_from_array(img, "L")))
    if img.dtype.kind in "iu" and img.dtype.itemsize >= 4:
        return np.asarray(operate(Image.fromarray(img.astype(np.int32)))).astype(img.dtype)
    out = np.asarray(operate(Image.fromarray(img.astype(np.float32))))
    return _cast(out, img.dtype)


def _pil_from_array(img: np.ndarray, mode: str) -> Image.Image:
    return Image.frombuffer(mode, img.shape[1::-1], np.ascontiguousarray(img), "raw", mode, 0, 1)


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.rint(values).clip(limits.min, limits.max)
    return values.astype(dtype, copy=False)


def resize(img: np.ndarray, new_h: int, new_w: int, interp: int) -> np.ndarray:
    """Resize one image.

    8-bit images are resized as Pillow does it, which smooths when it shrinks. Floating-point images, and 16-bit ones,
    go through `torch.nn.functional.interpolate` without smoothing. Labels of other integer types, when `interp` says
    nearest, take the same pixels as 8-bit ones.

    Args:
        img: `(H, W)` or `(H, W, C)`.
        new_h: height of the result.
        new_w: width of the result.
        interp: a `PIL.Image.Resampling` number.

    Returns:
        An array of the type of `img`, which may be written to.

    Raises:
        ValueError: for an interpolation that floating-point images do not have.

    Example:
        >>> from detectron2.data.transforms.pixels import resize
        >>> resize(np.array([[1, 2]], dtype=np.int64), 2, 4, interp=Image.Resampling.NEAREST)
        array([[1, 1, 2, 2],
               [1, 1, 2, 2]])
    """
    if img.dtype == np.uint8:
        if interp == Image.Resampling.BILINEAR and _has_byte_kernel():
            return _resize_bytes(img, new_h, new_w)
        return through_pil(img, lambda pil: pil.resize((new_w, new_h), interp))
    if img.dtype.kind != "f" and interp == Image.Resampling.NEAREST:
        return img[_nearest_indices(img.shape[0], new_h)[:, None], _nearest_indices(img.shape[1], new_w)]
    if interp not in _TORCH_MODE:
        names = ", ".join(f"{mode.value} ({name})" for mode, name in _TORCH_MODE.items())
        raise ValueError(f"images of type {img.dtype} can be resized with interp {names}; got interp={interp}")
    values = img if img.dtype.kind == "f" else img.astype(np.float32)
    chw = torch.from_numpy(np.ascontiguousarray(values if img.ndim == 3 else values[:, :, None])).permute(2, 0, 1)
    mode = _TORCH_MODE[Image.Resampling(interp)]
    align_corners = None if mode == "nearest" else False
    out = F.interpolate(chw[None], size=(new_h, new_w), mode=mode, align_corners=align_corners)[0]
    hwc = out.permute(1, 2, 0).numpy()
    return _cast(hwc if img.ndim == 3 else hwc[:, :, 0], img.dtype)


@lru_cache(maxsize=1)
def _has_byte_kernel() -> bool:
    # Elsewhere PyTorch has no vector instructions for bytes, and Pillow is faster.
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _resize_bytes(img: np.ndarray, new_h: int, new_w: int) -> np.ndarray:
    """Resize with PyTorch's copy of Pillow's bilinear filter, six times as fast for 3 channels or 4.

    Pillow's integer weights have 22 bits, PyTorch's 15 or fewer: one pixel in some thousands of a photograph (more
    where noise is shrunk) differs by one grey level. For the bicubic filter it can be 20 levels.
    """
    if img.ndim == 2:
        return _resize_bytes(img[:, :, None], new_h, new_w)[:, :, 0]
    channels = img.shape[2]
    if channels > 4:  # the kernel has four lanes
        planes = np.empty((channels, new_h, new_w), dtype=np.uint8)
        for c in range(0, channels, 4):
            planes[c : c + 4] = _resize_bytes(img[:, :, c : c + 4], new_h, new_w).transpose(2, 0, 1)
        return planes.transpose(1, 2, 0)
    # NumPy calls a flipped image of one column contiguous; PyTorch refuses its negative stride.
    is_plain = img.flags.c_contiguous and img.flags.writeable and min(img.strides) >= 0
    hwc = torch.from_numpy(img if is_plain else img.copy(order="C"))
    # By the strides of a batch that is made last, PyTorch takes the image for planes: it turns the result, which its
    # kernel makes of whole pixels, into planes. For 3 and 4 channels that takes as long as the kernel.
    nchw = hwc[None].permute(0, 3, 1, 2) if channels >= 3 else hwc.permute(2, 0, 1)[None]
    out = F.interpolate(nchw, size=(new_h, new_w), mode="bilinear", antialias=True, align_corners=False)[0]
    return out.permute(1, 2, 0).numpy()


def _nearest_indices(size: int, new_size: int) -> np.ndarray:
    # Asking Pillow settles ties, and its rounding, as for 8-bit labels.
    ramp = Image.fromarray(np.arange(size, dtype=np.int32)[None])
    return np.asarray(ramp.resize((new_size, 1), Image.Resampling.NEAREST))[0]


def warp_affine(img: np.ndarray, matrix: np.ndarray, out_hw: tuple[int, int], interp: int) -> np.ndarray:
    """Move an image by an affine map of coordinates; what comes from outside the image is zero.

    OpenCV does it when it is installed and knows the type, else PyTorch; both use the same geometry.

    Args:
        img: `(H, W)` or `(H, W, C)`.
        matrix: `(2, 3)`, maps continuous `(x, y)` of the input to those of the output.
        out_hw: height and width of the result in pixels.
        interp: OpenCV's number of an interpolation.

    Returns:
        An array of the type of `img`.

    Raises:
        ValueError: for an interpolation that needs OpenCV where OpenCV is not installed.

    Example:
        >>> from detectron2.data.transforms.pixels import INTER_NEAREST, warp_affine
        >>> shift_right = np.array([[1.0, 0, 1], [0, 1, 0]])
        >>> warp_affine(np.array([[1, 2, 3]], dtype=np.uint8), shift_right, (1, 3), INTER_NEAREST)
        array([[0, 1, 2]], dtype=uint8)
    """
    channels = img.shape[2] if img.ndim == 3 else 1
    cv2 = opencv()
    fits = img.dtype in (np.uint8, np.uint16, np.int16, np.float32, np.float64) and channels <= 4
    if cv2 is not None and fits and max(*img.shape[:2], *out_hw) < 2**15 and img.size:
        return _warp_with_opencv(cv2, img, matrix, out_hw, interp)
    if interp == INTER_NEAREST:
        return _warp_nearest(img, matrix, out_hw)
    if interp not in _GRID_SAMPLE_MODE:
        raise ValueError(
            f"interp={interp} needs OpenCV (pip install opencv-python-headless) and an image of at most 4 channels of "
            f"a type that OpenCV knows; without it: 0 (nearest), 1 (linear), 2 (cubic)"
        )
    return _warp_smooth(img, matrix, out_hw, _GRID_SAMPLE_MODE[interp])


@lru_cache(maxsize=1)
def opencv() -> ModuleType | None:
    """Import OpenCV, which is optional.

    Returns:
        The module `cv2`, or None where it is not installed.

    Example:
        >>> from detectron2.data.transforms.pixels import opencv
        >>> cv2 = opencv()
        >>> cv2 is None or cv2.INTER_LINEAR == 1
        True
    """
    try:
        return importlib.import_module("cv2")
    except ImportError:
        return None


def _warp_with_opencv(
    cv2: ModuleType, img: np.ndarray, matrix: np.ndarray, out_hw: tuple[int, int], interp: int
) -> np.ndarray:
    # OpenCV counts pixel indices, whose origin is the centre of the first pixel.
    index_matrix = matrix.copy()
    index_matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    out = cv2.warpAffine(np.ascontiguousarray(img), index_matrix, (out_hw[1], out_hw[0]), flags=interp)
    return out if out.ndim == img.ndim else out[:, :, None]


def _source_coordinates(matrix: np.ndarray, out_hw: tuple[int, int]) -> np.ndarray:
    """Return the continuous input coordinates `(x, y)` of every output pixel centre: `(2, H, W)`."""
    linear = np.linalg.inv(matrix[:, :2])
    shift = -linear @ matrix[:, 2]
    y = np.arange(out_hw[0])[:, None] + 0.5
    x = np.arange(out_hw[1])[None, :] + 0.5
    return np.stack([linear[i, 0] * x + linear[i, 1] * y + shift[i] for i in range(2)])


def _warp_nearest(img: np.ndarray, matrix: np.ndarray, out_hw: tuple[int, int]) -> np.ndarray:
    h, w = img.shape[:2]
    x, y = np.floor(_source_coordinates(matrix, out_hw)).astype(np.intp)
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    out = np.zeros((*out_hw, *img.shape[2:]), dtype=img.dtype)
    out[inside] = img[y[inside], x[inside]]
    return out


def _warp_smooth(img: np.ndarray, matrix: np.ndarray, out_hw: tuple[int, int], mode: str) -> np.ndarray:
    h, w = img.shape[:2]
    work_type = np.float64 if img.dtype == np.float64 else np.float32
    hwc = np.ascontiguousarray(img if img.ndim == 3 else img[:, :, None], dtype=work_type)
    scale = np.array([2 / w, 2 / h]).reshape(2, 1, 1)
    grid = torch.from_numpy((_source_coordinates(matrix, out_hw) * scale - 1).astype(work_type)).permute(1, 2, 0)
    chw = torch.from_numpy(hwc).permute(2, 0, 1)
    out = F.grid_sample(chw[None], grid[None], mode=mode, padding_mode="zeros", align_corners=False)[0]
    out = _cast(out.permute(1, 2, 0).numpy(), img.dtype)
    return out if img.ndim == 3 else out[:, :, 0]
