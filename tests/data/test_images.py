"""Kinds of image files that users have: what `read_image` makes of each, and of damaged ones."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps

import detectron2.data.transforms as T
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, images
from detectron2.data.detection_utils import read_image
from detectron2.data.formats.reading import image_size_hw
from detectron2.structures import BoxMode

RNG = np.random.default_rng(0)
H, W = 20, 30


def picture(*channels):
    return RNG.integers(0, 256, (H, W, *channels)).astype(np.uint8)


def smooth():
    """What JPEG keeps nearly as it is."""
    y, x = np.mgrid[0:H, 0:W]
    return np.stack([8 * x, 12 * y, 5 * (x + y)], axis=2).astype(np.uint8)


@pytest.fixture(params=["opencv", "pillow"])
def jpeg_decoder(request, monkeypatch):
    if request.param == "pillow":
        monkeypatch.setattr(images, "opencv", lambda: None)
    else:
        pytest.importorskip("cv2")
    return request.param


@pytest.mark.parametrize("size_hw", [(1, 1), (37, 53), (3, 200), (16, 17)])
@pytest.mark.parametrize("options", [{"subsampling": i} for i in range(3)] + [{"keep_rgb": True, "subsampling": 0}])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_files_as_pillow_reads_them(tmp_path, jpeg_decoder, size_hw, options, progressive):
    pixels = RNG.integers(0, 256, (*size_hw, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=80, progressive=progressive, **options)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(image).astype(int)
    for image_format, order in (("RGB", slice(None)), ("BGR", slice(None, None, -1)), (None, slice(None))):
        got = read_image(tmp_path / "a.jpg", image_format)
        assert got.flags.writeable and got.flags.c_contiguous
        # The same bytes where both were built with the same libjpeg, else the rounding of the transform differs.
        assert np.abs(got[:, :, order] - expected).max() <= 1


def test_jpeg_files_with_more_behind_their_end(tmp_path, jpeg_decoder):
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", quality=95)
    expected = read_image(tmp_path / "a.jpg", "RGB")
    with open(tmp_path / "a.jpg", "ab") as f:
        f.write(b"and more")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg", "RGB"), expected)


def test_jpeg_files_that_opencv_refuses_are_read_by_pillow(tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2")
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", quality=95)
    expected = read_image(tmp_path / "a.jpg", "BGR")

    def refuse(*_):
        raise cv2.error("too large")

    for answer in (refuse, lambda *_: None, lambda *_: np.zeros((3, 4, 3), np.uint8)):
        monkeypatch.setattr(cv2, "imdecode", answer)
        np.testing.assert_array_equal(read_image(tmp_path / "a.jpg", "BGR"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("suffix", "options"), [("jpg", {"quality": 95}), ("png", {}), ("webp", {"lossless": True}), ("tif", {})]
)
def test_all_orientations_in_all_formats(tmp_path, jpeg_decoder, suffix, options, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored = Image.fromarray(smooth())
    stored.save(path, exif=exif, **options)
    turned = stored.copy()
    turned.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(turned)).astype(int)
    for image_format, order in (("RGB", slice(None)), ("BGR", slice(None, None, -1)), (None, slice(None))):
        got = read_image(path, image_format)
        assert got.shape == ((H, W, 3) if orientation < 5 else (W, H, 3))
        assert np.abs(got[:, :, order] - expected).max() <= (12 if suffix == "jpg" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_that_is_ignored(tmp_path, jpeg_decoder, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(smooth()).save(path, exif=exif)
    for image_format, order in (("RGB", slice(None)), ("BGR", slice(None, None, -1)), (None, slice(None))):
        got = read_image(path, image_format, exif="ignore")
        assert got.shape == (H, W, 3) and np.abs(got[:, :, order] - smooth().astype(int)).max() <= 20
    assert image_size_hw(str(path), "ignore") == (H, W)


def test_policies_of_exif():
    with pytest.raises(ValueError, match=r"INPUT.EXIF.*'never'"):
        read_image("a.jpg", exif="never")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [None, 3, bytes(range(256))], ids=["opaque", "one colour", "table"])
def test_palettes(tmp_path, transparency):
    indices = picture()
    colours = RNG.integers(0, 256, (256, 3)).astype(np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.reshape(-1).tolist())
    image.putpalette(colours.reshape(-1).tolist())
    image.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), indices)  # labels, where it is a label map
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "RGB"), colours[indices])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "BGR"), colours[indices][:, :, ::-1])


@pytest.mark.parametrize(("channels", "grey"), [(2, True), (4, False)])
def test_transparency_is_left_out(tmp_path, channels, grey):
    pixels = picture(channels)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = np.repeat(pixels[:, :, :1], 3, axis=2) if grey else pixels[:, :, :3]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "RGB"), expected)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize("mode", ["CMYK", "L", "YCbCr"])
def test_jpeg_of_other_colour_spaces(tmp_path, jpeg_decoder, mode):
    image = Image.fromarray(smooth()).convert(mode)
    image.save(tmp_path / "a.jpg", quality=95)
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(read_image(tmp_path / "a.jpg", "RGB") - expected).max() <= 16
    assert np.abs(read_image(tmp_path / "a.jpg", "BGR")[:, :, ::-1] - expected).max() <= 16


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_the_first_of_several_frames(tmp_path, suffix):
    frames = [Image.new("RGB", (W, H), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert (read_image(tmp_path / f"a.{suffix}", "RGB") == (255, 0, 0)).all()


@pytest.mark.parametrize("image_format", [None, "RGB", "BGR", "L"])
def test_images_may_be_written_to(tmp_path, image_format):
    Image.fromarray(picture(3)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", image_format)
    image[:] = 7
    assert (image == 7).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "gif"])
def test_truncated_files(tmp_path, jpeg_decoder, suffix):
    noise = RNG.integers(0, 256, (200, 200, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format={"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    whole = buffer.getvalue()
    path = tmp_path / f"half.{suffix}"
    for size in (len(whole) // 2, 20):
        path.write_bytes(whole[:size])
        for image_format in ("BGR", None):
            with pytest.raises(OSError, match=rf"half\.{suffix}"):
                read_image(path, image_format)


def test_truncated_files_can_be_asked_for(tmp_path, jpeg_decoder, monkeypatch):
    buffer = io.BytesIO()
    Image.fromarray(np.full((200, 200, 3), 90, np.uint8)).save(buffer, format="jpeg")
    (tmp_path / "half.jpg").write_bytes(buffer.getvalue()[:-20])
    with pytest.raises(OSError, match=r"half\.jpg.*truncated"):
        read_image(tmp_path / "half.jpg", "BGR")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    image = read_image(tmp_path / "half.jpg", "BGR")
    assert image.shape == (200, 200, 3) and (image[0] == 90).all()


def big_endian_tiff(pixels):
    """A grey TIFF of 16 bits in the byte order of Motorola, one strip, no compression."""
    h, w = pixels.shape
    data = pixels.astype(">u2").tobytes()
    entries = [(256, 4, w), (257, 4, h), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    entries += [(277, 3, 1), (278, 4, h), (279, 4, len(data))]
    directory = struct.pack(">H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack(">HHI", tag, kind, 1) + struct.pack(">I" if kind == 4 else ">Hxx", value)
    return struct.pack(">2sHI", b"MM", 42, 8 + len(data)) + data + directory + bytes(4)


def test_deep_images_have_the_byte_order_of_the_machine(tmp_path):
    deep = np.arange(H * W, dtype=np.uint16).reshape(H, W) * 100
    (tmp_path / "a.tif").write_bytes(big_endian_tiff(deep))
    image = read_image(tmp_path / "a.tif")
    assert image.dtype == np.dtype("uint16")
    np.testing.assert_array_equal(torch.from_numpy(image).numpy(), deep)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((H, W), 0.5, np.float32), "mode F and values from 0.5 to 0.5.*'L' would round.*INPUT.FORMAT: null"),
        (np.full((H, W), 300, np.float32), "cut off"),
        (np.full((H, W), -1, np.float32), "cut off"),
        (np.full((H, W), -1, np.int32), "mode I and values from -1 to -1.*cut off"),
    ],
)
def test_values_that_8_bits_do_not_hold(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), values)
    with pytest.raises(ValueError, match=message):
        read_image(tmp_path / "a.tif", "L")


def test_whole_numbers_in_floating_point(tmp_path):
    labels = picture()
    Image.fromarray(labels.astype(np.float32)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", "L")[:, :, 0], labels)


# --- arrays of NumPy -------------------------------------------------------------------------------------------------

ARRAYS = {
    "grey": picture(),
    "four channels": picture(4),
    "deep": RNG.integers(0, 60000, (H, W, 6)).astype(np.uint16),
    "big-endian": RNG.integers(0, 60000, (H, W)).astype(">u2"),
    "floating point": RNG.random((H, W, 7)).astype(np.float32),
    "columns first": np.asfortranarray(picture(3)),
}


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 5), (4, 4, 0)])
def test_arrays_without_pixels(tmp_path, shape):
    np.save(tmp_path / "empty.npy", np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"empty\.npy.*no pixels"):
        read_image(tmp_path / "empty.npy")


def test_files_that_are_no_image_say_what_they_are(tmp_path, monkeypatch):
    (tmp_path / "a.png").touch()
    with pytest.raises(OSError, match=r"a\.png': it is empty"):
        read_image(tmp_path / "a.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(OSError, match=r"large\.png'.*81 pixels.*MAX_IMAGE_PIXELS = None"):
        read_image(tmp_path / "large.png")


def test_an_array_that_claims_more_than_the_file_has(tmp_path):
    np.save(tmp_path / "a.npy", picture())
    content = (tmp_path / "a.npy").read_bytes()
    shape = f"({H}, {W})".encode()
    (tmp_path / "a.npy").write_bytes(
        content.replace(shape + b", }" + b" " * 20, b"(300000, 1000000), }" + b" " * (len(shape) + 3))
    )
    with pytest.raises(ValueError, match=r"a\.npy.*claims uint8 of shape \(300000, 1000000\), but only"):
        read_image(tmp_path / "a.npy")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop"])
@pytest.mark.parametrize("suffix", ["png", "npy"])
def test_what_is_no_file(tmp_path, kind, suffix):
    path = tmp_path / f"a.{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(OSError, match=rf"cannot read the image '.*a\.{suffix}'"):
        read_image(path)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("suffix", ["npy", "NPZ"])
def test_arrays_are_kept(tmp_path, name, suffix):
    path = tmp_path / f"a.{suffix}"
    with path.open("wb") as f:
        np.save(f, ARRAYS[name]) if suffix == "npy" else np.savez_compressed(f, image=ARRAYS[name])
    image = read_image(path)
    np.testing.assert_array_equal(image, ARRAYS[name])
    assert image.dtype.isnative and image.flags.c_contiguous and image.flags.writeable


def test_formats_of_arrays(tmp_path):
    rgb, grey = picture(3), picture()
    np.save(tmp_path / "rgb.npy", rgb)
    np.save(tmp_path / "grey.npy", grey.astype(np.int64))
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.npy", "RGB"), rgb)
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.npy", "BGR"), rgb[:, :, ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "grey.npy", "L"), grey[:, :, None])
    np.testing.assert_array_equal(read_image(tmp_path / "grey.npy", "RGB"), np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize("array", [picture(4), picture().astype(np.uint16) + 256, picture(3) / 255])
def test_arrays_that_are_no_pictures_have_no_format(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=r"a\.npy.*shape \(20, 30.*'BGR'.*INPUT.FORMAT: null.*PIXEL_MEAN"):
        read_image(tmp_path / "a.npy", "BGR")


def test_files_that_hold_no_image_array(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4, 5)))
    with pytest.raises(ValueError, match=r"a\.npy.*\(2, 3, 4, 5\).*\(height, width, channels\)"):
        read_image(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros((2, 3), dtype=complex))
    with pytest.raises(ValueError, match=r"b\.npy.*complex128"):
        read_image(tmp_path / "b.npy")
    np.savez(tmp_path / "c.npz", image=picture(), other=picture())
    with pytest.raises(ValueError, match=r"c\.npz.*2 arrays \['image', 'other'\]"):
        read_image(tmp_path / "c.npz")
    np.save(tmp_path / "d.npy", np.array([{"not": "run"}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"d\.npy.*allow_pickle=False"):
        read_image(tmp_path / "d.npy")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_damaged_arrays(tmp_path, suffix):
    whole = tmp_path / f"a.{suffix}"
    np.save(whole, picture()) if suffix == "npy" else np.savez(whole, picture())
    path = tmp_path / f"half.{suffix}"
    for content in (whole.read_bytes()[:200], b"hello", b""):
        path.write_bytes(content)
        with pytest.raises((OSError, ValueError), match=rf"cannot read the image .*half\.{suffix}"):
            read_image(path)
    with pytest.raises(FileNotFoundError, match=rf"none\.{suffix}"):
        read_image(tmp_path / f"none.{suffix}")


@pytest.mark.parametrize(("channels", "dtype"), [(5, np.uint8), (6, np.uint16), (2, np.float64)])
def test_many_channels_through_the_mapper(tmp_path, channels, dtype):
    pixels = RNG.integers(0, 200, (H, W, channels)).astype(dtype)
    np.save(tmp_path / "a.npy", pixels)
    box = {"bbox": [3, 4, 10, 8], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    record = {"file_name": str(tmp_path / "a.npy"), "height": H, "width": W, "annotations": [box]}
    cfg = get_cfg()
    cfg.merge_from_list(["INPUT.FORMAT", "None", "MODEL.PIXEL_MEAN", [0.0] * channels])
    same_size = DatasetMapper(cfg, augmentations=[T.RandomFlip(1.0)])(record)
    assert same_size["image"].dtype == {np.float64: torch.float32, np.uint16: torch.uint16}.get(dtype, torch.uint8)
    np.testing.assert_array_equal(same_size["image"].numpy(), pixels[:, ::-1].transpose(2, 0, 1))
    larger = DatasetMapper(cfg, augmentations=[T.Resize((2 * H, 2 * W))])(record)
    assert larger["image"].shape == (channels, 2 * H, 2 * W)
    corners = larger["image"].double()[:, [0, -1]][:, :, [0, -1]].numpy()
    np.testing.assert_allclose(corners, pixels[[0, -1]][:, [0, -1]].transpose(2, 0, 1), atol=1e-4)
    assert larger["instances"].gt_boxes.tensor.tolist() == [[6, 8, 20, 16]]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.array([[7, 9]], np.uint8), [[[7] * 3, [9] * 3]]),
        (np.array([[[7, 1], [9, 2]]], np.uint8), [[[7] * 3, [9] * 3]]),
        (np.array([[[7, 1, 2, 3, 4]]], np.uint8), [[[7, 1, 2]]]),
        (np.array([[100, 300, 1100]], np.uint16), [[[0] * 3, [51] * 3, [255] * 3]]),
        (np.array([[-1.0, np.nan, 1.0]]), [[[0] * 3, [0] * 3, [255] * 3]]),
        (np.full((1, 1, 3), 0.5, np.float32), [[[0] * 3]]),
        (np.zeros((0, 2), np.uint16), np.zeros((0, 2, 3))),
    ],
    ids=["grey", "two", "five", "16 bits", "float", "flat", "empty"],
)
def test_pictures_to_look_at(image, expected):
    got = images.viewable_rgb(image)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)


def test_lost_bits_are_told_of(tmp_path, caplog):
    """Pillow has no mode for three channels of 16 bits; such a file is written here by hand."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + np.full((W, 3), 0x1234, ">u2").tobytes() for _ in range(H))
    header = struct.pack(">IIBBBBB", W, H, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    Image.fromarray(np.zeros((H, W), np.uint16)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").dtype == np.uint16
    assert (read_image(tmp_path / "a.png", "RGB") == 0x12).all() and not caplog.records
    assert (read_image(tmp_path / "a.png") == 0x12).all()
    assert "a.png' has 16 bits per channel, of which Pillow keeps 8" in caplog.text


@pytest.mark.parametrize("shape", [(0, 4, 3), (3, 4), (3, 4, 1), (3, 4, 3), (3, 4, 6)])
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(
    ("dtype", "expected_dtype"), [("uint8", "uint8"), ("uint16", "uint16"), ("int16", "int16"), ("float64", "float32")]
)
def test_to_chw_tensor(shape, flipped, dtype, expected_dtype):
    array = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    array = array[:, ::-1] if flipped else array
    tensor = images.to_chw_tensor(array)
    expected = np.moveaxis(array.reshape(*shape[:2], -1) if array.size else array, 2, 0)
    assert tensor.dtype == getattr(torch, expected_dtype)
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_pictures_of_one_bit_are_black_and_white(tmp_path):
    Image.new("1", (3, 2), 1).save(tmp_path / "a.png")
    image = read_image(str(tmp_path / "a.png"))
    assert image.dtype == np.uint8 and image.tolist() == [[255] * 3] * 2
