"""Deformable DETR (Zhu et al., https://arxiv.org/abs/2010.04159), plain, with refined boxes, and in two stages.

Letters: `N` images, `Q` queries, `K` classes, `C` channels.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import SinePositionEmbedding
from detectron2.modeling import META_ARCH_REGISTRY

from .detector import DeformableDetector, detector_arguments, prediction_heads, transformer_arguments
from .matcher import Targets
from .transformer import DeformableTransformer, Prediction

__all__ = ["DeformableDETR"]

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class DeformableDETR(DeformableDetector):
    """Deformable DETR.

    Args:
        transformer: encodes feature maps and decodes queries.
        num_classes: `K`.
        num_queries: `Q`.
        with_box_refine: whether each layer of the decoder begins with the boxes of the one before; the heads of the
            layers are then different ones.
        **others: further arguments of `DeformableDetector`: `backbone`, `in_features`, `criterion`, `pixel_mean`,
            `pixel_std` and, optionally, `test_score_thresh` and `max_detections_per_image`.

    Raises:
        ValueError: the backbone has no such features, or more of them than the transformer has levels; or there are two
            stages and boxes are not refined.

    Example::

        cfg = get_cfg()
        add_deformable_detr_config(cfg)
        cfg.merge_from_file("projects/DeformableDETR/configs/deformable_detr_R_50_50ep.yaml")
        model = build_model(cfg)
    """

    own_heads_key = "MODEL.DEFORMABLE_DETR.WITH_BOX_REFINE True"

    @configurable
    def __init__(
        self,
        *,
        transformer: DeformableTransformer,
        num_classes: int,
        num_queries: int = 300,
        with_box_refine: bool = False,
        **others: Any,
    ):
        if transformer.two_stage and not with_box_refine:
            raise ValueError("two stages (TWO_STAGE) refine boxes; set WITH_BOX_REFINE to True as well")
        super().__init__(
            transformer=transformer,
            position_embedding=SinePositionEmbedding(transformer.embed_dim // 2, offset=-0.5),
            num_classes=num_classes,
            num_queries=num_queries,
            **others,
        )
        if not transformer.two_stage:
            self.query_embed = nn.Embedding(num_queries, 2 * transformer.embed_dim)
        self._set_heads(with_box_refine)

    def _set_heads(self, with_box_refine: bool) -> None:
        """Heads of each layer and, in two stages, last, of the encoder; one for all layers without refinement."""
        transformer = self.transformer
        class_head, box_head = prediction_heads(transformer.embed_dim, self.num_classes)
        count = len(transformer.decoder.layers) + transformer.two_stage
        copies = copy.deepcopy if with_box_refine else lambda head: head
        self.class_embed = nn.ModuleList([copies(class_head) for _ in range(count)])
        self.bbox_embed = nn.ModuleList([copies(box_head) for _ in range(count)])
        if with_box_refine:
            transformer.decoder.bbox_embed = self.bbox_embed
        if transformer.two_stage:
            transformer.decoder.class_embed = self.class_embed
        else:
            # The first boxes have an eighth of the sides of the image.
            first: Any = self.bbox_embed[0]
            nn.init.constant_(first.layers[-1].bias[2:], -2.0)

    def convert_weights(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Do what `DeformableDetector.convert_weights` does; warn where the file is of a model without refinement."""
        converted = super().convert_weights(weights)
        names = [f"bbox_embed.{i}.layers.2.bias" for i in range(len(self.bbox_embed))]
        heads = [converted[name] for name in names if name in converted]
        refines = self.transformer.decoder.bbox_embed is not None and not self.transformer.two_stage
        if refines and len(heads) > 1 and all((head == heads[0]).all() for head in heads[1:]):
            logger.warning(
                "All layers of the decoder have the same heads in the file, as where boxes are not refined, and this "
                "model refines them. To predict with these weights, set MODEL.DEFORMABLE_DETR.WITH_BOX_REFINE False; "
                "training makes the heads differ."
            )
        return converted

    def predict(
        self, features: Mapping[str, torch.Tensor], padding: torch.Tensor
    ) -> tuple[list[Prediction], Prediction | None]:
        """Predict from the backbone's features; see `DeformableDetector.predict`."""
        query_embed = None if self.transformer.two_stage else self.query_embed.weight
        maps = self._maps(features, padding)
        states, references, proposals = self.transformer(*maps, self.num_queries, query_embed)
        return self._predictions(states, references), proposals

    def losses(
        self, features: Mapping[str, torch.Tensor], padding: torch.Tensor, targets: Sequence[Targets]
    ) -> dict[str, torch.Tensor]:
        """Compute the weighted losses by name: see `SetCriterion`; names of those of proposals end with `_enc`."""
        layers, proposals = self.predict(features, padding)
        losses = self.criterion(layers, targets)
        if proposals is not None:
            # The encoder only tells objects from background.
            objects = [target._replace(labels=torch.zeros_like(target.labels)) for target in targets]
            losses.update(self.criterion.matched(proposals, objects, "_enc"))
        return losses

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor from `cfg.MODEL.DEFORMABLE_DETR`."""
        options = cfg.MODEL.DEFORMABLE_DETR
        return {
            **detector_arguments(cfg),
            "transformer": DeformableTransformer(**transformer_arguments(cfg), two_stage=options.TWO_STAGE),
            "with_box_refine": options.WITH_BOX_REFINE,
        }
