"""Images and results in columns: every form in which engines hand images over, and types that do not depend on them."""

import io

import numpy as np
import pytest
from PIL import Image

from detectron2.inference.columns import ROW_COLUMNS, columns_of, frames_of, require_pyarrow, table_of

THING = {"class_id": 0, "class": "cat", "score": 0.5, "box_xyxy": [0.0, 1.0, 2.0, 3.0]}


def read(batch, image_format="BGR", **options):
    return list(frames_of(batch, image_format=image_format, exif="apply", **options))


def objects(*values):
    column = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        column[i] = value
    return column


def png(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def test_nothing():
    assert (
        read({"image": np.zeros((0, 4, 6, 3), np.uint8)}) == read({"path": []}) == read({"bytes": []}, workers=2) == []
    )
    columns = columns_of([])
    assert tuple(columns) == ROW_COLUMNS and all(column.shape == (0,) for column in columns.values())


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_form_gives_the_same_pixels(image, tmp_path, workers):
    path = str(tmp_path / "a.png")
    Image.fromarray(image).save(path)
    forms = [
        {"image": image[None]},
        {"image": objects(image)},
        {"image": [Image.fromarray(image)]},
        {"bytes": objects(png(image))},
        {"bytes": np.array([png(image)])},
        {"path": np.array([path])},
    ]
    for batch in forms:
        (frame,) = read(batch, workers=workers)
        np.testing.assert_array_equal(frame.image, image[:, :, ::-1])
        assert frame.error is None and frame.index == 0
    assert frame.path == frame.name == path
    np.testing.assert_array_equal(read(forms[0], "RGB")[0].image, image)


def test_sizes_and_grey(image):
    grey = image[:, :3, 0]
    frames = read({"image": objects(image, grey, grey[:, :, None])})
    assert [frame.image.shape for frame in frames] == [(4, 6, 3), (4, 3, 3), (4, 3, 3)]
    for frame in frames[1:]:
        np.testing.assert_array_equal(frame.image, np.stack([grey] * 3, axis=-1))
    (frame,) = read({"image": grey[None]}, "L")
    np.testing.assert_array_equal(frame.image, grey[:, :, None])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_an_error_in_its_place(image, tmp_path, workers):
    batch = {"bytes": objects(png(image), None, b"damaged", b"", 3), "path": ["a", "b", "c", None, "e"]}
    good, *bad = read(batch, workers=workers)
    assert good.error is None and [frame.name for frame in bad] == ["b", "c", "image 3", "e"]
    texts = ["None in its place", "'c' is not an image", "empty", "got int"]
    assert all(text in str(frame.error) and frame.image is None for text, frame in zip(texts, bad, strict=True))
    (missing,) = read({"path": [str(tmp_path / "no.png")]})
    assert isinstance(missing.error, FileNotFoundError)
    (float16,) = read({"image": np.zeros((1, 2, 3, 4, 5))})
    assert "expected numbers of shape (height, width)" in str(float16.error)


def test_a_batch_without_images():
    for batch, there in (({"picture": [1], "id": [2]}, "picture, id"), ({}, "no columns")):
        with pytest.raises(ValueError, match=f"a column image, bytes or path, got {there}"):
            read(batch)
    with pytest.raises(ValueError, match="equal length, got image: 2, path: 1"):
        read({"image": np.zeros((2, 4, 6, 3), np.uint8), "path": ["a"]})


def test_rows_of_equal_length_stay_lists():
    rows = [{"file": "a", "objects": [THING, THING]}, {"file": "b", "objects": [THING, THING]}]
    columns = columns_of(rows)
    assert columns["objects"].shape == (2,) and columns["objects"][1] == [THING, THING]
    assert list(columns["segments"]) == [None, None]


def test_types_of_a_table_do_not_depend_on_what_was_found():
    pytest.importorskip("pyarrow")
    rows = [{"file": "a", "height": 4, "width": 6, "objects": []}, {"file": "b", "error": "damaged"}, {"file": "c"}]
    found = [{**rows[0], "objects": [{**THING, "keypoints": [[1.0, 2.0, 0.5]]}], "segments": [], "pixel_classes": []}]
    tables = [table_of(columns_of(some)) for some in (rows, found, [])]
    assert tables[0].schema == tables[1].schema == tables[2].schema
    assert tables[0].to_pylist()[1]["error"] == "damaged" and tables[0].to_pylist()[0]["objects"] == []
    (row,) = tables[1].to_pylist()
    assert row["objects"][0]["keypoints"] == [[1.0, 2.0, 0.5]] and row["objects"][0]["mask"] is None


def test_without_pyarrow(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'detectron2\[bulk\]'"):
        require_pyarrow()
