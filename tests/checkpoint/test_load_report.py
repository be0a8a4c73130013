"""The report of what was loaded; whole reports are in test_detection_checkpoint.py."""

import pytest

from detectron2.checkpoint.load_report import LoadReport


def test_nothing_differs(caplog):
    report = LoadReport(0, 0)
    report.require_complete("a.pth")
    report.require_same_shapes("a.pth")
    assert report._head("a.pth").startswith("100.0% of the model (0 of 0 values)") and report._table() == ""


@pytest.mark.parametrize(
    ("key", "in_file", "in_model", "is_class_layer"),
    [
        ("roi_heads.box_predictor.cls_score.weight", (81, 8), (4, 8), True),
        ("roi_heads.box_predictor.2.bbox_pred.bias", (320,), (12,), True),
        ("roi_heads.mask_head.predictor.weight", (80, 8, 1, 1), (3, 8, 1, 1), True),
        ("roi_heads.keypoint_head.score_lowres.weight", (8, 17, 4, 4), (8, 5, 4, 4), True),
        ("head.cls_score.weight", (720, 8, 3, 3), (27, 8, 3, 3), True),
        ("sem_seg_head.predictor.weight", (54, 8, 1, 1), (3, 8, 1, 1), True),
        ("roi_heads.mask_head.point_head.fc1.weight", (8, 336, 1), (8, 259, 1), True),
        # transformers that predict sets
        ("class_embed.5.bias", (80,), (3,), True),
        ("transformer.enc_out_class_embed.weight", (80, 8), (3, 8), True),
        ("label_enc.weight", (81, 8), (4, 8), True),
        ("sem_seg_head.predictor.class_embed.weight", (81, 8), (4, 8), True),
        ("criterion.empty_weight", (81,), (4,), True),
        ("network.criterion.empty_weight", (81,), (4,), True),
        ("network.class_labels_classifier.weight", (92, 8), (4, 8), True),
        ("network.class_labels_classifier.layers.2.bias", (92,), (4,), True),
        ("network.class_predictor.weight", (81, 8), (4, 8), True),
        ("network.model.denoising_class_embed.weight", (81, 8), (4, 8), True),
        ("network.model.enc_score_head.bias", (80,), (3,), True),
        ("network.model.decoder.class_embed.0.weight", (80, 8), (3, 8), True),
        ("class_embed.0.weight", (80, 8), (3, 9), False),  # another width
        ("roi_heads.box_predictor.cls_score.weight", (81, 8), (81, 9), False),  # another width of the box head
        ("roi_heads.box_predictor.cls_score.weight", (81, 8), (4, 9), False),
        ("roi_heads.box_head.fc1.weight", (8, 4), (9, 4), False),
        ("head.bbox_pred.weight", (36, 8, 3, 3), (12, 8, 3, 3), False),  # other anchors
        ("cls_score.x.weight", (81, 8), (4, 8), False),
    ],
)
def test_what_depends_on_the_classes(key, in_file, in_model, is_class_layer):
    assert LoadReport(0, 0, resized=[(key, in_file, in_model)]).other_resized == ([] if is_class_layer else [key])
