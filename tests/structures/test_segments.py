import torch

from detectron2.structures.segments import SEGMENT_COLUMNS, segments_of_table, table_of_segments

THING = {"id": 1, "isthing": True, "category_id": 0, "score": 0.1, "instance_id": 3}
STUFF = {"id": 2, "isthing": False, "category_id": 5, "area": 70}


def test_no_segments():
    table = table_of_segments([])
    assert table.shape == (0, len(SEGMENT_COLUMNS)) and table.dtype == torch.float64
    assert segments_of_table(table) == []


def test_there_and_back():
    table = table_of_segments([THING, STUFF, {}])
    assert table[0, :5].tolist() == [1, 1, 0, 0.1, 3]
    back = segments_of_table(table)
    assert back == [THING, STUFF, {}]
    assert [type(value) for value in back[0].values()] == [int, bool, int, float, int]


def test_other_segments_have_no_table():
    assert table_of_segments([STUFF, {**THING, "colour": 3}]) is None
    assert table_of_segments([{**THING, "score": torch.tensor(0.5)}]) is None
