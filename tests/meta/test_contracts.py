"""Names beyond the documentation that real projects override, read or patch."""

import importlib
import inspect

import pytest
import torch

from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, MapDataset
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

OVERRIDDEN = {
    "engine.DefaultTrainer": "build_evaluator build_train_loader build_optimizer build_test_loader build_lr_scheduler "
    "build_hooks test resume_or_load build_writers run_step build_model auto_scale_workers",
    "modeling.Backbone": "forward output_shape size_divisibility padding_constraints",
    "evaluation.COCOEvaluator": "_eval_predictions _derive_coco_results _tasks_from_predictions",
    "data.transforms.Augmentation": "get_transform __call__ _init _rand_range",
    "data.DatasetMapper": "__call__ from_config _transform_annotations",
    "modeling.GeneralizedRCNN": "forward inference from_config visualize_training _postprocess preprocess_image device",
    "modeling.StandardROIHeads": "forward _init_box_head _forward_box _forward_mask _forward_keypoint _init_mask_head "
    "_init_keypoint_head forward_with_given_boxes label_and_sample_proposals _sample_proposals",
    "modeling.roi_heads.CascadeROIHeads": "_init_box_head _forward_box _run_stage _match_and_label_boxes "
    "_create_proposals_from_boxes",
    "modeling.roi_heads.Res5ROIHeads": "_build_res5_block _shared_roi_transform",
    "modeling.FastRCNNOutputLayers": "losses inference predict_boxes predict_probs box_reg_loss "
    "sigmoid_cross_entropy_loss",
    "modeling.proposal_generator.RPN": "forward losses label_and_sample_anchors _subsample_labels predict_proposals",
    "modeling.RetinaNet": "losses label_anchors",
    "checkpoint.DetectionCheckpointer": "_load_model _load_file _torch_load _convert_ndarray_to_tensor resume_or_load "
    "add_checkpointable",
    "utils.visualizer.Visualizer": "draw_instance_predictions overlay_instances draw_text draw_box _jitter "
    "_create_grayscale_image _change_color_brightness _convert_boxes _convert_masks _convert_keypoints",
    "utils.events.EventWriter": "write close",
    "evaluation.SemSegEvaluator": "encode_json_sem_seg",
    "modeling.GeneralizedRCNNWithTTA": "_get_augmented_inputs _get_augmented_boxes _batch_inference _merge_detections "
    "_inference_one_image _turn_off_roi_heads _rescale_detected_boxes _reduce_pred_masks",
}
PATCHED = {  # functions that are called through the module that defines them
    "modeling.roi_heads.fast_rcnn": "fast_rcnn_inference _log_classification_stats FastRCNNOutputs",
    "modeling.roi_heads.mask_head": "mask_rcnn_inference mask_rcnn_loss",
    "modeling.roi_heads.keypoint_head": "keypoint_rcnn_inference",
    "utils.visualizer": "_create_text_labels GenericMask _PanopticPrediction _SMALL_OBJECT_AREA_THRESH _OFF_WHITE",
    "structures.boxes": "matched_boxlist_iou",
    "modeling.proposal_generator.proposal_utils": "_is_tracing",
}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_what_is_overridden_exists(name):
    module, _, cls = name.rpartition(".")
    cls = getattr(importlib.import_module(f"detectron2.{module}"), cls)
    assert [attribute for attribute in OVERRIDDEN[name].split() if not hasattr(cls, attribute)] == []


@pytest.mark.parametrize("name", PATCHED)
def test_what_is_patched_exists(name):
    module = importlib.import_module(f"detectron2.{name}")
    assert [attribute for attribute in PATCHED[name].split() if not hasattr(module, attribute)] == []


def small(path: str):
    """A config of the zoo with few channels."""
    cfg = model_zoo.get_config(path)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.RESNETS.update(DEPTH=18, RES2_OUT_CHANNELS=16, STEM_OUT_CHANNELS=8)
    cfg.MODEL.RESNETS.NUM_GROUPS = 1
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = 3
    return cfg


def lacking(obj, names: str) -> list[str]:
    return [name for name in names.split() if not hasattr(obj, name)]


def test_attributes_of_models():
    model = build_model(small("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"))
    read = "backbone proposal_generator roi_heads device vis_period input_format pixel_mean pixel_std"
    assert lacking(model, read) == []
    predictor = model.roi_heads.box_predictor
    read = "box2box_transform smooth_l1_beta num_classes test_score_thresh test_nms_thresh test_topk_per_image"
    assert lacking(predictor, f"{read} box_reg_loss_type loss_weight") == []
    pooler = model.roi_heads.box_pooler
    read = "output_size min_level max_level canonical_level canonical_box_size level_poolers"
    assert lacking(pooler, read) == []
    anchors = model.proposal_generator.anchor_generator
    assert lacking(anchors, "strides cell_anchors offset _grid_anchors") == []
    retinanet = build_model(small("COCO-Detection/retinanet_R_50_FPN_1x.yaml"))
    assert lacking(retinanet.head, "cls_subnet bbox_subnet cls_score bbox_pred") == []
    assert build_model(small("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml")).roi_heads.num_cascade_stages == 3


def test_dictionaries_of_the_heads_can_be_edited():
    """Subclasses call `_init_box_head`, change the dictionary and hand it on."""
    from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads

    cfg = small("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml")
    shapes = build_model(small("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")).backbone.output_shape()
    plain = StandardROIHeads._init_box_head(cfg, shapes)
    assert set(plain) == {"box_in_features", "box_pooler", "box_head", "box_predictor"}
    cascade = CascadeROIHeads._init_box_head(cfg, shapes)
    assert set(cascade) == {"box_in_features", "box_pooler", "box_heads", "box_predictors", "proposal_matchers"}


def test_attributes_of_data_and_records():
    mapper = DatasetMapper(get_cfg())
    read = "is_train augmentations image_format use_instance_mask use_keypoint instance_mask_format "
    assert lacking(mapper, read + "keypoint_hflip_indices proposal_topk recompute_boxes") == []
    assert lacking(MapDataset([1], abs), "_dataset _map_func _rng _fallback_candidates") == []
    assert lacking(Instances((1, 1)), "_fields _image_size") == []
    assert lacking(EventStorage(), "_iter _vis_data _histograms") == []


def test_postprocessing_of_models_is_static():
    from detectron2.modeling import GeneralizedRCNN

    assert isinstance(inspect.getattr_static(GeneralizedRCNN, "_postprocess"), staticmethod)
    empty = Instances((10, 10), pred_boxes=Boxes(torch.zeros(0, 4)))
    assert GeneralizedRCNN._postprocess([empty], [{"height": 5, "width": 5}], [(10, 10)])[0][
        "instances"
    ].image_size == (5, 5)
