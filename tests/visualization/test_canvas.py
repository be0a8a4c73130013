import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from detectron2.visualization.canvas import VisImage

BLACK = (0.0, 0.0, 0.0, 1.0)
RED = (1.0, 0.0, 0.0, 1.0)


def blank(height=40, width=60, value=0):
    return np.full((height, width, 3), value, dtype=np.uint8)


def extent(image):
    """(left, top, right, bottom) of the pixels that are not black."""
    rows, columns = np.nonzero(image.any(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (37, 53)])
def test_an_untouched_image_comes_back(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    np.testing.assert_array_equal(VisImage(image).get_image(), image)


def test_values_outside_the_range_are_clipped():
    image = np.array([[[-5.0, 300.0, 17.0]]])
    assert VisImage(image).get_image().tolist() == [[[0, 255, 17]]]


@pytest.mark.parametrize(("scale", "size"), [(2, (80, 120)), (0.5, (20, 30)), (1.1, (44, 66))])
def test_scale(scale, size):
    canvas = VisImage(blank(value=90), scale=scale)
    assert canvas.get_image().shape == (*size, 3)
    assert (canvas.get_image() == 90).all()


def test_no_pixels_are_refused():
    with pytest.raises(ValueError, match="no pixels"):
        VisImage(blank(0, 5))
    with pytest.raises(ValueError, match="scale"):
        VisImage(blank(3, 3), scale=0.1)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_polygons_cover_what_they_should(scale):
    canvas = VisImage(blank(), scale=scale)
    canvas.draw_path([np.array([[10, 5], [30, 5], [30, 20], [10, 20]])], face=RED)
    image = canvas.get_image()
    assert extent(image) == tuple(scale * n for n in (10, 5, 30, 20))
    assert image[10 * scale, 20 * scale].tolist() == [255, 0, 0]


def test_a_ring_of_opposite_direction_is_a_hole():
    outer = np.array([[5, 5], [35, 5], [35, 35], [5, 35]])
    inner = np.array([[15, 15], [25, 15], [25, 25], [15, 25]])
    canvas = VisImage(blank())
    canvas.draw_path([outer, inner[::-1]], face=RED)
    image = canvas.get_image()
    assert image[10, 10].tolist() == [255, 0, 0]
    assert image[20, 20].tolist() == [0, 0, 0]


def test_opacity_mixes():
    canvas = VisImage(blank(value=100))
    canvas.draw_path([np.array([[0, 0], [60, 0], [60, 40], [0, 40]])], face=(1, 0, 0, 0.5))
    np.testing.assert_allclose(canvas.get_image()[20, 30], [177, 50, 50], atol=1)


def test_drawing_nothing():
    canvas = VisImage(blank())
    canvas.draw_path([], face=RED)
    canvas.draw_path([np.zeros((0, 2))], face=RED)
    canvas.draw_pixels(np.zeros((0, 5, 4), dtype=np.uint8))
    canvas.draw_text("", (5, 5), font_size=10, color=RED)
    assert not canvas.get_image().any()


@pytest.mark.parametrize(("style", "solid"), [("-", True), ("--", False), (":", False), ("dashdot", False)])
def test_line_styles(style, solid):
    canvas = VisImage(blank())
    canvas.draw_path([np.array([[0, 20], [60, 20]])], edge=RED, linewidth=2, linestyle=style, closed=False)
    row = canvas.get_image()[19:22, :, 0].max(axis=0)[1:-1]
    assert (row > 200).all() == solid
    assert row.max() > 200


def test_unknown_line_style():
    with pytest.raises(ValueError, match="wavy"):
        VisImage(blank()).draw_path([np.eye(2)], edge=RED, linestyle="wavy")


def test_disc():
    canvas = VisImage(blank())
    canvas.draw_disc((30, 20), 8, RED)
    image = canvas.get_image()
    assert image[..., 0].sum() / 255 == pytest.approx(np.pi * 64, rel=0.02)
    assert extent(image) == (22, 12, 38, 28)


@pytest.mark.parametrize("scale", [1, 2])
def test_pixels_lie_where_they_are_put(scale):
    overlay = np.zeros((4, 6, 4), dtype=np.uint8)
    overlay[..., 3] = 255
    overlay[0, :, 1] = 255
    overlay[1:, :, 2] = 255
    canvas = VisImage(blank(), scale=scale)
    canvas.draw_pixels(overlay, (50, 36))
    image = canvas.get_image()
    assert extent(image) == tuple(scale * n for n in (50, 36, 56, 40))
    assert image[36 * scale, 50 * scale].tolist() == [0, 255, 0]
    assert image[-1, 50 * scale].tolist() == [0, 0, 255]


def test_pixels_may_hang_over_the_edge():
    canvas = VisImage(blank())
    canvas.draw_pixels(np.full((20, 20, 4), 255, dtype=np.uint8), (50, 30))
    assert extent(canvas.get_image()) == (50, 30, 60, 40)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize(("alignment", "share"), [("left", 0), ("center", 0.5), ("right", 1)])
def test_text_lies_in_its_frame(alignment, share, scale):
    canvas = VisImage(blank(100, 200), scale=scale)
    width, height = canvas.text_size_wh("Apg|", 10 * scale)
    canvas.draw_text("Apg|", (100, 30), font_size=10 * scale, color=(1, 1, 1, 1), horizontal_alignment=alignment)
    left, top, right, bottom = np.array(extent(canvas.get_image())) / scale
    assert left >= 100 - share * width - 1
    assert right <= 100 + (1 - share) * width + 1
    assert right - left > 0.8 * width
    assert top >= 30 - 1
    assert bottom <= 30 + height + 1
    assert bottom - top > 0.7 * height


def test_text_size_grows_with_lines_and_letters():
    canvas = VisImage(blank())
    one, two = canvas.text_size_wh("ab", 10), canvas.text_size_wh("ab\nabab", 10)
    assert two[0] > 1.8 * one[0]
    assert two[1] == 2 * one[1]


def test_background_and_rotation_of_text():
    def frame(rotation):
        canvas = VisImage(blank(200, 200))
        canvas.draw_text(
            "a long label", (100, 50), font_size=10, color=BLACK, background=RED, rotation=rotation,
            horizontal_alignment="center",
        )  # fmt: skip
        return extent(canvas.get_image())

    flat, upright = frame(0), frame(90)
    assert (flat[0] + flat[2]) / 2 == pytest.approx(100, abs=1)
    assert (upright[0] + upright[2]) / 2 == pytest.approx(100, abs=1)
    assert flat[1] == pytest.approx(50, abs=1)
    assert upright[1] == pytest.approx(50, abs=1)
    assert upright[3] - upright[1] == pytest.approx(flat[2] - flat[0], abs=2)


@pytest.mark.parametrize(("text", "font_size"), [("person 97%", 16), ("gyp|jq", 11.3), ("cat", 30)])
def test_letters_are_those_of_a_matplotlib_figure(text, font_size):
    canvas = VisImage(blank(80, 200))
    canvas.draw_text(text, (20, 10), font_size=font_size, color=(1, 1, 1, 1))
    ours = canvas.get_image().astype(float)
    height = canvas.text_size_wh(text, font_size)[1]
    figure = VisImage(blank(80, 200))
    figure.ax.text(20, 10 + height, text, size=font_size, family="sans-serif", color="white", va="bottom", ha="left")
    theirs = figure.get_image().astype(float)
    # a letter may begin within its first pixel there, and begins with it here
    np.testing.assert_allclose(extent(ours > 60), extent(theirs > 60), atol=2)
    assert ours.sum() == pytest.approx(theirs.sum(), rel=0.05)


def test_letters_take_the_colour_and_its_opacity():
    canvas = VisImage(blank(value=100))
    canvas.draw_text("I" * 9, (5, 5), font_size=20, color=(1.0, 0.0, 0.0, 0.5))
    picture = canvas.get_image().reshape(-1, 3).astype(int)
    np.testing.assert_allclose(picture[picture[:, 0].argmax()], [178, 50, 50], atol=2)  # half of the way
    assert picture[picture[:, 0].argmin()].tolist() == [100, 100, 100]


@pytest.mark.parametrize("text", ["", " ", "\u200b", "\n"])
def test_nothing_to_see_leaves_the_image_alone(text):
    canvas = VisImage(blank())
    canvas.draw_text(text, (5, 5), font_size=12, color=RED)
    assert not canvas.get_image().any()


@pytest.mark.parametrize("position", [(-30, 10), (55, 10), (10, -15), (10, 35), (500, 500)])
def test_text_may_hang_over_the_edge(position):
    near, wide = VisImage(blank()), VisImage(blank(140, 160))
    near.draw_text("label", position, font_size=14, color=RED)
    wide.draw_text("label", (position[0] + 50, position[1] + 50), font_size=14, color=RED)
    np.testing.assert_array_equal(near.get_image(), wide.get_image()[50:90, 50:110])


def test_another_font_applies_at_once():
    import matplotlib

    canvas = VisImage(blank())
    with matplotlib.rc_context({"font.sans-serif": ["DejaVu Sans"]}):
        sans = canvas.text_size_wh("mill", 14)
    with matplotlib.rc_context({"font.sans-serif": ["no such font", "DejaVu Sans Mono"]}):
        mono = canvas.text_size_wh("mill", 14)
    assert mono != sans


def test_unknown_alignment():
    with pytest.raises(ValueError, match="middle"):
        VisImage(blank()).draw_text("a", (0, 0), font_size=9, color=RED, horizontal_alignment="middle")


def test_the_background_can_be_exchanged_between_drawings():
    canvas = VisImage(blank())
    canvas.draw_disc((10, 10), 5, RED)
    canvas.get_image()
    canvas.reset_image(blank(value=50))
    canvas.draw_disc((40, 30), 5, (0, 1, 0, 1))
    image = canvas.get_image()
    assert image[10, 10].tolist() == [255, 0, 0]
    assert image[30, 40].tolist() == [0, 255, 0]
    assert image[0, 0].tolist() == [50, 50, 50]
    with pytest.raises(ValueError, match="background"):
        canvas.reset_image(blank(3, 3))


def test_reading_twice_gives_the_same_and_leaves_the_image_alone():
    original = blank()
    canvas = VisImage(original)
    canvas.draw_disc((10, 10), 5, (1, 0, 0, 0.5))
    first = canvas.get_image()
    first_copy = first.copy()
    first[:] = 7
    np.testing.assert_array_equal(canvas.get_image(), first_copy)
    assert not original.any()


@pytest.mark.parametrize("scale", [1, 2])
def test_a_figure_lies_over_the_image_in_the_same_coordinates(scale):
    canvas = VisImage(blank(value=20), scale=scale)
    canvas.draw_disc((10, 10), 4, RED)
    canvas.ax.fill([30, 50, 50, 30], [10, 10, 30, 30], color="w", linewidth=0)
    image = canvas.get_image()
    assert image.shape == (40 * scale, 60 * scale, 3)
    rows, columns = np.nonzero((image == 255).all(axis=2))
    assert (columns.min(), rows.min()) == (30 * scale, 10 * scale)
    assert image[10 * scale, 10 * scale].tolist() == [255, 0, 0]
    assert image[0, 0].tolist() == [20, 20, 20]
    assert canvas.fig is canvas.ax.figure
    assert canvas.canvas is canvas.fig.canvas


def test_a_saved_picture_is_readable_for_others_like_any_file(tmp_path):
    VisImage(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "new" / "picture.png")
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "new" / "picture.png").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_saving(tmp_path):
    canvas = VisImage(blank())
    canvas.draw_disc((10, 10), 5, RED)
    canvas.save(tmp_path / "picture.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "picture.png")), canvas.get_image())
    canvas.save(str(tmp_path / "picture.JPG"))
    assert Image.open(tmp_path / "picture.JPG").size == (60, 40)
    with pytest.raises(ValueError, match="suffix"):
        canvas.save(tmp_path / "picture")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["picture.JPG", "picture.png"]


def test_vector_files_hold_shapes_text_and_the_pixels_of_the_image(tmp_path):
    canvas = VisImage(blank(value=90), scale=2)
    canvas.draw_path([np.array([[10, 5], [30, 5], [30, 20], [10, 20]])], face=(1.0, 0.0, 0.0, 0.25), edge=RED)
    canvas.draw_text("cat <1> $x$", (5, 5), font_size=8, color=RED, background=BLACK)
    canvas.ax.plot([0, 60], [0, 40], color="lime")
    before = canvas.get_image()
    for name in ("a.svg", "b.svg", "a.pdf", "b.pdf"):
        canvas.save(tmp_path / name)
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert root.get("viewBox") == "0 0 86.4 57.6"  # 120 x 80 pixels at 100 in an inch, in points
    text = (tmp_path / "a.svg").read_text()
    # the square in points, y down: 2 * 72 / 100 times the pixels of the image
    assert "M 14.4 7.2 \nL 43.2 7.2 \nL 43.2 28.8 \nL 14.4 28.8 \nz" in text
    assert "fill-opacity: 0.25" in text and "stroke: #00ff00" in text
    picture = re.search(r"data:image/png;base64,\s*([^\"]+)", text)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture[1]))))
    assert pixels.shape == (80, 120, 4) and (pixels[..., :3] == 90).all()
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    for suffix in ("svg", "pdf"):  # nothing depends on the time
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    np.testing.assert_array_equal(canvas.get_image(), before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pdf", "a.svg", "b.pdf", "b.svg"]


def test_the_image_of_a_vector_file_stands_upright(tmp_path):
    image = np.arange(4 * 3 * 3, dtype=np.uint8).reshape(4, 3, 3)
    VisImage(image).save(tmp_path / "a.svg")
    element = next(e for e in ElementTree.parse(tmp_path / "a.svg").iter() if e.tag.endswith("image"))
    data = element.get("{http://www.w3.org/1999/xlink}href").split(",")[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))[..., :3]
    np.testing.assert_array_equal(pixels[::-1], image)  # with the lowest row first, which the element turns over
    assert element.get("transform").startswith("scale(1 -1)")
