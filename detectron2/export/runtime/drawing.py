"""Drawing the results of an exported model over the image, with Pillow."""

import colorsys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .images import load_image
from .results import class_name, regions

__all__ = ["draw"]

Color = tuple[int, int, int]


def draw(
    image: str | Path | Image.Image | np.ndarray, result: Mapping[str, Any], meta: Mapping[str, Any]
) -> Image.Image:
    """Draw a result over its image.

    Args:
        image: see `load_image`.
        result: of a `Predictor`, for this image.
        meta: what `model.json` says.

    Returns:
        A new picture of the size of the image. Objects of a class have shades of its colour; where there is one class
        only, colours of their own.
    """
    pixels = load_image(image, meta["preprocessing"].get("exif", "apply")).copy()
    line = max(1, round(min(pixels.shape[:2]) / 300))
    labels: list[tuple[str, Color, tuple[float, float], str]] = []
    seen: Counter[tuple[bool, int]] = Counter()

    def color_of(label: int, is_thing: bool) -> Color:
        number = seen[is_thing, label] if is_thing else 0
        seen[is_thing, label] += 1
        if is_thing and len(meta.get("classes") or ()) == 1:
            return _color({}, number, True)
        return _shade(_color(meta, label, is_thing), number)

    if "sem_seg" in result or "segments" in result:
        for thing, label, score, mask in regions(result):
            color = color_of(label, thing)
            _paint(pixels, mask, color, line)
            labels.append((_text(class_name(meta, label, thing), score), color, _inner_point(mask), "mm"))
        pen = ImageDraw.Draw(picture := Image.fromarray(pixels))
    else:
        boxes = result["boxes"]
        classes = result["classes"].tolist() if "classes" in result else [None] * len(boxes)
        colors = [color_of(label or 0, True) for label in classes]
        sides = boxes[:, 2:] - boxes[:, :2]
        order = np.argsort(-sides[:, 0] * sides[:, 1], kind="stable").tolist()  # small ones over large ones
        for row in order if "masks" in result else ():
            _paint(pixels, result["masks"][row], colors[row], line)
        pen = ImageDraw.Draw(picture := Image.fromarray(pixels))
        for row in order:
            pen.rectangle(boxes[row].tolist(), outline=colors[row], width=line)
            if "keypoints" in result:
                _draw_skeleton(pen, result["keypoints"][row], meta.get("keypoints") or {}, colors[row], line)
            if (label := classes[row]) is not None:
                text = _text(class_name(meta, label, True), float(result["scores"][row]))
                labels.append((text, colors[row], (float(boxes[row, 0]), float(boxes[row, 1])), "lb"))
    _draw_labels(pen, labels, picture.size)
    return picture


def _text(name: str, score: float | None) -> str:
    return name if score is None else f"{name} {score:.0%}"


def _color(meta: Mapping[str, Any], label: int, is_thing: bool) -> Color:
    table = meta.get("class_colors" if is_thing else "stuff_colors") or []
    if label < len(table):
        r, g, b = table[label]
    else:  # hues at steps of the golden ratio are far from each other
        hue, saturation = (0.02 + label * 0.618034) % 1, 0.8 if is_thing else 0.5
        r, g, b = (round(255 * v) for v in colorsys.hsv_to_rgb(hue, saturation, 0.95))
    return r, g, b


def _shade(color: Color, number: int) -> Color:
    """A lighter or darker variant, by which objects of a class are told apart."""
    towards, share = ((0, 0.0), (255, 0.35), (0, 0.25))[number % 3]
    r, g, b = (round(v + (towards - v) * share) for v in color)
    return r, g, b


def _paint(pixels: np.ndarray, mask: np.ndarray, color: Color, line: int) -> None:
    """Tint the pixels of a mask, and draw its edge."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    mask, pixels = mask[window], pixels[window]
    inside = mask
    for _ in range(line):
        padded = np.pad(inside, 1)
        inside = inside & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    pixels[inside] = (pixels[inside] * 0.55 + np.array(color) * 0.45).astype(np.uint8)
    pixels[mask & ~inside] = color


def _inner_point(mask: np.ndarray) -> tuple[float, float]:
    """The pixel (x, y) of a mask that is nearest to its centre of mass."""
    y, x = np.nonzero(mask)
    if len(y) == 0:
        return 0.0, 0.0
    nearest = ((y - y.mean()) ** 2 + (x - x.mean()) ** 2).argmin()
    return float(x[nearest]), float(y[nearest])


def _draw_skeleton(pen: Any, keypoints: np.ndarray, about: Mapping[str, Any], color: Color, line: int) -> None:
    names, seen = about.get("names") or [], keypoints[:, 2] > 0.05
    for first, second, line_color in about.get("connections") or []:
        a, b = (names.index(end) if isinstance(end, str) else end for end in (first, second))
        if seen[a] and seen[b]:
            pen.line([*keypoints[a, :2].tolist(), *keypoints[b, :2].tolist()], tuple(line_color), 2 * line)
    for x, y in keypoints[seen, :2].tolist():
        pen.ellipse([x - 2 * line, y - 2 * line, x + 2 * line, y + 2 * line], fill=color, outline="white")


def _draw_labels(
    pen: Any, labels: Sequence[tuple[str, Color, tuple[float, float], str]], size: tuple[int, int]
) -> None:
    """Write each text on its colour, inside the picture, and moved down where another one stands."""
    points = max(10, min(size) // 32)
    try:
        font: Any = ImageFont.load_default(points)
    except TypeError:  # Pillow before 10.1 has one size
        font = ImageFont.load_default()
    taken: list[tuple[float, float, float, float]] = []
    for text, color, (x, y), anchor in labels:
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        width, height = right - left + 6, bottom - top + 6
        x, y = (x - width / 2, y - height / 2) if anchor == "mm" else (x, y - height)
        x, y = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
        for _ in range(len(taken)):
            below = [t[3] for t in taken if x < t[2] and t[0] < x + width and y < t[3] and t[1] < y + height]
            if not below or max(below) + height > size[1]:
                break
            y = max(below)
        taken.append((x, y, x + width, y + height))
        pen.rectangle([x, y, x + width - 1, y + height - 1], fill=color)
        is_light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
        pen.text((x + 3 - left, y + 3 - top), text, fill="black" if is_light else "white", font=font)
