"""DINO (Zhang et al., https://arxiv.org/abs/2203.03605).

Beside Deformable DETR in two stages: queries have learned contents and proposed boxes (mixed query selection), the
boxes of a layer learn from the next one too (look forward twice), positions of queries are computed from their boxes
(DAB-DETR, https://arxiv.org/abs/2201.12329), and training restores noisy objects (contrastive denoising).

Letters: `N` images, `L` feature maps (levels), `S` cells of all maps, `P` denoising queries, `Q` queries that search
for objects, `K` classes, `C` channels. Boxes are `(centre x, centre y, width, height)` in parts of the image.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.checkpoint.layouts import recognise_layout
from detectron2.config import CfgNode, configurable
from detectron2.layers import SinePositionEmbedding
from detectron2.modeling import META_ARCH_REGISTRY

from .denoising import NoisyQueries, noisy_queries
from .detector import DeformableDetector, detector_arguments, prediction_heads, transformer_arguments
from .matcher import Targets
from .published_weights import DETREX, LAYOUTS
from .transformer import EncoderDecoder, Prediction, best_rows, take_rows

__all__ = ["DINO", "DINOTransformer"]

_EPS = 1e-3  # of the inverse sigmoid, as published
_POSITION_OF_DETREX = (10000.0, -0.5)  # temperature and offset


class DINOTransformer(EncoderDecoder):
    """The transformer of DINO.

    Args:
        num_queries: `Q`.
        mixed_query_selection: whether contents of queries are learned; else they are features of the proposals.
        look_forward_twice: whether the box of a layer is also improved by the loss of the next one.
        **sizes: of `EncoderDecoder`, with 2048 for `feedforward_dim` and 0 for `dropout` if they are not given.

    Attributes:
        enc_out_class_embed: predicts the classes of proposals; the detector sets it.
        enc_out_bbox_embed: predicts their boxes; the detector sets it.

    Example:
        >>> from detectron2.projects.deformable_detr import DINOTransformer
        >>> DINOTransformer(num_queries=900).tgt_embed.weight.shape
        torch.Size([900, 256])
    """

    enc_out_class_embed: nn.Module
    enc_out_bbox_embed: nn.Module

    def __init__(
        self,
        num_queries: int = 900,
        mixed_query_selection: bool = True,
        look_forward_twice: bool = True,
        **sizes: Any,
    ):
        super().__init__(
            has_proposals=True,
            positions_from_boxes=True,
            look_forward_twice=look_forward_twice,
            eps=_EPS,
            **{"feedforward_dim": 2048, "dropout": 0.0, **sizes},
        )
        self.num_queries = num_queries
        self.tgt_embed = nn.Embedding(num_queries, self.embed_dim) if mixed_query_selection else None
        self.reset_parameters()

    def forward(
        self,
        maps: Sequence[torch.Tensor],
        positions: Sequence[torch.Tensor],
        paddings: Sequence[torch.Tensor],
        noisy: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], Prediction]:
        """Encode feature maps and decode queries.

        Args:
            maps: see `EncoderDecoder.encode`.
            positions: see `EncoderDecoder.encode`.
            paddings: see `EncoderDecoder.encode`.
            noisy: denoising queries, which come first: contents `Tensor[N, P, C]`, boxes `Tensor[N, P, 4]`, and the
                attention mask, bool `Tensor[P + Q, P + Q]`.

        Returns:
            As `Decoder.forward`; and the proposals that queries begin with.
        """
        levels, memory = self.encode(maps, positions, paddings)
        features, anchors = self.propose(memory, levels)
        best = best_rows(self.enc_out_class_embed(features).amax(2), self.num_queries)
        features, anchors = take_rows(features, best), take_rows(anchors, best)
        boxes = (self.enc_out_bbox_embed(features) + anchors).sigmoid()
        proposals = Prediction(self.enc_out_class_embed(features), boxes)
        references, mask = boxes.detach(), None
        if self.tgt_embed is None:
            queries = features.detach()
        else:
            queries = self.tgt_embed.weight.expand(memory.shape[0], -1, -1)
        if noisy is not None:
            contents, noisy_boxes, mask = noisy
            queries, references = torch.cat([contents, queries], dim=1), torch.cat([noisy_boxes, references], dim=1)
        states, befores = self.decoder(queries, None, references, memory, levels, mask)
        return states, befores, proposals


@META_ARCH_REGISTRY.register()
class DINO(DeformableDetector):
    """DINO.

    Args:
        transformer: encodes feature maps and decodes queries.
        num_classes: `K`.
        dn_number: about how many noisy objects are to be restored in each image, see `noisy_queries`; 0 for none.
        dn_label_noise_ratio: see `noisy_queries`.
        dn_box_noise_scale: see `noisy_queries`.
        share_heads: whether all layers of the decoder have the same heads.
        position_temperature: see `SinePositionEmbedding`.
        position_offset: see `SinePositionEmbedding`.
        **others: further arguments of `DeformableDetector`: `backbone`, `in_features`, `criterion`, `pixel_mean`,
            `pixel_std` and, optionally, `test_score_thresh` and `max_detections_per_image`, by default 300.

    Raises:
        ValueError: the backbone has no such features, or more of them than the transformer has levels.

    Example::

        cfg = get_cfg()
        add_deformable_detr_config(cfg)
        cfg.merge_from_file("projects/DeformableDETR/configs/dino_R_50_4scale_12ep.yaml")
        model = build_model(cfg)
    """

    own_heads_key = "MODEL.DINO.SHARE_HEADS False"

    @configurable
    def __init__(
        self,
        *,
        transformer: DINOTransformer,
        num_classes: int,
        dn_number: int = 100,
        dn_label_noise_ratio: float = 0.5,
        dn_box_noise_scale: float = 1.0,
        share_heads: bool = True,
        position_temperature: float = 20.0,
        position_offset: float = 0.0,
        **others: Any,
    ):
        super().__init__(
            transformer=transformer,
            position_embedding=SinePositionEmbedding(
                transformer.embed_dim // 2, temperature=position_temperature, offset=position_offset
            ),
            num_classes=num_classes,
            num_queries=transformer.num_queries,
            **{"max_detections_per_image": 300, **others},
        )
        self.dn_number = dn_number
        self.dn_label_noise_ratio = dn_label_noise_ratio
        self.dn_box_noise_scale = dn_box_noise_scale
        self.label_enc = nn.Embedding(num_classes + 1, transformer.embed_dim)  # the last one is not used
        class_head, box_head = prediction_heads(transformer.embed_dim, num_classes)
        transformer.enc_out_class_embed = copy.deepcopy(class_head)
        transformer.enc_out_bbox_embed = copy.deepcopy(box_head)
        layers = transformer.decoder.layers
        copies = (lambda head: head) if share_heads else copy.deepcopy
        self.class_embed = transformer.decoder.class_embed = nn.ModuleList([copies(class_head) for _ in layers])
        self.bbox_embed = transformer.decoder.bbox_embed = nn.ModuleList([copies(box_head) for _ in layers])

    def convert_weights(self, weights: dict[str, Any]) -> dict[str, Any]:
        """See `DeformableDetector.convert_weights`."""
        position = (self.position_embedding.temperature, self.position_embedding.offset)
        if position != _POSITION_OF_DETREX and recognise_layout(weights, LAYOUTS) is DETREX:
            logging.getLogger(__name__).warning(
                "detrex embeds positions otherwise than this model. For its weights set "
                "MODEL.DINO.POSITION_TEMPERATURE %s and MODEL.DINO.POSITION_OFFSET %s.",
                *_POSITION_OF_DETREX,
            )
        return super().convert_weights(weights)

    def predict(
        self, features: Mapping[str, torch.Tensor], padding: torch.Tensor, noisy: NoisyQueries | None = None
    ) -> tuple[list[Prediction], Prediction | None]:
        """Predict from the backbone's features; see `DeformableDetector.predict`.

        Args:
            features: by name `Tensor[N, C_i, H_i, W_i]`.
            padding: bool `Tensor[N, H, W]`, True for padding.
            noisy: denoising queries, which come before the others.

        Returns:
            For each layer of the decoder what it predicts of each query; what the encoder proposes.
        """
        arguments = None
        if noisy is not None:
            contents = self.label_enc(noisy.labels).masked_fill((noisy.labels == self.num_classes)[..., None], 0.0)
            arguments = (contents, noisy.boxes.clamp(_EPS, 1 - _EPS), noisy.attention_mask)
        states, references, proposals = self.transformer(*self._maps(features, padding), arguments)
        return self._predictions(states, references), proposals

    def losses(
        self, features: Mapping[str, torch.Tensor], padding: torch.Tensor, targets: Sequence[Targets]
    ) -> dict[str, torch.Tensor]:
        """Compute the weighted losses by name: see `SetCriterion`.

        Names of those of proposals end with `_interm`, of denoising queries with `_dn` or, of layer `i`, `_dn_i`.
        """
        noisy = self._noisy_queries(targets)
        layers, proposals = self.predict(features, padding, noisy)
        assert proposals is not None
        first = 0 if noisy is None else noisy.labels.shape[1]
        losses = self.criterion([Prediction(*(x[:, first:] for x in layer)) for layer in layers], targets)
        losses.update(self.criterion.matched(proposals, targets, "_interm"))
        count = self.criterion.count(targets) * (noisy.num_groups if noisy is not None else 1)
        for i, layer in enumerate(layers if self.dn_number else ()):
            suffix = "_dn" if i + 1 == len(layers) else f"_dn_{i}"
            if noisy is None:  # the names of losses, and the weights in use, are the same in each iteration
                names = ("loss_ce", "loss_bbox", "loss_giou")
                losses.update({f"{name}{suffix}": 0 * self.label_enc.weight.sum() for name in names})
            else:
                restored = Prediction(*(x[:, :first] for x in layer))
                losses.update(self.criterion.of_matches(restored, targets, noisy.matches, count, suffix))
        return losses

    def _noisy_queries(self, targets: Sequence[Targets]) -> NoisyQueries | None:
        if not self.dn_number:
            return None
        return noisy_queries(
            targets,
            num_classes=self.num_classes,
            num_queries=self.num_queries,
            number=self.dn_number,
            label_noise_ratio=self.dn_label_noise_ratio,
            box_noise_scale=self.dn_box_noise_scale,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor from `cfg.MODEL.DEFORMABLE_DETR` and `cfg.MODEL.DINO`."""
        options, arguments = cfg.MODEL.DINO, detector_arguments(cfg)
        transformer = DINOTransformer(
            arguments.pop("num_queries"),
            **transformer_arguments(cfg),
            mixed_query_selection=options.MIXED_QUERY_SELECTION,
            look_forward_twice=options.LOOK_FORWARD_TWICE,
        )
        return {
            **arguments,
            "transformer": transformer,
            "dn_number": options.DN_NUMBER,
            "dn_label_noise_ratio": options.DN_LABEL_NOISE_RATIO,
            "dn_box_noise_scale": options.DN_BOX_NOISE_SCALE,
            "share_heads": options.SHARE_HEADS,
            "position_temperature": options.POSITION_TEMPERATURE,
            "position_offset": options.POSITION_OFFSET,
        }
