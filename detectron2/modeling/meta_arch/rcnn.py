"""Two-stage detectors: a backbone, a proposal generator and ROI heads.

`N` images of a batch, `C` channels, `H` and `W` height and width in pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.modeling.backbone import Backbone, build_backbone
from detectron2.modeling.postprocessing import MaskFormat, check_mask_format, detector_postprocess
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage, has_event_storage, put_image

from ._training_pictures import side_by_side
from .build import META_ARCH_REGISTRY
from .inputs import DetectorBase, required_entry, results_and_losses

__all__ = ["GeneralizedRCNN", "ProposalNetwork"]

# Number of proposals that visualize_training draws.
_MAX_DRAWN_PROPOSALS = 20


@META_ARCH_REGISTRY.register()
class GeneralizedRCNN(DetectorBase):
    """A detector of three parts: features of the whole image, proposals of regions, predictions for each region.

    Args:
        backbone: image to feature maps.
        proposal_generator: feature maps to proposals; None when the inputs bring "proposals" with them.
        roi_heads: predictions for each region.
        pixel_mean: one value for each channel, subtracted from the image.
        pixel_std: one value for each channel, by which the image is divided.
        input_format: what the channels mean ("BGR", "RGB", ...), needed only to draw.
        vis_period: number of training iterations between pictures of proposals; 0 for never.
        mask_format: how `detector_postprocess` gives masks: "full", "rle" or "roi". The attribute of this name may be
            changed at any time.
    """

    roi_heads: Any  # of the interface of ROIHeads
    mask_format: MaskFormat = "full"

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module | None,
        roi_heads: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str | None = None,
        vis_period: int = 0,
        mask_format: MaskFormat = "full",
    ):
        super().__init__()
        if vis_period > 0 and input_format is None:
            raise ValueError("vis_period > 0 needs input_format: without it colours cannot be drawn")
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.input_format = input_format
        self.vis_period = vis_period
        self.mask_format = check_mask_format(mask_format)
        self._set_normalization(pixel_mean, pixel_std)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training mode, results otherwise.

        Args:
            batched_inputs: one dictionary for each image with "image", `Tensor[C, H, W]`; in training "instances",
                the ground truth; without a proposal generator "proposals"; in inference optionally "height" and
                "width", the size of the results in pixels.

        Returns:
            In training the losses by name; in inference for each image `{"instances": Instances}` with `pred_boxes`,
            `pred_classes`, `scores`, and as the model has them `pred_masks` (or `pred_masks_rle`, by `mask_format`) and
            `pred_keypoints`.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        # Custom parts may train without ground truth; ours say so when they miss it.
        targets = self._targets(batched_inputs) if "instances" in batched_inputs[0] else None
        features = self.backbone(images.tensor)
        proposals, proposal_losses = self._propose(images, features, batched_inputs, targets)
        found = self.roi_heads(images, features, proposals, targets)
        _, detector_losses = results_and_losses(self.roi_heads, found)
        if self.vis_period > 0 and has_event_storage() and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return {**detector_losses, **proposal_losses}

    def _propose(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        batched_inputs: list[dict[str, Any]],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Proposals, generated or taken from the inputs, and the losses of generating them."""
        if self.proposal_generator is not None:
            found = self.proposal_generator(images, features, targets)
            return results_and_losses(self.proposal_generator, found)  # as many as the ROI heads want
        why = "the model has no proposal generator (MODEL.PROPOSAL_GENERATOR.NAME), so every input must bring its own"
        return required_entry(batched_inputs, "proposals", self.device, why), {}

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> Any:
        """Run the model in inference mode.

        Args:
            batched_inputs: as in `forward`.
            detected_instances: for each image known `pred_boxes` and `pred_classes`, in pixels of the model's input.
                Boxes are then not detected, only the other predictions made for them.
            do_postprocess: bring the results to the size that the inputs ask for.

        Returns:
            As `forward`; without postprocessing a list of raw `Instances` at the size of the model's input.
        """
        if self.training:
            raise ValueError("inference() was called in training mode; call model.eval() first")
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is None:
            proposals, _ = self._propose(images, features, batched_inputs)
            found = self.roi_heads(images, features, proposals, None)
            results, _ = results_and_losses(self.roi_heads, found, len(images) if do_postprocess else None)
        else:
            known = [x.to(self.device) for x in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, known)
        if not do_postprocess:
            return results
        if self.mask_format == "full":  # subclasses may know no other, and define _postprocess without the argument
            return self._postprocess(results, batched_inputs, images.image_sizes)
        return self._postprocess(results, batched_inputs, images.image_sizes, self.mask_format)

    def visualize_training(self, batched_inputs: list[dict[str, Any]], proposals: list[Instances]) -> None:
        """Put a picture of the first image into the event storage: ground truth left, best proposals right."""
        if not batched_inputs:
            return
        first = batched_inputs[0]
        best = proposals[0].proposal_boxes[:_MAX_DRAWN_PROPOSALS]
        picture = side_by_side(first["image"], self.input_format, first["instances"].gt_boxes, best)
        put_image("Left: GT bounding boxes;  Right: Predicted proposals", picture)

    @staticmethod
    def _postprocess(
        instances: list[Instances],
        batched_inputs: list[dict[str, Any]],
        image_sizes: list[tuple[int, int]],
        mask_format: MaskFormat = "full",
    ) -> list[dict[str, Instances]]:
        """Bring raw results to the "height" and "width" that inputs ask for, by default to `image_sizes`."""
        # Projects put functions of three arguments in the place of detector_postprocess.
        options: Any = {} if mask_format == "full" else {"mask_format": mask_format}
        results = []
        for result, item, size in zip(instances, batched_inputs, image_sizes, strict=True):
            height, width = item.get("height", size[0]), item.get("width", size[1])
            results.append({"instances": detector_postprocess(result, height, width, **options)})
        return results

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Arguments of the constructor from the config."""
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, backbone.output_shape()),
            "roi_heads": build_roi_heads(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
            # Only where it is set: subclasses hand this table to constructors that list the published arguments.
            **({"mask_format": cfg.TEST.MASK_FORMAT} if "MASK_FORMAT" in cfg.TEST else {}),
        }


@META_ARCH_REGISTRY.register()
class ProposalNetwork(DetectorBase):
    """A detector that stops at the proposals.

    Args:
        backbone: image to feature maps.
        proposal_generator: feature maps to proposals.
        pixel_mean: one value for each channel, subtracted from the image.
        pixel_std: one value for each channel, by which the image is divided.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self._set_normalization(pixel_mean, pixel_std)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training mode, proposals otherwise.

        Args:
            batched_inputs: as in `GeneralizedRCNN.forward`.

        Returns:
            In training the losses by name; in inference for each image `{"proposals": Instances}` with
            `proposal_boxes` and `objectness_logits`, at the size that the input asks for.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if self.training:
            found = self.proposal_generator(images, features, self._targets(batched_inputs))
            return results_and_losses(self.proposal_generator, found)[1]
        found = self.proposal_generator(images, features, None)
        proposals, _ = results_and_losses(self.proposal_generator, found, len(images))
        return [
            {"proposals": detector_postprocess(result, item.get("height", size[0]), item.get("width", size[1]))}
            for result, item, size in zip(proposals, batched_inputs, images.image_sizes, strict=True)
        ]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Arguments of the constructor from the config."""
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }
