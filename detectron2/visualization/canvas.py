"""The image to draw on.

Positions are `(x, y)` in pixels of the given image, continuous coordinates, the origin at the top left corner of the
top left pixel; the canvas may be larger or smaller by `scale`. Widths of lines and sizes of letters are in points of
1/72 inch at 100 dots per inch *of the canvas*. Drawing goes through matplotlib's Agg rasteriser directly: anti-aliased
like a matplotlib figure, without the cost of one. Operations are recorded and rendered when the image is read.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from detectron2.utils.file_io import atomic_write

__all__ = ["VisImage"]

_DPI = 100
_VECTOR_SUFFIXES = (".pdf", ".svg")
_DASHES = {"--": (3.7, 1.6), "-.": (6.4, 1.6, 1.0, 1.6), ":": (1.0, 1.65)}
_DASH_NAMES = {"dashed": "--", "dashdot": "-.", "dotted": ":", "solid": "-"}
_ALIGNMENT = {"left": 0.0, "center": 0.5, "right": 1.0}
# Letters that reach as far up and down as any, so that all lines are equally high.
_TALL = "lp|"


class VisImage:
    """An image, and what is drawn on it.

    `fig`, `ax` and `canvas` are a matplotlib figure that covers the image with the same coordinates, made when
    one of them is first read; what is put there appears above everything else.

    Args:
        img: RGB image (height, width, 3), values from 0 to 255.
        scale: size of the result relative to the image.

    Example:
        >>> from detectron2.visualization import VisImage
        >>> canvas = VisImage(np.zeros((60, 80, 3), np.uint8), scale=2)
        >>> canvas.draw_disc((40, 30), radius=10, face=(1, 0, 0, 1))
        >>> picture = canvas.get_image()
        >>> picture.shape, picture[60, 80].tolist()
        ((120, 160, 3), [255, 0, 0])
        >>> canvas.save("disc.png")
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0):
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale must be a number above 0, got {scale!r}.")
        self.img = img
        self.scale = scale
        self.height, self.width = img.shape[:2]
        self._size_wh = (int(self.width * scale + 1e-2), int(self.height * scale + 1e-2))
        if min(self._size_wh) < 1:
            raise ValueError(f"Nothing to draw on: an image of shape {img.shape} at scale {scale} has no pixels.")
        self._operations: list[Callable[[Any], None]] = []
        self._rendered = 0
        self._renderer_: Any = None
        self._typesetter_: _Typesetter | None = None
        self._figure: Any = None

    def reset_image(self, img: np.ndarray) -> None:
        """Replace the background by an RGB image of the same shape, and keep the drawings."""
        if img.shape[:2] != (self.height, self.width):
            raise ValueError(f"The new background has shape {img.shape}, expected {(self.height, self.width)} pixels.")
        self.img = img
        self._rendered = 0
        if self._renderer_ is not None:
            self._paint_background()

    def get_image(self) -> np.ndarray:
        """The picture, a uint8 RGB image (height * scale, width * scale, 3)."""
        self._render()
        rgba = np.asarray(self._renderer.buffer_rgba())
        picture = np.empty((*rgba.shape[:2], 3), np.uint8)
        for channel in range(3):  # one at a time takes a third of the time of all
            picture[..., channel] = rgba[..., channel]
        if self._figure is None:
            return picture
        self._figure.canvas.draw()
        layer = np.asarray(self._figure.canvas.buffer_rgba()).astype(np.float32)
        opacity = layer[..., 3:] / 255
        return (picture * (1 - opacity) + layer[..., :3] * opacity + 0.5).astype(np.uint8)

    def save(self, filepath: str | os.PathLike) -> None:
        """Write the picture to a file, completely or not at all. Its suffix chooses the format.

        `.svg` and `.pdf` hold the drawings as shapes and text, which stay sharp at any size, above the pixels of the
        image. `.png`, `.jpg` and the others that Pillow knows hold what `get_image()` returns.
        """
        suffix = os.path.splitext(filepath)[1].lower()
        kind = Image.registered_extensions().get(suffix)
        if suffix not in _VECTOR_SUFFIXES and kind is None:
            raise ValueError(f"{os.fspath(filepath)!r} has no suffix of an image format; use .png, .jpg, .svg or .pdf.")
        with atomic_write(filepath) as f:
            if suffix in _VECTOR_SUFFIXES:
                self._save_shapes(f, suffix[1:])
            else:
                Image.fromarray(self.get_image()).save(f, format=kind)

    @property
    def fig(self) -> Any:
        """A matplotlib figure over the image."""
        self._ensure_figure()
        return self._figure

    @property
    def ax(self) -> Any:
        """Axes over the whole image, in pixels of the image."""
        return self.fig.axes[0]

    @property
    def canvas(self) -> Any:
        """The Agg canvas of `fig`."""
        return self.fig.canvas

    def draw_path(
        self,
        rings: Sequence[np.ndarray],
        *,
        face: Sequence[float] | None = None,
        edge: Sequence[float] | None = None,
        linewidth: float = 1.0,
        linestyle: str = "-",
        closed: bool = True,
    ) -> None:
        """Fill and stroke lines or polygons as one shape; a ring inside another of opposite direction is a hole.

        Args:
            rings: arrays (points, 2) of positions.
            face: RGBA to fill with, or None.
            edge: RGBA of the outline, or None.
            linewidth: width of the outline in points.
            linestyle: `-`, `--`, `-.`, `:` or matplotlib's names of them.
            closed: join the last point of each ring to its first.
        """
        from matplotlib.path import Path

        rings = [ring for ring in rings if len(ring)]
        if not rings:
            return
        vertices = [part for ring in rings for part in ((ring, ring[:1]) if closed else (ring,))]
        ends = np.cumsum([len(ring) + closed for ring in rings])
        codes = np.full(ends[-1], Path.LINETO, Path.code_type)
        codes[0], codes[ends[:-1]] = Path.MOVETO, Path.MOVETO
        if closed:
            codes[ends - 1] = Path.CLOSEPOLY
        path = Path(np.concatenate(vertices).astype(float), codes)
        self._record_path(path, face, edge, linewidth, linestyle)

    def draw_disc(self, center_xy: Sequence[float], radius: float, face: Sequence[float]) -> None:
        """Fill a circle of a radius in pixels of the image with the RGBA colour `face`."""
        from matplotlib.path import Path

        self._record_path(Path.circle((center_xy[0], center_xy[1]), radius), face, None, 0.0, "-")

    def draw_pixels(self, overlay: np.ndarray, corner_xy: tuple[int, int] = (0, 0)) -> None:
        """Blend an image over a part of this one.

        Args:
            overlay: uint8 RGBA (height, width, 4), one pixel for each pixel of the image.
            corner_xy: pixel that the top left of the overlay covers.
        """
        sx, sy = self._size_wh[0] / self.width, self._size_wh[1] / self.height
        left, top = round(corner_xy[0] * sx), round(corner_xy[1] * sy)
        right = round((corner_xy[0] + overlay.shape[1]) * sx)
        bottom = round((corner_xy[1] + overlay.shape[0]) * sy)
        if right <= left or bottom <= top:
            return
        if (right - left, bottom - top) != (overlay.shape[1], overlay.shape[0]):
            resized = Image.fromarray(overlay).resize((right - left, bottom - top), Image.Resampling.NEAREST)
            overlay = np.asarray(resized)

        def operation(renderer: Any) -> None:
            # Agg counts rows from the bottom
            renderer.draw_image(renderer.new_gc(), left, self._size_wh[1] - bottom, np.ascontiguousarray(overlay[::-1]))

        self._operations.append(operation)

    def text_size_wh(self, text: str, font_size: float) -> tuple[float, float]:
        """Width and height of a text, without background, in pixels of the image."""
        width, height = self._typesetter.block_wh(text.split("\n"), font_size)
        return width * self.width / self._size_wh[0], height * self.height / self._size_wh[1]

    def draw_text(
        self,
        text: str,
        position_xy: Sequence[float],
        *,
        font_size: float,
        color: Sequence[float],
        background: Sequence[float] | None = None,
        padding: float = 0.0,
        horizontal_alignment: str = "left",
        rotation: float = 0.0,
    ) -> None:
        """Write a text.

        Args:
            text: one or more lines.
            position_xy: where the top of the text, and its left, centre or right, goes.
            font_size: in points.
            color: RGBA of the letters.
            background: RGBA of the rectangle behind, or None.
            padding: how far the rectangle extends beyond the text, in pixels of the canvas.
            horizontal_alignment: `left`, `center` or `right`.
            rotation: degrees counter-clockwise.
        """
        if horizontal_alignment not in _ALIGNMENT:
            raise ValueError(f"horizontal_alignment must be one of {sorted(_ALIGNMENT)}, got {horizontal_alignment!r}.")
        x = float(position_xy[0]) * self._size_wh[0] / self.width
        y = float(position_xy[1]) * self._size_wh[1] / self.height
        if not np.isfinite([x, y]).all():
            return  # as with shapes: what is nowhere is not drawn
        share, lines = _ALIGNMENT[horizontal_alignment], text.split("\n")

        def operation(renderer: Any) -> None:
            self._typesetter.render(renderer, lines, (x, y), share, font_size, color, background, padding, rotation)

        self._operations.append(operation)

    # -- rendering ----------------------------------------------------------------------------------------------------

    @property
    def _renderer(self) -> Any:
        if self._renderer_ is None:
            from matplotlib.backends.backend_agg import RendererAgg

            self._renderer_ = RendererAgg(*self._size_wh, _DPI)
            self._paint_background()
        return self._renderer_

    @property
    def _typesetter(self) -> "_Typesetter":
        if self._typesetter_ is None:
            self._typesetter_ = _Typesetter(self._renderer)
        return self._typesetter_

    def _paint_background(self) -> None:
        self._fill_background(np.asarray(self._renderer_.buffer_rgba()))

    def _fill_background(self, rgba: np.ndarray) -> None:
        """Write the image in the size of the canvas; the target is one piece of memory."""
        picture = np.ascontiguousarray(self.img[..., :3])
        if picture.dtype != np.uint8:
            picture = picture.clip(0, 255).astype(np.uint8)
        if (self.width, self.height) != self._size_wh:
            picture = np.asarray(Image.fromarray(picture).resize(self._size_wh, Image.Resampling.BILINEAR))
        # A pixel and the byte behind it, which opacity replaces: four bytes at a time take a third of the time.
        words = np.ndarray(picture.size // 3 - 1, np.uint32, picture, strides=(3,))
        rgba.reshape(-1).view(np.uint32)[:-1] = words
        rgba[-1, -1, :3] = picture[-1, -1]
        rgba[..., 3] = 255

    def _render(self) -> None:
        renderer = self._renderer
        for operation in self._operations[self._rendered :]:
            operation(renderer)
        self._rendered = len(self._operations)

    def _record_path(self, path: Any, face: Any, edge: Any, linewidth: float, linestyle: str) -> None:
        from matplotlib.transforms import Affine2D

        canvas_w, canvas_h = self._size_wh
        to_canvas = Affine2D().scale(canvas_w / self.width, -canvas_h / self.height).translate(0, canvas_h)
        style = _DASH_NAMES.get(linestyle, linestyle)
        if style != "-" and style not in _DASHES:
            raise ValueError(f"Unknown line style {linestyle!r}; use one of {['-', *_DASHES]}.")

        def operation(renderer: Any) -> None:
            gc = renderer.new_gc()
            gc.set_linewidth(linewidth if edge is not None else 0.0)
            if edge is not None:
                gc.set_foreground(tuple(edge), isRGBA=True)
            if style in _DASHES:
                gc.set_dashes(0, [length * linewidth for length in _DASHES[style]])
            renderer.draw_path(gc, path, to_canvas, None if face is None else tuple(face))

        self._operations.append(operation)

    def _save_shapes(self, file: IO[bytes], kind: str) -> None:
        """Write a vector file: the image, what was drawn, and above it what is in `fig`."""
        from matplotlib import rc_context
        from matplotlib.artist import Artist

        def draw(renderer: Any) -> None:
            target = _InPoints(renderer, self._size_wh[1])
            background = np.empty((self._size_wh[1], self._size_wh[0], 4), np.uint8)
            self._fill_background(background)
            target.draw_image(target.new_gc(), 0, 0, np.ascontiguousarray(background[::-1]))  # the lowest row first
            for operation in self._operations:
                operation(target)

        figure = self._make_figure() if self._figure is None else self._figure
        size_of_pixels = figure.get_size_inches()
        drawings: Any = Artist()
        drawings.draw = draw
        drawings.set_zorder(-1)  # under all that users put into the figure
        figure.add_artist(drawings)
        try:
            figure.set_size_inches(self._size_wh[0] / _DPI, self._size_wh[1] / _DPI)
            # without a date and random names the same picture gives the same file
            date = {"svg": "Date", "pdf": "CreationDate"}[kind]
            with rc_context({"svg.hashsalt": "detectron2", "savefig.bbox": None}):
                figure.savefig(file, format=kind, dpi=_DPI, metadata={date: None})
        finally:
            figure.set_size_inches(size_of_pixels)
            drawings.remove()

    def _ensure_figure(self) -> None:
        if self._figure is None:
            self._figure = self._make_figure()

    def _make_figure(self) -> Any:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        width, height = self._size_wh
        # the small surplus keeps the size in pixels from being rounded down
        figure = Figure(figsize=((width + 1e-2) / _DPI, (height + 1e-2) / _DPI), dpi=_DPI, frameon=False)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.axis("off")
        axes.set_xlim(0, self.width)
        axes.set_ylim(self.height, 0)
        axes.set_autoscale_on(False)
        return figure


class _InPoints:
    """Passes drawings in pixels of the canvas on to a renderer that counts in points, of which an inch has 72."""

    def __init__(self, renderer: Any, height: int):
        self._renderer = renderer
        self._height = height
        self._factor = 72 / _DPI
        self.new_gc = renderer.new_gc

    def draw_path(self, gc: Any, path: Any, transform: Any, face: Any) -> None:
        """Draw a path, y up from the bottom."""
        from matplotlib.transforms import Affine2D

        self._renderer.draw_path(gc, path, transform + Affine2D().scale(self._factor), face)

    def draw_image(self, gc: Any, x: float, y: float, pixels: np.ndarray) -> None:
        """Place an image by its lower left corner, y up from the bottom."""
        self._renderer.draw_image(gc, x * self._factor, y * self._factor, pixels)

    def draw_text(self, gc: Any, x: float, y: float, text: str, font: Any, rotation: float) -> None:
        """Write a line, y down from the top."""
        y = y if self._renderer.flipy() else self._height - y
        self._renderer.draw_text(gc, x * self._factor, y * self._factor, text, font, rotation)


class _Letters(NamedTuple):
    """A line of text, set and rasterised: `opacity` from 0 to 255 (rows, columns), sizes in pixels."""

    opacity: np.ndarray
    left: float
    width: float
    height: float
    descent: float


@lru_cache(maxsize=2000)
def _letters(line: str, size: float, font_files: tuple[str, ...]) -> _Letters:
    """Set a line in points; labels repeat, and setting one takes longer than all else that is done with it."""
    from matplotlib.backends.backend_agg import get_hinting_flag
    from matplotlib.font_manager import get_font

    font = get_font(font_files)
    font.clear()
    font.set_size(size, _DPI)
    font.set_text(line, 0.0, flags=get_hinting_flag())
    font.draw_glyphs_to_bitmap()
    width, height = font.get_width_height()
    opacity = np.array(font.get_image(), np.uint8)
    return _Letters(opacity, font.get_bitmap_offset()[0] / 64, width / 64, height / 64, font.get_descent() / 64)


def _font_files() -> tuple[str, ...]:
    """The files of matplotlib's fonts without serifs, each for the letters that those before it lack."""
    from matplotlib import rcParams

    return _files_of(tuple(rcParams["font.sans-serif"]))


@lru_cache(maxsize=8)
def _files_of(families: tuple[str, ...]) -> tuple[str, ...]:
    from matplotlib.font_manager import FontProperties, findfont

    files = []
    for family in families:
        with suppress(ValueError):  # the family is not installed
            files.append(findfont(FontProperties(family=[family]), fallback_to_default=False))
    return tuple(files) or (findfont(FontProperties(family="sans-serif")),)


class _Typesetter:
    """Measures and renders text on one canvas, in pixels of the canvas."""

    def __init__(self, renderer: Any):
        self._renderer = renderer
        self._fonts: dict[float, Any] = {}

    def block_wh(self, lines: Sequence[str], font_size: float) -> tuple[float, float]:
        """Width and height of lines under each other."""
        width = max(self._measure(line, font_size)[0] for line in lines)
        return width, self._measure(_TALL, font_size)[1] * len(lines)

    def render(
        self,
        renderer: Any,
        lines: Sequence[str],
        anchor_xy: tuple[float, float],
        share: float,
        font_size: float,
        color: Sequence[float],
        background: Sequence[float] | None,
        padding: float,
        rotation: float,
    ) -> None:
        """Turn a block of lines; the anchor is the top of its bounds, with a `share` of their width left of it."""
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
            self._fill_polygon(renderer, outer @ turn.T + shift, background)
        gc = renderer.new_gc()
        gc.set_foreground(tuple(color), isRGBA=True)
        for row, line in enumerate(lines):
            if not line.strip():
                continue
            left = (width - self._measure(line, font_size)[0]) * share
            x, y = turn @ [left, (row + 1) * line_height - descent] + shift
            if rotation == 0 and renderer is self._renderer:
                self._stamp(_letters(line, font_size, _font_files()), (float(x), float(y)), color)
            else:
                renderer.draw_text(gc, float(x), float(y), line, self._font(font_size), rotation)

    def _stamp(self, letters: "_Letters", base_xy: tuple[float, float], color: Sequence[float]) -> None:
        """Blend a line of letters in a colour; the position is that of its left end on the base line."""
        height, width = letters.opacity.shape
        stamp = np.empty((height, width, 4), np.uint8)
        stamp[..., :3] = np.round(255 * np.array(color[:3]))
        stamp[..., 3] = np.round(letters.opacity * color[3])
        x, bottom = round(base_xy[0] + letters.left), round(base_xy[1] + letters.descent) + 1
        # Agg's rows count from the bottom
        self._renderer.draw_image(self._renderer.new_gc(), x, self._renderer.height - bottom, stamp[::-1])

    def _font(self, size: float) -> Any:
        if size not in self._fonts:
            from matplotlib.font_manager import FontProperties

            self._fonts[size] = FontProperties(family="sans-serif", size=size)
        return self._fonts[size]

    def _measure(self, line: str, size: float) -> tuple[float, float, float]:
        """Width, height and depth below the base line."""
        letters = _letters(line or " ", size, _font_files())
        return letters.width, letters.height, letters.descent

    def _fill_polygon(self, renderer: Any, corners_xy: np.ndarray, face: Sequence[float]) -> None:
        from matplotlib.path import Path
        from matplotlib.transforms import Affine2D

        gc = renderer.new_gc()
        gc.set_linewidth(0.0)
        # Agg's paths count y from the bottom
        flip = Affine2D().scale(1, -1).translate(0, self._renderer.height)
        closed = Path(np.concatenate([corners_xy, corners_xy[:1]]), closed=True)
        renderer.draw_path(gc, closed, flip, tuple(face))
