"""The table of LVIS v0.5."""

from detectron2.data.datasets.lvis_v0_5_categories import LVIS_CATEGORIES


def test_ids_and_names_are_complete():
    assert [c["id"] for c in LVIS_CATEGORIES] == list(range(1, 1231))
    names = [c["name"] for c in LVIS_CATEGORIES]
    assert len(set(names)) == 1230 and (names[0], names[-1]) == ("acorn", "zucchini")
    assert all(name == name.strip() != "" for name in names)
