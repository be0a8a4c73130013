"""Mask2Former as a graph, for export."""

from detectron2.export.graphs import MaskClassificationGraph, register_exportable

from .mask_former_model import MaskFormer

__all__ = ["MaskFormerGraph"]


@register_exportable(MaskFormer)
class MaskFormerGraph(MaskClassificationGraph):
    """Classes and masks of queries."""

    replaces = (
        *("forward", "preprocess_image", "_result"),
        *("semantic_inference", "panoptic_inference", "instance_inference"),
    )

    def queries(self, images, inside):
        """See `MaskClassificationGraph.queries`; padding counts as image."""
        found = self.model.sem_seg_head(self.model.backbone(images))
        return found["pred_logits"].softmax(-1), found["pred_masks"]

    def class_counts(self):
        """See `MaskClassificationGraph.class_counts`; things and stuff share one range of labels."""
        return (self.model.sem_seg_head.num_classes,) * 2

    def rules(self):
        """See `MaskClassificationGraph.rules`."""
        model = self.model
        every = list(range(model.sem_seg_head.num_classes))
        things = sorted(model._thing_classes()) if model.panoptic_on else every
        instances = {
            "classes": every,
            "candidates": model.test_topk_per_image,
            "one_for_each_query": False,
            "kept_classes": things,
        }
        semantic = {
            "enlarge": "masks" if model.sem_seg_postprocess_before_inference else "scores",
            "merged_things": 0,
        }
        panoptic = {
            "object_threshold": model.object_mask_threshold,
            "overlap_threshold": model.overlap_threshold,
            "may_equal_threshold": True,
            "whole": "mask",
            "things": things,
            "first_stuff": 0,
        }
        return {
            "instances": instances if model.instance_on else None,
            "semantic": semantic if model.semantic_on else None,
            "panoptic": panoptic if model.panoptic_on else None,
        }
