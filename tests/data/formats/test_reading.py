"""Values of annotation files are checked, and errors name the file and the place; files of other kinds are named."""

import json
import math
import pickle

import pytest

from detectron2.data.formats.reading import (
    AnnotationFileError,
    Meaning,
    Report,
    checked_file_name,
    checked_id,
    checked_objects,
    checked_size,
    describe,
    find_duplicates,
    is_polygon,
    load_json,
    read_json,
    shorten,
)


def test_read_json(tmp_path):
    (tmp_path / "a.json").write_text('{"images": []}')
    assert read_json(tmp_path / "a.json") == {"images": []}
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(AnnotationFileError, match="expected a JSON object") as e:
        read_json(tmp_path / "b.json")
    assert e.value.file == str(tmp_path / "b.json")
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)
    with pytest.raises(FileNotFoundError, match="no annotation file"):
        read_json(tmp_path / "c.json")


def test_checked_id():
    assert [checked_id(v, "f", "") for v in ("a", 3, 3.0, -1)] == ["a", 3, 3, -1]
    for value in (None, True, 1.5, math.nan, [1], 2**63):
        with pytest.raises(AnnotationFileError, match="f: images\\[0\\]: 'id' must be"):
            checked_id(value, "f", "images[0]")


def test_checked_size():
    assert checked_size(5, "f", "", "height") == checked_size(5.0, "f", "", "height") == 5
    for value in (None, 0, -1, 2.5, "5", 2**31):
        with pytest.raises(AnnotationFileError, match="'height' must be"):
            checked_size(value, "f", "", "height")


def test_checked_file_name():
    assert checked_file_name("ä/b.jpg", "f", "") == "ä/b.jpg"
    for value in ("", None, 3, "a\0b"):
        with pytest.raises(AnnotationFileError, match="'file_name'"):
            checked_file_name(value, "f", "")


def test_checked_objects():
    assert checked_objects({"a": [{}]}, "a", "f") == [{}] and checked_objects({}, "a", "f", required=False) == []
    for content, message in (({}, "the object is empty"), ({"a": 3}, "expected a list"), ({"a": [{}, 3]}, r"a\[1\]")):
        with pytest.raises(AnnotationFileError, match=message):
            checked_objects(content, "a", "f")


def test_words():
    assert describe({}) == "an object of 0 entries" and describe([1]) == "a list of 1 entry"
    assert describe(None) == "null" and describe("a") == "the string 'a'" and describe(True) == "the value true"
    assert shorten(range(7)) == "0, 1, 2, 3, 4 ... (7 in all)" and shorten([]) == ""
    assert find_duplicates([]) == [] and find_duplicates([1, 2, 1, [3], [3]]) == [1]


def test_is_polygon():
    assert is_polygon([0] * 6) and not any(map(is_polygon, ([], [0] * 4, [0] * 7, "abcdef", None)))


def test_report():
    meanings = {"bad": Meaning("error", "line", "no number", "Correct it."), "odd": Meaning("note", "box", "two", "")}
    report = Report(meanings)
    assert report.findings == []
    mistake = AnnotationFileError("f", "line 3", "it is empty.")
    for kind in ("odd", "bad", "odd"):
        report(kind, mistake)
    assert [(f.kind, f.level, f.count, f.what) for f in report.findings] == [
        ("bad", "error", 1, "1 line has no number"),
        ("odd", "note", 2, "2 boxes have two"),
    ]
    assert str(report.findings[0].cases[0]) == "line 3: it is empty"
    strict = Report(meanings, strict=True)
    strict("odd", mistake)
    with pytest.raises(AnnotationFileError, match="f: line 3: it is empty"):
        strict("bad", mistake)


def test_cut_off_anywhere(tmp_path):
    text = json.dumps({"a": [1, -2.5e3, True, False, None, float("nan"), -float("inf"), "x\\y\u1234"], "b": {}})
    for length in range(1, len(text)):
        (tmp_path / "a.json").write_text(text[:length])
        with pytest.raises(ValueError, match="it ends too early"):
            load_json(tmp_path / "a.json")


def test_several_values(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}\n{"a": 2}\n')
    with pytest.raises(ValueError, match="several values one after the other, as in JSON Lines"):
        load_json(tmp_path / "a.json")


def test_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_json(tmp_path)
