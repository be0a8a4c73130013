"""Images reach an exported model as they reach the models of the library."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import ResizeShortestEdge, pixels
from detectron2.export.runtime.images import load_image, preprocess, resized_size
from tests.export.runtime.made_up import metadata, picture

SIDES = st.integers(1, 3000)


@given(SIDES, SIDES, st.integers(1, 1200), st.integers(1, 2000))
def test_size_is_that_of_the_library(height, width, short, long):
    meta = metadata(short_edge=short, long_edge=long)
    assert resized_size((height, width), meta) == ResizeShortestEdge.get_output_shape(height, width, short, long)


@given(SIDES, SIDES, st.integers(0, 1200), st.integers(1, 900), st.integers(1, 900))
def test_image_fits_into_a_fixed_size(height, width, short, room_h, room_w):
    meta = metadata(short_edge=short, size=[room_h, room_w])
    new_h, new_w = resized_size((height, width), meta)
    assert 1 <= new_h <= room_h and 1 <= new_w <= room_w
    free_h, free_w = resized_size((height, width), metadata(short_edge=short))
    if free_h <= room_h and free_w <= room_w:
        assert (new_h, new_w) == (free_h, free_w)


def test_image_fits_into_a_square():
    assert resized_size((600, 1000), metadata(short_edge=800, square=1024)) == (614, 1024)


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("size", [(1, 1), (3, 400), (61, 47), (480, 640), (900, 700)], ids=str)
@pytest.mark.parametrize("short_edge", [0, 97, 800])
def test_pixels_are_those_of_the_library(size, channels, short_edge, monkeypatch):
    monkeypatch.setattr(pixels, "_has_byte_kernel", lambda: False)  # PyTorch's copy of Pillow's filter rounds otherwise
    rgb = picture(*size)
    images, image_sizes = preprocess(rgb, metadata(channels=channels, short_edge=short_edge))
    image = rgb if channels == "RGB" else rgb[:, :, ::-1]
    want = ResizeShortestEdge([short_edge, short_edge], 1333).get_transform(image).apply_image(image)
    assert images.dtype == np.float32 and image_sizes.dtype == np.int64
    assert np.array_equal(images[0], want.transpose(2, 0, 1))
    assert image_sizes.tolist() == [list(want.shape[:2])]


def test_fixed_size_is_filled_up_with_zeros():
    images, image_sizes = preprocess(picture(50, 40) | 1, metadata(size=[64, 96]))
    assert images.shape == (1, 3, 64, 96) and image_sizes.tolist() == [[50, 40]]
    assert images[:, :, :50, :40].all() and not images[:, :, 50:].any() and not images[:, :, :, 40:].any()


def write(path, mode, orientation):
    image = Image.fromarray(picture(20, 30)).convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    image.save(path, exif=exif)


@pytest.mark.parametrize("policy", ["apply", "ignore"])
@pytest.mark.parametrize("orientation", [0, *range(1, 10)])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff"])
def test_images_are_turned_like_those_of_the_library(suffix, orientation, policy, tmp_path):
    path = tmp_path / f"image{suffix}"
    write(path, "RGB", orientation)
    got = load_image(path, policy)
    assert np.array_equal(got, read_image(path, "RGB", exif=policy))
    with Image.open(path) as image:
        assert np.array_equal(load_image(image, policy), got)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "CMYK", "I"])
def test_modes_are_converted_like_those_of_the_library(mode, tmp_path):
    path = tmp_path / ("image.tiff" if mode in ("CMYK", "I") else "image.png")
    write(path, mode, 0)
    got = load_image(path)
    assert got.shape == (20, 30, 3) and np.array_equal(got, read_image(path, "RGB"))


def test_arrays_are_taken():
    grey = picture(20, 30)[:, :, 0]
    assert np.array_equal(load_image(grey), np.stack([grey] * 3, axis=2))
    assert np.array_equal(load_image(picture(20, 30)), picture(20, 30))


def test_what_is_not_an_image_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image .*missing\.jpg"):
        load_image(tmp_path / "missing.jpg")
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path)
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(OSError, match=r"text\.jpg is damaged, or not an image"):
        load_image(tmp_path / "text.jpg")
    write(tmp_path / "cut.jpg", "RGB", 0)
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match=r"cut\.jpg is damaged"):
        load_image(tmp_path / "cut.jpg")
    Image.new("1", (14000, 14000)).save(tmp_path / "large.png")
    with pytest.raises(OSError, match=r"large\.png has more pixels than Pillow opens .* Make it smaller"):
        load_image(tmp_path / "large.png")
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png: .* from 0 to 65535"):
        load_image(tmp_path / "deep.png")
    write(tmp_path / "fractions.tiff", "F", 0)
    with pytest.raises(ValueError, match=r"fractions\.tiff: .* whole numbers"):
        load_image(tmp_path / "fractions.tiff")
    for array in (np.zeros((3, 4, 3)), np.zeros((3, 4, 4), np.uint8), np.zeros((1, 3, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="Expected an array of uint8"):
            load_image(array)
    with pytest.raises(ValueError, match="no pixels"):
        load_image(np.zeros((0, 4, 3), np.uint8))
