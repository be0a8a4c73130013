import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

from detectron2.data import Metadata
from detectron2.modeling.postprocessing import paste_predicted_masks
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, Keypoints, PolygonMasks, ROIMasks
from detectron2.visualization import ColorMode, GenericMask, VideoVisualizer, Visualizer

HEIGHT, WIDTH = 120, 160


def blank(value=0):
    return np.full((HEIGHT, WIDTH, 3), value, dtype=np.uint8)


def metadata(**fields):
    return Metadata(thing_classes=["person", "dog"], **fields)


def box_mask(x1, y1, x2, y2):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def instances(masks=True):
    result = Instances((HEIGHT, WIDTH))
    result.pred_boxes = Boxes(torch.tensor([[10.0, 40, 60, 100], [80, 50, 150, 110]]))
    result.scores = torch.tensor([0.9, 0.8])
    result.pred_classes = torch.tensor([0, 1])
    if masks:
        result.pred_masks = torch.from_numpy(np.stack([box_mask(12, 42, 58, 98), box_mask(82, 52, 148, 108)]))
    return result


def test_the_image_is_checked():
    for shape in ((5, 5), (5, 5, 4)):
        with pytest.raises(ValueError, match="RGB image"):
            Visualizer(np.zeros(shape))


def test_attributes_that_projects_read():
    visualizer = Visualizer(blank(), metadata())
    assert visualizer.img.shape == (HEIGHT, WIDTH, 3)
    assert visualizer.metadata.thing_classes == ["person", "dog"]
    assert visualizer._instance_mode is ColorMode.IMAGE
    assert visualizer._default_font_size == 10
    assert visualizer.output is visualizer.get_output()
    assert Visualizer(blank()).metadata.get("thing_classes") is None


def test_letters_keep_their_size_on_a_scaled_canvas():
    assert Visualizer(blank(), scale=2)._default_font_size == 5


def test_a_box_is_drawn_where_it_is():
    image = Visualizer(blank()).draw_box((20, 30, 70, 90), alpha=1, edge_color="w").get_image()
    rows, columns = np.nonzero(image.any(axis=2))
    assert abs(columns.min() - 20) <= 3
    assert abs(columns.max() - 70) <= 3
    assert abs(rows.min() - 30) <= 3
    assert abs(rows.max() - 90) <= 3
    assert image[30, 45].min() == 255
    assert not image[60, 45].any()


def test_shapes_return_the_output():
    visualizer = Visualizer(blank())
    outputs = [
        visualizer.draw_text("x", (9, 9)),
        visualizer.draw_box((1, 2, 3, 4)),
        visualizer.draw_rotated_box_with_label((50, 50, 20, 10, 30), label="r"),
        visualizer.draw_circle((5, 5), "r"),
        visualizer.draw_line([1, 9], [2, 3], "g"),
        visualizer.draw_polygon(np.array([[1, 1], [9, 1], [5, 9]]), "b"),
        visualizer.draw_binary_mask(box_mask(1, 1, 9, 9)),
        visualizer.draw_soft_mask(np.full((HEIGHT, WIDTH), 0.5)),
        visualizer.overlay_instances(),
        visualizer.overlay_rotated_instances(),
    ]
    assert all(output is visualizer.output for output in outputs)


def test_lines_need_equally_many_coordinates():
    with pytest.raises(ValueError, match="got 2 and 1"):
        Visualizer(blank()).draw_line([1, 2], [3], "r")


def test_a_mask_is_filled_and_its_holes_are_not():
    mask = box_mask(20, 20, 100, 100) & ~box_mask(40, 40, 80, 80)
    image = Visualizer(blank()).draw_binary_mask(mask, "w", alpha=0.5).get_image()
    np.testing.assert_allclose(image[30, 30], 127, atol=1)
    assert not image[60, 60].any()
    assert not image[110, 110].any()


def test_small_regions_can_be_left_out():
    mask = box_mask(20, 20, 23, 23) | box_mask(60, 60, 100, 100)
    image = Visualizer(blank()).draw_binary_mask(mask, "w", area_threshold=50).get_image()
    assert not image[:50, :50].any()
    assert image[80, 80].any()
    assert not Visualizer(blank()).draw_binary_mask(mask, "w", area_threshold=1e5, text="x").get_image().any()


def test_text_of_a_mask_is_inside_its_largest_region():
    # a horseshoe, whose centre is outside of it
    mask = box_mask(10, 10, 130, 110) & ~box_mask(40, 10, 100, 90)
    visualizer = Visualizer(blank())
    places = []
    visualizer.draw_text = lambda text, position, **_: places.append(position)
    visualizer.draw_binary_mask(mask, text="horseshoe")
    ((x, y),) = places
    assert mask[int(y) + 5, int(x)]


def test_a_soft_mask_tints_by_probability():
    soft = np.zeros((HEIGHT, WIDTH))
    soft[:, 80:] = 0.5
    image = Visualizer(blank()).draw_soft_mask(soft, "r", alpha=0.5, text="t").get_image()
    assert not image[5, 5].any()
    np.testing.assert_allclose(image[5, 155], [64, 0, 0], atol=1)


def test_rotation_is_counter_clockwise():
    visualizer = Visualizer(blank())
    visualizer.draw_rotated_box_with_label((80, 60, 100, 4, 45), alpha=1, edge_color="w")
    rows, columns = np.nonzero(visualizer.output.get_image().any(axis=2))
    # to the right means up
    assert np.corrcoef(rows, columns)[0, 1] < -0.9


@pytest.mark.parametrize("mode", list(ColorMode))
@pytest.mark.parametrize("masks", [True, False])
def test_predictions(mode, masks):
    visualizer = Visualizer(blank(100), metadata(), instance_mode=mode)
    image = visualizer.draw_instance_predictions(instances(masks)).get_image()
    assert (image != 100).any()
    again = Visualizer(blank(100), metadata(), instance_mode=mode).draw_instance_predictions(instances(masks))
    np.testing.assert_array_equal(again.get_image(), image)


@pytest.mark.parametrize("mode", list(ColorMode))
def test_no_predictions(mode):
    empty = instances()[torch.zeros(2, dtype=torch.bool)]
    image = Visualizer(blank(100), metadata(), instance_mode=mode).draw_instance_predictions(empty).get_image()
    assert (image == 100).all()
    bare = Visualizer(blank(100)).draw_instance_predictions(Instances((HEIGHT, WIDTH)))
    assert (bare.get_image() == 100).all()


def test_labels_of_predictions():
    visualizer = Visualizer(blank(), metadata())
    texts = []
    draw_text = visualizer.draw_text
    visualizer.draw_text = lambda text, *args, **kwargs: (texts.append(text), draw_text(text, *args, **kwargs))
    visualizer.draw_instance_predictions(instances())
    assert sorted(texts) == ["dog 80%", "person 90%"]


def test_segmentation_mode_uses_the_colours_of_the_classes():
    meta = metadata(thing_colors=[[255, 0, 0], [0, 0, 255]])
    visualizer = Visualizer(blank(), meta, instance_mode=ColorMode.SEGMENTATION)
    image = visualizer.draw_instance_predictions(instances(), jittering=False).get_image()
    np.testing.assert_allclose(image[85, 30], [204, 0, 0], atol=1)
    np.testing.assert_allclose(image[100, 130], [0, 0, 204], atol=1)


def test_black_and_white_mode_keeps_colour_inside_the_masks():
    colourful = blank()
    colourful[..., 0] = 200
    visualizer = Visualizer(colourful, metadata(), instance_mode=ColorMode.IMAGE_BW)
    image = visualizer.draw_instance_predictions(instances()).get_image()
    assert np.ptp(image[5, 5].astype(int)) == 0
    assert np.ptp(image[85, 30].astype(int)) > 50


def test_encoded_masks_are_drawn_like_pixels():
    encoded = instances(masks=False)
    encoded.pred_masks_rle = [
        mask_util.encode(np.asfortranarray(m.numpy().astype(np.uint8))) for m in instances().pred_masks
    ]
    pictures = [
        Visualizer(blank(), metadata()).draw_instance_predictions(p).get_image() for p in (encoded, instances())
    ]
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize("mode", list(ColorMode))
def test_predictions_look_the_same_with_each_format_of_masks(mode):
    raw = instances(masks=False)
    raw.pred_masks = ROIMasks(torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.45)
    drawn = [paste_predicted_masks(raw, kind) for kind in ("full", "rle", "roi")]
    assert drawn[0].pred_masks.any()
    still = [Visualizer(blank(90), metadata(), instance_mode=mode).draw_instance_predictions(p) for p in drawn]
    video_mode = ColorMode.IMAGE if mode == ColorMode.SEGMENTATION else mode
    moving = [VideoVisualizer(metadata(), video_mode).draw_instance_predictions(blank(90), p) for p in drawn]
    for pictures in (still, moving):
        for other in pictures[1:]:
            np.testing.assert_array_equal(pictures[0].get_image(), other.get_image())
    nothing = Visualizer(blank(90), metadata(), instance_mode=mode).draw_instance_predictions(raw[:0])
    assert (nothing.get_image() == 90).all()


def test_raw_masks_alone_cannot_be_drawn():
    with pytest.raises(TypeError, match="draw_instance_predictions"):
        Visualizer(blank()).overlay_instances(masks=ROIMasks(torch.zeros(1, 7, 7)))


def test_masks_in_every_form():
    polygon = [[20.0, 20, 60, 20, 60, 70, 20, 70]]
    mask = box_mask(20, 20, 60, 70)
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    forms = [
        [polygon],
        [mask],
        [rle],
        mask[None],
        torch.from_numpy(mask[None]),
        BitMasks(torch.from_numpy(mask[None])),
        PolygonMasks([[np.array(polygon[0])]]),
        [GenericMask(mask, HEIGHT, WIDTH)],
    ]
    for form in forms:
        image = Visualizer(blank()).overlay_instances(masks=form, assigned_colors=["w"], alpha=0.5).get_image()
        np.testing.assert_allclose(image[40, 40], 127, atol=1)
        assert not image[100, 100].any()


def test_boxes_in_every_form():
    corners = [[20.0, 20, 60, 70]]
    pictures = [
        Visualizer(blank()).overlay_instances(boxes=form, labels=["a"], assigned_colors=["w"]).get_image()
        for form in (corners, np.array(corners), torch.tensor(corners), Boxes(torch.tensor(corners)))
    ]
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])
    for empty in ([], np.zeros((0, 4)), Boxes(torch.zeros(0, 4))):
        assert not Visualizer(blank()).overlay_instances(boxes=empty, labels=[]).get_image().any()


def test_rotated_boxes_are_recognised_by_their_width():
    visualizer = Visualizer(blank())
    drawn = []
    visualizer.draw_rotated_box_with_label = lambda box, **kwargs: drawn.append((list(box), kwargs["label"]))
    visualizer.overlay_instances(boxes=[[50, 50, 9, 9, 0], [50, 50, 40, 20, 30]], labels=["a", "b"])
    assert drawn == [([50, 50, 40, 20, 30], "b"), ([50, 50, 9, 9, 0], "a")]


def test_counts_must_agree():
    with pytest.raises(ValueError, match="'boxes': 1, 'labels': 2"):
        Visualizer(blank()).overlay_instances(boxes=[[1, 2, 3, 4]], labels=["a", "b"])


def test_small_instances_are_drawn_above_large_ones():
    masks = [box_mask(40, 40, 60, 60), box_mask(10, 10, 150, 110)]
    image = Visualizer(blank()).overlay_instances(masks=masks, assigned_colors=["r", "b"], alpha=1).get_image()
    assert image[50, 50].tolist() == [255, 0, 0]


def test_labels_do_not_cover_each_other():
    visualizer = Visualizer(blank())
    frames = []
    place = visualizer._label_placer.place

    def spy(size, corners):
        corner = place(size, corners)
        frames.append((*corner, corner[0] + size[0], corner[1] + size[1]))
        return corner

    visualizer._label_placer.place = spy
    boxes = [[40, 40, 90, 90], [42, 41, 92, 91], [44, 42, 94, 92]]
    visualizer.overlay_instances(boxes=boxes, labels=["first", "second", "third"])
    assert len(frames) == 3
    for k, a in enumerate(frames):
        for b in frames[k + 1 :]:
            assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


def test_keypoints_and_their_connections():
    meta = Metadata(
        keypoint_names=["nose", "left_shoulder", "right_shoulder"],
        keypoint_connection_rules=[("left_shoulder", "right_shoulder", (0, 0, 255))],
    )
    points = torch.tensor([[80.0, 20, 1.0], [40.0, 80, 1.0], [120.0, 80, 0.9]])
    image = Visualizer(blank(), meta).draw_and_connect_keypoints(points).get_image()
    assert image[80, 60, 2] > 200
    assert image[50, 80, 0] > 200
    for x, y in ((80, 20), (40, 80), (120, 80)):
        np.testing.assert_array_equal(image[y, x], [255, 0, 0])
    points[2, 2] = 0.01
    image = Visualizer(blank(), meta).draw_and_connect_keypoints(points).get_image()
    assert not image[80, 60].any()
    assert not image[80, 120].any()
    assert not Visualizer(blank(), meta).draw_and_connect_keypoints(points * 0).get_image().any()


def test_keypoints_of_several_instances():
    keypoints = Keypoints(torch.tensor([[[30.0, 30, 2]], [[90.0, 60, 2]]]))
    image = Visualizer(blank()).overlay_instances(keypoints=keypoints).get_image()
    assert image[30, 30, 0] == image[60, 90, 0] == 255


def test_semantic_segmentation():
    meta = Metadata(stuff_classes=["sky", "sea"], stuff_colors=[[255, 0, 0], [0, 255, 0]])
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    labels[60:] = 1
    labels[:, 140:] = 255
    for form in (labels, torch.from_numpy(labels)):
        image = Visualizer(blank(), meta).draw_sem_seg(form, alpha=0.5).get_image()
        np.testing.assert_allclose(image[10, 10], [127, 0, 0], atol=1)
        np.testing.assert_allclose(image[100, 10], [0, 127, 0], atol=1)
        assert not image[30, 155].any()


def panoptic():
    segments = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    segments[60:] = 1
    segments[20:50, 20:50] = 2
    info = [{"id": 1, "category_id": 0, "isthing": False}, {"id": 2, "category_id": 1, "isthing": True}]
    return segments, info


@pytest.mark.parametrize("mode", [ColorMode.IMAGE, ColorMode.IMAGE_BW])
def test_panoptic_segmentation(mode):
    meta = metadata(stuff_classes=["sea"], stuff_colors=[[0, 255, 0]], thing_colors=[[0, 0, 0], [0, 0, 255]])
    segments, info = panoptic()
    visualizer = Visualizer(blank(), meta, instance_mode=mode)
    image = visualizer.draw_panoptic_seg(torch.from_numpy(segments), info, alpha=0.5).get_image()
    np.testing.assert_allclose(image[110, 10], [0, 127, 0], atol=1)
    np.testing.assert_allclose(image[46, 25], [0, 0, 127], atol=1)
    assert not image[5, 100].any()
    assert Visualizer.draw_panoptic_seg_predictions is Visualizer.draw_panoptic_seg


def test_ground_truth_of_every_kind(tmp_path):
    from PIL import Image

    segments, info = panoptic()
    Image.fromarray(np.stack([segments, segments * 0, segments * 0], -1).astype(np.uint8)).save(tmp_path / "pan.png")
    Image.fromarray((segments == 1).astype(np.uint8)).save(tmp_path / "sem.png")
    meta = metadata(stuff_classes=["other", "sea"], stuff_colors=[[9, 9, 9], [0, 255, 0]])
    entry = {
        "annotations": [
            {
                "bbox": [100, 10, 40, 40],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 0,
                "segmentation": [[100.0, 10, 140, 10, 140, 50, 100, 50]],
                "keypoints": [120, 30, 2],
            },
            {
                "bbox": [10, 10, 15, 15],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 1,
                "iscrowd": 1,
                "segmentation": mask_util.encode(np.asfortranarray(box_mask(10, 10, 15, 15).astype(np.uint8))),
                "keypoints": [12, 12, 0],
            },
        ],
    }
    image = Visualizer(blank(), meta).draw_dataset_dict(entry).get_image()
    assert image[20, 120].any()
    image = Visualizer(blank(), meta).draw_dataset_dict({"sem_seg_file_name": str(tmp_path / "sem.png")}).get_image()
    np.testing.assert_allclose(image[110, 10], [0, 127, 0], atol=1)
    entry = {"pan_seg_file_name": str(tmp_path / "pan.png"), "segments_info": info}
    assert Visualizer(blank(), meta).draw_dataset_dict(entry).get_image()[110, 10].any()
    for nothing in ({}, {"annotations": []}):
        assert not Visualizer(blank(), meta).draw_dataset_dict(nothing).get_image().any()


def test_rotated_ground_truth():
    entry = {
        "annotations": [{"bbox": [80, 60, 60, 30, 20], "bbox_mode": BoxMode.XYWHA_ABS, "category_id": 0}],
    }
    assert Visualizer(blank(), metadata()).draw_dataset_dict(entry).get_image().any()


def test_jitter_is_small_and_repeatable():
    first = [Visualizer(blank())._jitter((0.5, 0.5, 0.5)) for _ in range(2)]
    assert first[0] == first[1] != (0.5, 0.5, 0.5)
    assert np.abs(np.array(first[0]) - 0.5).max() <= 0.12


def test_subclasses_change_labels_and_colours():
    class Plain(Visualizer):
        def _jitter(self, color):
            return color

        def draw_text(self, text, position, **kwargs):
            return self.output

    meta = metadata(thing_colors=[[255, 0, 0], [0, 0, 255]])
    image = Plain(blank(), meta, instance_mode=ColorMode.SEGMENTATION).draw_instance_predictions(instances())
    np.testing.assert_allclose(image.get_image()[85, 30], [204, 0, 0], atol=1)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_a_mask_with_a_hole_has_two_colours_along_the_border_of_the_picture(scale):
    visualizer = Visualizer(np.full((60, 80, 3), (255, 0, 0), np.uint8), scale=scale)
    mask = np.zeros((60, 80))
    mask[:, 20:60] = 1
    mask[10:20, 30:40] = 0
    drawn = visualizer.draw_binary_mask(mask, color="blue").get_image()
    for row in (0, -1):
        assert len({tuple(pixel) for pixel in drawn[row].tolist()}) == 2


class TestUnusualInstances:
    @pytest.mark.parametrize("labels", [[1, 2], torch.tensor([1, 2]), np.array(["1", "2"]), (str(i) for i in (1, 2))])
    def test_labels_are_written_whatever_their_type(self, labels):
        boxes = np.array([[5, 20, 40, 50], [45, 20, 75, 50]])
        image = np.zeros((60, 80, 3), np.uint8)
        want = Visualizer(image).overlay_instances(boxes=boxes, labels=["1", "2"]).get_image()
        assert (Visualizer(image).overlay_instances(boxes=boxes, labels=labels).get_image() == want).all()

    def test_fields_may_be_lists_and_colors_tensors(self):
        fields = {"scores": [0.5, 0.25], "pred_classes": [0, 1]}
        boxes = Boxes(torch.tensor([[5.0, 20, 40, 50], [45, 20, 75, 50]]))
        image = np.zeros((60, 80, 3), np.uint8)
        pictures = [
            Visualizer(image).draw_instance_predictions(Instances((60, 80), pred_boxes=boxes, **f)).get_image()
            for f in (fields, {name: torch.tensor(values) for name, values in fields.items()})
        ]
        assert (pictures[0] == pictures[1]).all()
        red = [
            Visualizer(image).draw_box((5, 5, 20, 20), edge_color=c, alpha=1).get_image()
            for c in ("red", torch.eye(3)[0])
        ]
        assert (red[0] == red[1]).all()

    @pytest.mark.parametrize("columns", [4, 5])
    def test_an_object_that_is_nowhere_is_left_out(self, columns):
        boxes = np.array([[20.0, 20, 40, 50, 0][:columns], [np.nan] * columns])
        image = np.zeros((60, 80, 3), np.uint8)
        colors = ["red", "blue"]
        got = Visualizer(image).overlay_instances(boxes=boxes, labels=["a", "b"], assigned_colors=colors).get_image()
        want = Visualizer(image).overlay_instances(boxes=boxes[:1], labels=["a"], assigned_colors=colors[:1])
        assert (got == want.get_image()).all()

    def test_annotations_without_boxes(self):
        record = {"annotations": [{"category_id": 0, "segmentation": [[10, 10, 50, 10, 50, 40]]}]}
        image = np.zeros((60, 80, 3), np.uint8)
        assert Visualizer(image).draw_dataset_dict(record).get_image()[15, 45].any()

    @pytest.mark.parametrize(
        ("annotation", "text"),
        [
            (
                {"bbox": [1, 1, 5, 5], "bbox_mode": 0},
                r"Annotation 0 has no 'category_id', only \['bbox', 'bbox_mode'\]",
            ),
            ({"category_id": 0, "keypoints": [1, 2, 2, 3]}, r"keypoints: expected x, y, visibility .* got \[4\]"),
        ],
    )
    def test_wrong_annotations_are_named(self, annotation, text):
        with pytest.raises(ValueError, match=text):
            Visualizer(np.zeros((60, 80, 3), np.uint8)).draw_dataset_dict({"annotations": [annotation]})

    @pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf")])
    def test_scale(self, scale):
        with pytest.raises(ValueError, match="scale must be a number above 0"):
            Visualizer(np.zeros((6, 8, 3), np.uint8), scale=scale)


def test_a_box_of_shares_is_drawn_where_the_one_in_pixels_is():
    image, label = np.zeros((60, 80, 3), np.uint8), {"category_id": 0}
    shares = {"bbox": [0.25, 0.5, 0.75, 1.0], "bbox_mode": BoxMode.XYXY_REL, **label}
    pixels = {"bbox": [20, 30, 60, 60], "bbox_mode": BoxMode.XYXY_ABS, **label}
    drawn = [Visualizer(image).draw_dataset_dict({"annotations": [a]}).get_image() for a in (shares, pixels)]
    assert drawn[0].any() and (drawn[0] == drawn[1]).all() and shares["bbox"] == [0.25, 0.5, 0.75, 1.0]
