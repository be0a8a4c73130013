"""The targets of Panoptic-DeepLab against a loop over segments and pixels."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.projects.panoptic_deeplab import PanopticDeepLabTargetGenerator

THINGS = [11, 13]


def _segment(i, category, iscrowd=0):
    return {"id": i, "category_id": category, "iscrowd": iscrowd}


def _slowly(g, panoptic, segments):
    """The definition, one pixel at a time."""
    h, w = panoptic.shape
    out = {
        "sem_seg": np.full((h, w), g.ignore_label),
        "center": np.zeros((h, w)),
        "offset": np.zeros((2, h, w)),
        "sem_seg_weights": np.ones((h, w)),
        "center_weights": np.zeros((1, h, w)),
        "offset_weights": np.zeros((1, h, w)),
    }
    points = []
    reach = 3 * g.sigma + 1
    for s in segments:
        pixels = [(y, x) for y in range(h) for x in range(w) if panoptic[y, x] == s["id"]]
        is_thing, is_crowd = s["category_id"] in THINGS, bool(s["iscrowd"])
        if not pixels:
            continue
        cy, cx = np.mean(pixels, axis=0)
        if is_thing:
            points.append([cy, cx])
            my, mx = round(cy), round(cx)
            for y in range(max(0, my - reach), min(h, my + reach + 1)):
                for x in range(max(0, mx - reach), min(w, mx + reach + 1)):
                    value = math.exp(-((y - my) ** 2 + (x - mx) ** 2) / (2 * g.sigma**2))
                    out["center"][y, x] = max(out["center"][y, x], value)
        for y, x in pixels:
            if not (is_crowd and g.ignore_crowd_in_semantic):
                out["sem_seg"][y, x] = s["category_id"]
            if is_thing and len(pixels) < g.small_instance_area:
                out["sem_seg_weights"][y, x] = g.small_instance_weight
            if is_thing:
                out["offset"][:, y, x] = cy - y, cx - x
            if not is_crowd:
                out["center_weights"][0, y, x] = 1
                if is_thing or not g.ignore_stuff_in_offset:
                    out["offset_weights"][0, y, x] = 1
    return out, points


def _compare(g, panoptic, segments):
    found = g(panoptic, segments)
    expected, points = _slowly(g, panoptic, segments)
    assert found["sem_seg"].dtype.is_floating_point is False
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        np.testing.assert_allclose(found[name].numpy(), value, atol=1e-6, err_msg=name)
    assert len(found["center_points"]) == len(points)
    if points:
        np.testing.assert_allclose(found["center_points"], points)


def test_nothing_annotated():
    for panoptic in (np.zeros((4, 5), dtype=np.int32), np.zeros((0, 0), dtype=np.int32)):
        found = PanopticDeepLabTargetGenerator(255, THINGS)(panoptic, [])
        assert (found["sem_seg"] == 255).all() and found["center"].sum() == 0 and found["center_points"] == []
        assert found["offset"].shape == (2, *panoptic.shape)
        assert found["center_weights"].sum() == found["offset_weights"].sum() == 0


def test_one_instance_by_hand():
    panoptic = np.zeros((7, 9), dtype=np.int32)
    panoptic[2:5, 3:6] = 7
    found = PanopticDeepLabTargetGenerator(255, THINGS, sigma=1)(panoptic, [_segment(7, 11)])
    assert found["center_points"] == [[3.0, 4.0]]
    assert found["center"][3, 4] == 1
    assert found["center"][3, 5] == pytest.approx(math.exp(-0.5))
    assert found["center"][2, 5] == pytest.approx(math.exp(-1))
    assert found["center"][3, 8] == pytest.approx(math.exp(-8)) and found["center"][3, 0] > 0
    assert found["offset"][:, 2, 3].tolist() == [1, 1] and found["offset"][:, 4, 5].tolist() == [-1, -1]
    assert found["offset"][:, 0, 0].tolist() == [0, 0]


@pytest.mark.parametrize("ids", [[3, 70, 5, 9], [2**24 - 1, 300, 2**20, 9]])
@pytest.mark.parametrize("flags", [(False, False), (True, False), (True, True)])
def test_as_the_loop(ids, flags):
    panoptic = np.random.default_rng(0).choice([*ids[:3], 1], size=(6, 8)).astype(np.int64)
    segments = [_segment(ids[0], 11), _segment(ids[1], 2), _segment(ids[2], 13, 1), _segment(ids[3], 11)]
    g = PanopticDeepLabTargetGenerator(
        255,
        THINGS,
        sigma=2,
        ignore_stuff_in_offset=flags[0],
        ignore_crowd_in_semantic=flags[1],
        small_instance_area=13,
        small_instance_weight=3,
    )
    _compare(g, panoptic, segments)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.integers(1, 3), st.integers(0, 10**6))
def test_any_map(height, width, count, sigma, seed):
    rng = np.random.default_rng(seed)
    ids = rng.choice(40, size=count, replace=False)
    panoptic = rng.choice(np.append(ids, 99), size=(height, width))
    segments = [_segment(int(i), int(rng.choice([11, 13, 2, 4])), int(rng.integers(2))) for i in ids]
    _compare(PanopticDeepLabTargetGenerator(255, THINGS, sigma=sigma), panoptic, segments)


def test_wrong_input():
    g = PanopticDeepLabTargetGenerator(255, THINGS)
    with pytest.raises(ValueError, match="several segments of the id 4"):
        g(np.zeros((2, 2), dtype=np.int32), [_segment(4, 1), _segment(4, 2)])
    with pytest.raises(ValueError, match=r"\(height, width\)"):
        g(np.zeros((2, 2, 3), dtype=np.int32), [])


def test_iscrowd_may_be_missing():
    found = PanopticDeepLabTargetGenerator(255, THINGS)(np.full((2, 2), 4), [{"id": 4, "category_id": 1}])
    assert found["center_weights"].min() == 1
