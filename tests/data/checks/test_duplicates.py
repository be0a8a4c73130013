"""Annotations and images that are there twice are found."""

from hypothesis import given
from hypothesis import strategies as st

from detectron2.structures import BoxMode
from tests.data.checks.helpers import annotation, check, inspect, kinds, record


class TestTwice:
    """Duplicates are warned of: training goes on."""

    def test_annotations(self, warnings):
        first = record(
            annotation(id=1), annotation(id=2, category_id=1), annotation(id=3), annotation(bbox=[1, 2, 3, 5])
        )
        assert check(first, record(annotation(), image_id=8)) != []
        (text,) = warnings()
        assert "1 annotation has the box and the label of another" in text and "(id 3)" in text

    def test_the_same_box_in_other_modes(self, warnings):
        other = annotation(bbox=[1, 2, 4, 6], bbox_mode=BoxMode.XYXY_ABS)
        check(record(annotation(), other))
        assert "annotation 1 of 'a.jpg'" in warnings()[0]

    def test_image_ids(self, warnings):
        check(record(), record(file_name="b.jpg"), record(image_id=1))
        (text,) = warnings()
        assert "2 images have an image_id that another one has too: 'a.jpg' (image_id 7); 'b.jpg' (image_id 7)" in text

    def test_no_image_ids(self, warnings):
        dicts = [{"file_name": "a.jpg"}, {"file_name": "a.jpg"}]
        assert check(*dicts) == dicts and warnings() == []


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 6), max_size=30))
def test_duplicates_by_brute_force(rows):
    """Image, label, and a box: compared with a loop over pairs."""
    images = [record(image_id=i, file_name=f"{i}.jpg", width=9, height=9) for i in range(4)]
    for i, label, x, y, w, h in rows:
        images[i]["annotations"].append(annotation(bbox=[x, y, w + 1, h + 1], category_id=label))
    twice = contrary = 0
    for image in images:
        seen = image["annotations"]
        for n, a in enumerate(seen):
            same_box = [b for b in seen[:n] if b["bbox"] == a["bbox"]]
            same = [b for b in same_box if b["category_id"] == a["category_id"]]
            twice += bool(same)
            contrary += bool(same_box) and not same
    found = kinds(inspect(*images))
    assert (found.get("annotation-twice", 0), found.get("two-labels", 0)) == (twice, contrary)
    assert "annotation-nearly-twice" not in found  # sides are at most 4: the IoU is at most 3/4
