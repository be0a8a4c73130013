"""Single shapes: the part of the visualizer that draws one thing at a time.

Positions are `(x, y)` in pixels of the image, continuous coordinates.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._arguments import as_array, as_numbers
from .canvas import VisImage
from .colors import change_brightness, class_color, readable_on_dark, to_rgb, to_rgba
from .masks import GenericMask, ring_area

__all__ = ["DrawsPrimitives"]

_LABEL_BACKGROUND = (0.0, 0.0, 0.0, 0.72)
_CANVAS_PIXELS_PER_POINT = 100 / 72


def scaled_padding(font_size: float) -> float:
    """How far the ground of a label extends beyond its letters, in pixels of the canvas."""
    return 0.15 * font_size * _CANVAS_PIXELS_PER_POINT


class DrawsPrimitives:
    """Methods that each draw one shape on `output` and return it.

    Example:
        >>> from detectron2.visualization import Visualizer
        >>> visualizer = Visualizer(np.zeros((60, 80, 3), np.uint8))
        >>> visualizer.draw_box((10, 10, 40, 40), alpha=1.0, edge_color="r").get_image()[10, 25].tolist()
        [255, 0, 0]
    """

    output: VisImage
    metadata: Any
    _default_font_size: float

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color: Any = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Write a text on a dark ground.

        Args:
            text: what to write.
            position: where the top of the text goes; its left, centre or right, by the alignment.
            font_size: in points; None for a size that suits the image.
            color: of the letters, lightened if it would not be readable.
            horizontal_alignment: `left`, `center` or `right`.
            rotation: degrees counter-clockwise.

        Returns:
            `output`.

        Example:
            >>> from detectron2.visualization import Visualizer
            >>> visualizer = Visualizer(np.zeros((60, 80, 3), np.uint8))
            >>> drawn = visualizer.draw_text("cat", (40, 10), color="w", font_size=12)
        """
        position = as_numbers(position, "draw_text", "(x, y) of the position", (1, (2,))).tolist()
        size = (self._default_font_size if font_size is None else font_size) * self.output.scale
        self.output.draw_text(
            str(text),
            position,
            font_size=size,
            color=to_rgba(readable_on_dark(color)),
            background=_LABEL_BACKGROUND,
            padding=scaled_padding(size),
            horizontal_alignment=horizontal_alignment,
            rotation=rotation,
        )
        return self.output

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 0.5, edge_color: Any = "g", line_style: str = "-"
    ) -> VisImage:
        """Outline a box.

        Args:
            box_coord: `(x0, y0, x1, y1)`, the top left and bottom right corners.
            alpha: opacity of the line.
            edge_color: colour of the line.
            line_style: `-`, `--`, `-.` or `:`.

        Returns:
            `output`.
        """
        x0, y0, x1, y1 = as_numbers(box_coord, "draw_box", "(x0, y0, x1, y1) of one box", (1, (4,))).tolist()
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        self.output.draw_path(
            [corners], edge=to_rgba(edge_color, alpha), linewidth=self._line_width(4), linestyle=line_style
        )
        return self.output

    def draw_rotated_box_with_label(
        self,
        rotated_box: Sequence[float],
        alpha: float = 0.5,
        edge_color: Any = "g",
        line_style: str = "-",
        label: str | None = None,
    ) -> VisImage:
        """Outline a rotated box, its upper side dashed, and write a label at the corner before that side.

        Args:
            rotated_box: `(center x, center y, width, height, degrees counter-clockwise)`.
            alpha: opacity of the lines.
            edge_color: colour of the lines and the label.
            line_style: of the other three sides.
            label: what to write, or None.

        Returns:
            `output`.

        Example:
            >>> from detectron2.visualization import Visualizer
            >>> visualizer = Visualizer(np.zeros((60, 80, 3), np.uint8))
            >>> drawn = visualizer.draw_rotated_box_with_label((40, 30, 30, 10, 45), label="ship")
        """
        box = as_numbers(rotated_box, "draw_rotated_box_with_label", "(x, y, width, height, angle)", (1, (5,)))
        center_x, center_y, width, height, degrees = box.tolist()
        angle = np.deg2rad(degrees)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        local = np.array([[-1, 1], [-1, -1], [1, -1], [1, 1]]) * [width / 2, height / 2]
        corners = local @ turn.T + [center_x, center_y]
        line_width = self._line_width(6 if width * height < self._small_area() else 3)
        for side in range(4):
            start, end = corners[side], corners[(side + 1) % 4]
            self.draw_line(
                [start[0], end[0]],
                [start[1], end[1]],
                color=to_rgba(edge_color, alpha),
                linestyle="--" if side == 1 else line_style,
                linewidth=line_width,
            )
        if label is not None:
            # upside down text cannot be read, so the label turns by at most a right angle
            upright = (degrees + 90) % 180 - 90
            self.draw_text(
                label, tuple(corners[1]), color=edge_color, font_size=self._label_font_size(), rotation=upright
            )
        return self.output

    def draw_circle(self, circle_coord: Sequence[float], color: Any, radius: float = 3) -> VisImage:
        """Draw a disc.

        Args:
            circle_coord: `(x, y)` of the centre.
            color: of the disc.
            radius: in pixels.

        Returns:
            `output`.

        Example:
            >>> from detectron2.visualization import Visualizer
            >>> visualizer = Visualizer(np.zeros((60, 80, 3), np.uint8))
            >>> visualizer.draw_circle((40, 30), color="r").get_image()[30, 40].tolist()
            [255, 0, 0]
        """
        center = as_numbers(circle_coord, "draw_circle", "(x, y) of one centre", (1, (2,))).tolist()
        self.output.draw_disc(center, float(radius), to_rgba(color))
        return self.output

    def draw_line(
        self,
        x_data: Sequence[float],
        y_data: Sequence[float],
        color: Any,
        linestyle: str = "-",
        linewidth: float | None = None,
    ) -> VisImage:
        """Draw a line through points.

        Args:
            x_data: the x of each point.
            y_data: the y of each point.
            color: of the line.
            linestyle: `-`, `--`, `-.` or `:`.
            linewidth: in points; None for a width that suits the image.

        Returns:
            `output`.

        Example:
            >>> from detectron2.visualization import Visualizer
            >>> visualizer = Visualizer(np.zeros((60, 80, 3), np.uint8))
            >>> drawn = visualizer.draw_line([10, 70, 70], [10, 10, 50], color="b", linestyle="--")
        """
        if len(x_data) != len(y_data):
            raise ValueError(f"A line needs as many x as y, got {len(x_data)} and {len(y_data)}.")
        width = self._line_width(3) if linewidth is None else max(linewidth, 0.3)
        points = np.array([x_data, y_data], dtype=float).T
        self.output.draw_path([points], edge=to_rgba(color), linewidth=width, linestyle=linestyle, closed=False)
        return self.output

    def draw_polygon(self, segment: Any, color: Any, edge_color: Any = None, alpha: float = 0.5) -> VisImage:
        """Fill a polygon and outline it.

        Args:
            segment: array (points, 2).
            color: of the inside.
            edge_color: of the outline; None for the colour of the inside, darker where that is nearly opaque.
            alpha: opacity of the inside.

        Returns:
            `output`.

        Example:
            >>> from detectron2.visualization import Visualizer
            >>> visualizer = Visualizer(np.zeros((60, 80, 3), np.uint8))
            >>> triangle = [[10, 50], [70, 50], [40, 10]]
            >>> visualizer.draw_polygon(triangle, color="lime", alpha=1.0).get_image()[40, 40].tolist()
            [0, 255, 0]
        """
        points = as_numbers(segment, "draw_polygon", "(points, 2) of one polygon", None)
        if points.size % 2:
            raise TypeError(f"draw_polygon: expected pairs of x and y, got shape {points.shape}.")
        self._draw_region([points.reshape(-1, 2)], color, edge_color, alpha)
        return self.output

    def draw_binary_mask(
        self,
        binary_mask: np.ndarray,
        color: Any = None,
        *,
        edge_color: Any = None,
        text: str | None = None,
        alpha: float = 0.5,
        area_threshold: float = 10,
    ) -> VisImage:
        """Fill a mask and outline it.

        Args:
            binary_mask: array (height, width) of the image's size; not zero inside.
            color: of the inside; None for the first of the palette.
            edge_color: of the outline; None as in `draw_polygon`, and for no outline where the mask has holes.
            text: written into the largest region.
            alpha: opacity of the inside.
            area_threshold: connected regions with fewer square pixels are not drawn.

        Returns:
            `output`.

        Example:
            >>> from detectron2.visualization import Visualizer
            >>> visualizer = Visualizer(np.zeros((60, 80, 3), np.uint8))
            >>> mask = np.zeros((60, 80), bool)
            >>> mask[20:40, 30:60] = True
            >>> visualizer.draw_binary_mask(mask, color="blue", alpha=1.0).get_image()[30, 45].tolist()
            [0, 0, 255]
        """
        color = class_color(0) if color is None else to_rgb(color)
        mask = GenericMask(np.asarray(as_array(binary_mask)), self.output.height, self.output.width)
        if mask.has_holes and edge_color is None:
            return self.draw_soft_mask(mask.mask, color, text=text, alpha=alpha)
        drawn = [rings for rings in mask.regions if abs(sum(map(ring_area, rings))) >= area_threshold]
        self._draw_region([ring for rings in drawn for ring in rings], color, edge_color, alpha)
        if text is not None and drawn:
            self._draw_text_in_mask(mask.mask, text, readable_on_dark(color))
        return self.output

    def draw_soft_mask(
        self, soft_mask: np.ndarray, color: Any = None, *, text: str | None = None, alpha: float = 0.5
    ) -> VisImage:
        """Tint the image by a mask of probabilities.

        Args:
            soft_mask: array (height, width) from 0 to 1.
            color: of the tint; None for the first of the palette.
            text: written where the probability exceeds one half.
            alpha: opacity where the probability is 1.

        Returns:
            `output`.

        Example:
            >>> from detectron2.visualization import Visualizer
            >>> visualizer = Visualizer(np.zeros((60, 80, 3), np.uint8))
            >>> visualizer.draw_soft_mask(np.full((60, 80), 0.5), color="red", alpha=1.0).get_image()[30, 40].tolist()
            [127, 0, 0]
        """
        color = class_color(0) if color is None else to_rgb(color)
        soft_mask = np.asarray(as_array(soft_mask))
        if soft_mask.shape != (self.output.height, self.output.width):
            raise ValueError(
                f"draw_soft_mask: a mask of shape {soft_mask.shape} on an image of {self.output.img.shape}."
            )
        overlay = np.empty((*soft_mask.shape, 4), dtype=np.uint8)
        overlay[..., :3] = np.round(np.array(color) * 255)
        overlay[..., 3] = np.round(np.clip(soft_mask, 0, 1) * (alpha * 255))
        self.output.draw_pixels(overlay)
        if text is not None:
            self._draw_text_in_mask(soft_mask > 0.5, text, readable_on_dark(color))
        return self.output

    def _draw_region(self, rings: list[np.ndarray], color: Any, edge_color: Any, alpha: float) -> None:
        """Fill rings as one shape, and outline them."""
        if edge_color is None:
            # an outline of the same colour would not be seen on an opaque inside
            edge_color = change_brightness(color, -0.7) if alpha >= 0.7 else to_rgb(color)
        self.output.draw_path(
            rings, face=to_rgba(color, alpha), edge=to_rgba(edge_color, 1.0), linewidth=self._line_width(12)
        )

    def _draw_text_in_mask(self, binary_mask: np.ndarray, text: str, color: Any) -> None:
        """Write a text in the middle of the largest region of a mask."""
        center = _middle_of_largest_region(np.asarray(binary_mask))
        if center is not None:
            font_size = self._label_font_size()
            height = self.output.text_size_wh(text, font_size * self.output.scale)[1]
            self.draw_text(text, (center[0], center[1] - height / 2), color=color, font_size=font_size)

    def _change_color_brightness(self, color: Any, brightness_factor: float) -> tuple[float, float, float]:
        """Lighten (factor above 0) or darken (below 0, at least -1) a colour."""
        return change_brightness(color, brightness_factor)

    def _line_width(self, divisor: float) -> float:
        """Width of a line in points of the canvas, in proportion to the letters."""
        return max(self._default_font_size / divisor, 1.0) * self.output.scale

    def _label_font_size(self) -> float:
        return 0.8 * self._default_font_size

    def _small_area(self) -> float:
        return 1000 * self.output.scale


def _middle_of_largest_region(mask: np.ndarray) -> tuple[float, float] | None:
    """A point well inside the largest connected region of a mask: the middle of the longest run of its middle row."""
    generic = GenericMask(mask != 0, *mask.shape)
    if not generic.regions:
        return None
    rings = max(generic.regions, key=lambda rings: abs(sum(map(ring_area, rings))))
    inside = generic.polygons_to_mask([rings[0].reshape(-1)]) & generic.mask
    weight = inside.sum(axis=1)
    if not weight.any():
        x, y = rings[0].mean(axis=0)
        return float(x), float(y)
    row = int(np.searchsorted(np.cumsum(weight), weight.sum() / 2))
    edges = np.flatnonzero(np.diff(np.pad(inside[row].astype(np.int8), 1)))
    starts, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - starts))
    return float(starts[longest] + ends[longest]) / 2, row + 0.5
