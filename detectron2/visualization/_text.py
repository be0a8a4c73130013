"""Text on an Agg canvas. Positions are ``(x, y)`` in pixels of the canvas, y down."""

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Typesetter"]

# Letters that reach as far up and down as any, so that all lines are equally high.
_TALL = "lp|"


class Typesetter:
    """Measures and renders text on one canvas, and remembers what it measured.

    Args:
        renderer: a ``RendererAgg``.
    """

    def __init__(self, renderer: Any):
        self._renderer = renderer
        self._fonts: dict[float, Any] = {}
        self._sizes: dict[tuple[str, float], tuple[float, float, float]] = {}

    def block_wh(self, lines: Sequence[str], font_size: float) -> tuple[float, float]:
        """Width and height of lines under each other.

        Args:
            lines: at least one.
            font_size: in points.

        Returns:
            the size in pixels of the canvas.
        """
        width = max(self._measure(line, font_size)[0] for line in lines)
        return width, self._measure(_TALL, font_size)[1] * len(lines)

    def render(
        self,
        lines: Sequence[str],
        anchor_xy: tuple[float, float],
        share: float,
        font_size: float,
        color: Sequence[float],
        background: Sequence[float] | None,
        padding: float,
        rotation: float,
    ) -> None:
        """Put lines under each other into a block, turn it, and align the bounds of the turned block with the anchor.

        Args:
            lines: at least one.
            anchor_xy: where the top of the bounds goes.
            share: which part of the width lies left of the anchor, from 0 to 1.
            font_size: in points.
            color: RGBA of the letters.
            background: RGBA of the rectangle behind, or None.
            padding: how far the rectangle extends beyond the text.
            rotation: degrees counter-clockwise.
        """
        width, height = self.block_wh(lines, font_size)
        _, line_height, descent = self._measure(_TALL, font_size)
        angle = np.deg2rad(rotation)
        # rows go down, so this matrix turns counter-clockwise to the eye
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=float)
        turned = corners @ turn.T
        low, high = turned.min(0), turned.max(0)
        shift = np.array([anchor_xy[0] - low[0] - share * (high[0] - low[0]), anchor_xy[1] - low[1]])
        if background is not None:
            outer = corners + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * padding
            self._fill_polygon(outer @ turn.T + shift, background)
        gc = self._renderer.new_gc()
        gc.set_foreground(tuple(color), isRGBA=True)
        for row, line in enumerate(lines):
            if not line.strip():
                continue
            left = (width - self._measure(line, font_size)[0]) * share
            x, y = turn @ [left, (row + 1) * line_height - descent] + shift
            self._renderer.draw_text(gc, float(x), float(y), line, self._font(font_size), rotation)

    def _font(self, size: float) -> Any:
        if size not in self._fonts:
            from matplotlib.font_manager import FontProperties

            self._fonts[size] = FontProperties(family="sans-serif", size=size)
        return self._fonts[size]

    def _measure(self, line: str, size: float) -> tuple[float, float, float]:
        """Width, height and depth below the base line."""
        key = (line, size)
        if key not in self._sizes:
            measured = self._renderer.get_text_width_height_descent(line or " ", self._font(size), False)
            self._sizes[key] = measured
        return self._sizes[key]

    def _fill_polygon(self, corners_xy: np.ndarray, face: Sequence[float]) -> None:
        from matplotlib.path import Path
        from matplotlib.transforms import Affine2D

        gc = self._renderer.new_gc()
        gc.set_linewidth(0.0)
        # Agg's paths count y from the bottom
        flip = Affine2D().scale(1, -1).translate(0, self._renderer.height)
        closed = Path(np.concatenate([corners_xy, corners_xy[:1]]), closed=True)
        self._renderer.draw_path(gc, closed, flip, tuple(face))
