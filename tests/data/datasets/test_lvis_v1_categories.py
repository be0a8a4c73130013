"""The table of LVIS v1, against properties of the data set and rows that the paper's tables show."""

from collections import Counter

from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES


def test_ids_and_names_are_complete():
    assert [c["id"] for c in LVIS_CATEGORIES] == list(range(1, 1204))
    names = [c["name"] for c in LVIS_CATEGORIES]
    assert len(set(names)) == 1203 and (names[0], names[-1]) == ("aerosol_can", "zucchini")
    assert all(c["synonyms"] == [c["name"]] for c in LVIS_CATEGORIES)


def test_first_row():
    row = {"id": 1, "name": "aerosol_can", "synonyms": ["aerosol_can"], "image_count": 64, "frequency": "c"}
    assert LVIS_CATEGORIES[0] == row


def test_frequency_groups():
    assert Counter(c["frequency"] for c in LVIS_CATEGORIES) == {"r": 337, "c": 461, "f": 405}
    groups = {"r": range(1, 11), "c": range(11, 101), "f": range(101, 100_001)}
    assert all(c["image_count"] in groups[c["frequency"]] for c in LVIS_CATEGORIES)
