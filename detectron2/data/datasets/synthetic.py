"""A data set that is drawn, not downloaded: coloured shapes that occlude each other on textured backgrounds.

It has what makes real instance segmentation hard in small (texture, occlusion, scale, rotation, concave outlines), so a
detector that learns it works, and nothing has to be fetched. Annotations are in COCO format; polygons and boxes
describe the visible part of an object. The same arguments give the same files, byte for byte.
"""

import colorsys
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from detectron2.data.checks.masks import polygon_areas
from detectron2.data.formats.coco import write_content

__all__ = ["SHAPE_CLASSES", "generate_shapes_dataset"]

SHAPE_CLASSES = ("disc", "square", "triangle", "star", "cross", "moon")
"""The classes of the generated data set; the position is the label."""

_SUPERSAMPLING = 4  # outlines are drawn this much larger and averaged, which gives soft edges
_MIN_VISIBLE = 0.45  # of the area of each object, after all others are drawn
_TYPICAL_COLOUR = 0.85  # the share of objects that have the hue of their class


def generate_shapes_dataset(
    output_dir: str | os.PathLike,
    num_images: int,
    *,
    size_hw: tuple[int, int] = (160, 160),
    max_objects: int = 7,
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Path:
    """Draw images and write them with their annotations.

    Args:
        output_dir: gets `images/*.png` and `annotations.json`; it is made if necessary.
        num_images: how many images.
        size_hw: height and width of each image in pixels.
        max_objects: each image holds between 1 and this many objects.
        seed: another seed gives other images.
        progress: passes the numbers of the images on and may show how far it is, such as `tqdm.tqdm`.

    Returns:
        The path of the annotation file, in COCO format: boxes `(x, y, width, height)` in absolute pixels, category
        ids counted from 1 in the order of `SHAPE_CLASSES`.

    Raises:
        ValueError: a number is out of range.
    """
    if num_images < 0 or max_objects < 1 or min(size_hw) < 32:
        raise ValueError(
            f"Expected num_images >= 0, max_objects >= 1 and sides >= 32, got {num_images}, {max_objects}, {size_hw}."
        )
    root = Path(output_dir)
    (root / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in progress(range(num_images)):
        rng = np.random.default_rng([seed, index])
        pixels, objects = _draw_scene(rng, size_hw, max_objects)
        name = f"{index:05d}.png"
        Image.fromarray(pixels).save(root / "images" / name)
        images.append({"id": index + 1, "file_name": name, "height": size_hw[0], "width": size_hw[1]})
        for category, visible, outline in objects:
            annotations.append(_annotation(len(annotations) + 1, index + 1, category, visible, outline))
    content = {
        "info": {"description": f"shapes, seed {seed}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": n} for i, n in enumerate(SHAPE_CLASSES)],
    }
    write_content(content, root / "annotations.json")  # last, so that the file stands for a complete data set
    return root / "annotations.json"


def _draw_scene(
    rng: np.random.Generator, size_hw: tuple[int, int], max_objects: int
) -> tuple[np.ndarray, list[tuple[int, np.ndarray, np.ndarray | None]]]:
    """Return uint8 RGB pixels `(H, W, 3)`, and for each object its class, visible mask `(H, W)` and, where nothing
    covers it, its exact outline `(n, 2)` as `(x, y)`.
    """
    canvas = _texture(rng, size_hw, contrast=55.0, colour=rng.uniform(60, 195, 3))
    objects: list[tuple[int, np.ndarray, np.ndarray | None]] = []
    areas: list[int] = []
    wanted = int(rng.integers(1, max_objects + 1))
    for _ in range(wanted * 4):  # a candidate that hides too much of another one is dropped
        if len(objects) == wanted:
            break
        category = int(rng.integers(len(SHAPE_CLASSES)))
        outline = _place(rng, _OUTLINES[SHAPE_CLASSES[category]](), size_hw)
        alpha = _coverage(outline, size_hw)
        mask = alpha >= 0.5
        area = int(mask.sum())
        if area < 60 or any(
            (old & ~mask).sum() < _MIN_VISIBLE * a for (_, old, _), a in zip(objects, areas, strict=True)
        ):
            continue
        fill = np.clip(_texture(rng, size_hw, contrast=25.0, colour=_colour(rng, category)), 0, 255)
        canvas = canvas * (1 - alpha[..., None]) + fill * alpha[..., None]
        objects = [(c, old & ~mask, None if (old & mask).any() else o) for c, old, o in objects]
        inside = bool((outline >= 0).all() and (outline <= np.array(size_hw)[::-1]).all())
        objects.append((category, mask, outline if inside else None))
        areas.append(area)
    noise = rng.normal(0, 6, (*size_hw, 3))
    return np.clip(canvas + noise, 0, 255).astype(np.uint8), objects


def _colour(rng: np.random.Generator, category: int) -> np.ndarray:
    """Return the RGB colour of an object: like fruit, most objects of a class have about the same hue, but not all."""
    typical = rng.uniform() < _TYPICAL_COLOUR
    hue = category / len(SHAPE_CLASSES) + rng.normal(0, 0.03) if typical else rng.uniform()
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(0.5, 1.0), rng.uniform(130, 240)))


def _texture(rng: np.random.Generator, size_hw: tuple[int, int], contrast: float, colour: np.ndarray) -> np.ndarray:
    """Return float RGB `(H, W, 3)`: a colour with clouds (noise at several scales) and stripes on it."""
    h, w = size_hw
    out = np.broadcast_to(colour, (h, w, 3)).copy()
    for cells in (3, 7, 16):
        coarse = rng.normal(0, contrast / np.sqrt(cells), (cells, cells, 3))
        for channel in range(3):
            cloud = Image.fromarray(coarse[..., channel].astype(np.float32)).resize((w, h), Image.Resampling.BICUBIC)
            out[..., channel] += np.asarray(cloud)
    y, x = np.mgrid[0:h, 0:w]
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 24)
    stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    return out + stripes[..., None] * rng.uniform(0, contrast / 3, 3)


def _place(rng: np.random.Generator, outline: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Scale, stretch, rotate and move a unit outline into the image; it may stick out by a little."""
    h, w = size_hw
    radius = np.exp(rng.uniform(np.log(0.1), np.log(0.26))) * min(h, w)
    stretch = np.array([1.0, rng.uniform(0.75, 1.0)])
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = rng.uniform(0.6 * radius, np.array([w, h]) - 0.6 * radius)
    return (outline * stretch) @ turn * radius + centre


def _coverage(outline: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Return the share of each pixel that a polygon covers, float `(H, W)` in [0, 1]."""
    h, w = size_hw
    big = Image.new("L", (w * _SUPERSAMPLING, h * _SUPERSAMPLING))
    # PIL's coordinates name pixel centres, ours are continuous: hence the half pixel.
    ImageDraw.Draw(big).polygon([tuple(p) for p in (outline * _SUPERSAMPLING - 0.5).tolist()], fill=255)
    fine = np.asarray(big, dtype=np.float32) / 255
    return fine.reshape(h, _SUPERSAMPLING, w, _SUPERSAMPLING).mean((1, 3))


def _annotation(
    annotation_id: int, image_id: int, category: int, visible: np.ndarray, outline: np.ndarray | None
) -> dict:
    """Return the COCO annotation of the visible part of one object."""
    polygons = [outline] if outline is not None else _contours(visible)
    corners = np.concatenate(polygons)
    low, high = corners.min(0), corners.max(0)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category + 1,
        "bbox": [round(float(v), 2) for v in (*low, *(high - low))],
        "area": int(visible.sum()),
        "iscrowd": 0,
        "segmentation": [[round(float(v), 2) for v in p.reshape(-1)] for p in polygons],
    }


def _contours(mask: np.ndarray) -> list[np.ndarray]:
    """Return outlines `(n, 2)` as `(x, y)` in continuous coordinates of the parts of a mask.

    Specks are left out, and so are holes, which polygons in COCO format cannot express.
    """
    from contourpy import contour_generator

    lines = contour_generator(z=np.pad(mask, 1).astype(np.float64)).lines(0.5)
    # The padding shifts indices by 1, and the centre of pixel i lies at i + 0.5.
    parts = [np.asarray(line)[:-1] - 0.5 for line in lines if len(line) > 3]
    areas = polygon_areas([p.reshape(-1) for p in parts], signed=True)
    direction = np.sign(max(areas, key=abs))  # outer lines run one way, holes the other
    outer = [p for p, a in zip(parts, areas, strict=True) if a * direction > 0]
    return [p for p in outer if np.ptp(p, axis=0).min() >= 2] or outer


def _regular(radii: list[float], start: float = -np.pi / 2) -> np.ndarray:
    """Return a closed outline with the given radii at equal angles."""
    angles = start + np.arange(len(radii)) * 2 * np.pi / len(radii)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * np.array(radii)[:, None]


def _cross() -> np.ndarray:
    a, b = 1.0, 0.36
    return np.array(
        [[-b, -a], [b, -a], [b, -b], [a, -b], [a, b], [b, b], [b, a], [-b, a], [-b, b], [-a, b], [-a, -b], [-b, -b]]
    )


def _moon() -> np.ndarray:
    outer = np.linspace(0.25 * np.pi, 1.75 * np.pi, 24)
    start = np.array([np.cos(outer[0]), np.sin(outer[0])])
    inner_centre = np.array([0.55, 0.0])
    radius = np.linalg.norm(start - inner_centre)
    bend = np.arctan2(start[1], start[0] - inner_centre[0])
    inner = np.linspace(2 * np.pi - bend, bend, 16)[1:-1]
    return np.concatenate(
        [
            np.stack([np.cos(outer), np.sin(outer)], 1),
            np.stack([np.cos(inner), np.sin(inner)], 1) * radius + inner_centre,
        ]
    )


_OUTLINES = {  # unit outlines, fitting the circle of radius 1
    "disc": lambda: _regular([1.0] * 36),
    "square": lambda: _regular([1.0] * 4, start=np.pi / 4),
    "triangle": lambda: _regular([1.0] * 3),
    "star": lambda: _regular([1.0, 0.42] * 5),
    "cross": _cross,
    "moon": _moon,
}
