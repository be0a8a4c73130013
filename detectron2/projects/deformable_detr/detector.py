"""What the detectors Deformable DETR and DINO share: from images to feature maps, from predictions to detections.

Letters: `N` images, `L` feature maps (levels), `Q` queries, `K` classes, `C` channels, `D` detections. Boxes of the
network are `(centre x, centre y, width, height)` in parts of the image without its padding.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import box_convert

from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.layers import ShapeSpec, SinePositionEmbedding
from detectron2.layers.shape_spec import select_shapes
from detectron2.modeling import Backbone, build_backbone
from detectron2.modeling.meta_arch.inputs import DetectorBase
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.sampling import check_labels
from detectron2.structures import Boxes, ImageList, Instances

from .criterion import SetCriterion
from .matcher import HungarianMatcher, Targets
from .published_weights import LAYOUTS, convert_published_weights
from .transformer import MLP, EncoderDecoder, Prediction, refine_boxes

__all__ = ["DeformableDetector", "padding_mask"]


def padding_mask(image_sizes: torch.Tensor, size_hw: Sequence[Any]) -> torch.Tensor:
    """Which pixels of a padded batch are padding.

    Args:
        image_sizes: int64 `Tensor[N, 2]`, `(height, width)` of each image.
        size_hw: `(H, W)` of the padded batch.

    Returns:
        bool `Tensor[N, H, W]`.
    """
    rows, columns = (torch.arange(size, device=image_sizes.device) for size in size_hw)
    return (rows >= image_sizes[:, :1])[:, :, None] | (columns >= image_sizes[:, 1:])[:, None]


def _input_projections(shapes: Sequence[ShapeSpec], num_levels: int, embed_dim: int) -> nn.ModuleList:
    """Layers that bring feature maps to `C` channels, and make further maps of the last one, each half as large."""
    if embed_dim % 32:
        raise ValueError(f"the width of the transformer (HIDDEN_DIM) must be a multiple of 32, got {embed_dim}")
    if num_levels < len(shapes):
        raise ValueError(
            f"the transformer has {num_levels} levels (NUM_FEATURE_LEVELS), but there are {len(shapes)} feature maps "
            "(IN_FEATURES); it takes at least one level for each"
        )
    channels: list[Any] = [shape.channels for shape in shapes]
    convs = [nn.Conv2d(n, embed_dim, 1) for n in channels]
    further = [channels[-1], *[embed_dim] * (num_levels - len(shapes))][: num_levels - len(shapes)]
    convs += [nn.Conv2d(n, embed_dim, 3, stride=2, padding=1) for n in further]
    for conv in convs:
        nn.init.xavier_uniform_(conv.weight)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # it has one
    return nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(32, embed_dim)) for conv in convs)


def prediction_heads(embed_dim: int, num_classes: int) -> tuple[nn.Linear, MLP]:
    """The heads of one layer: at the start all scores are 0.01, and all deltas of boxes are 0."""
    class_head, box_head = nn.Linear(embed_dim, num_classes), MLP(embed_dim, embed_dim, embed_dim, 4)
    nn.init.constant_(class_head.bias, -math.log((1 - 0.01) / 0.01))
    nn.init.zeros_(box_head.layers[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(box_head.layers[-1].bias)  # type: ignore[arg-type]
    return class_head, box_head


class DeformableDetector(DetectorBase):
    """Base of detectors with a transformer of this package; a subclass sets the heads and defines `predict`.

    Args:
        backbone: extracts features.
        in_features: names of the feature maps for the transformer, finest first.
        transformer: encodes feature maps and decodes queries.
        position_embedding: embeds the places of cells.
        num_classes: `K`.
        num_queries: `Q`.
        criterion: the losses.
        pixel_mean: mean of each channel, in the order of the image's channels.
        pixel_std: standard deviation of each channel.
        test_score_thresh: in inference only scores above this are kept.
        max_detections_per_image: in inference at most this many are kept, the best ones.

    Raises:
        ValueError: the backbone has no such features, or more of them than the transformer has levels.
    """

    class_embed: nn.ModuleList
    bbox_embed: nn.ModuleList
    known_programs: ClassVar = tuple(layout.program for layout in LAYOUTS)
    own_heads_key: ClassVar[str]  # the setting that gives heads of its own to each layer, for messages

    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        transformer: EncoderDecoder,
        position_embedding: SinePositionEmbedding,
        num_classes: int,
        num_queries: int,
        criterion: SetCriterion,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        test_score_thresh: float = 0.0,
        max_detections_per_image: int = 100,
    ):
        super().__init__()
        self._set_normalization(pixel_mean, pixel_std)
        self.backbone = backbone
        self.in_features = tuple(in_features)
        shapes = select_shapes(backbone.output_shape(), self.in_features, "MODEL.DEFORMABLE_DETR.IN_FEATURES")
        self.input_proj = _input_projections(shapes, transformer.num_levels, transformer.embed_dim)
        self.transformer: Any = transformer
        self.position_embedding = position_embedding
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.criterion = criterion
        self.test_score_thresh = test_score_thresh
        self.max_detections_per_image = max_detections_per_image

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training mode, results otherwise.

        Args:
            batched_inputs: one dictionary for each image with "image", `Tensor[C, H, W]`; in training "instances" with
                `gt_boxes` and `gt_classes`; in inference optionally "height" and "width", the size of the results in
                pixels.

        Returns:
            In training the weighted losses by name; in inference for each image `{"instances": Instances}` with
            `pred_boxes`, `scores` and `pred_classes`, best first.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        features, sizes = self.backbone(images.tensor), self._sizes(images)
        targets = self._ground_truth(batched_inputs, sizes)
        return self.losses(features, padding_mask(sizes, images.tensor.shape[2:]), targets)

    def inference(self, batched_inputs: list[dict[str, Any]], do_postprocess: bool = True) -> list[Any]:
        """Run the model in inference mode.

        Args:
            batched_inputs: as of `forward`.
            do_postprocess: whether to bring the results to the size that each input asks for.

        Returns:
            As of `forward`; without postprocessing `Instances` in pixels of the network's input, not clipped.
        """
        if self.training:
            raise ValueError("inference() was called in training mode; call model.eval() first")
        images = self.preprocess_image(batched_inputs)
        sizes = self._sizes(images)
        layers, _ = self.predict(self.backbone(images.tensor), padding_mask(sizes, images.tensor.shape[2:]))
        results = [
            Instances(size, pred_boxes=Boxes(box), scores=score, pred_classes=label)[score > self.test_score_thresh]
            for box, score, label, size in zip(*self.select(layers[-1], sizes), images.image_sizes, strict=True)
        ]
        if not do_postprocess:
            return results
        return [
            {"instances": detector_postprocess(result, item.get("height", size[0]), item.get("width", size[1]))}
            for result, item, size in zip(results, batched_inputs, images.image_sizes, strict=True)
        ]

    def predict(
        self, features: Mapping[str, torch.Tensor], padding: torch.Tensor
    ) -> tuple[list[Prediction], Prediction | None]:
        """Predict from the backbone's features.

        Args:
            features: by name `Tensor[N, C_i, H_i, W_i]`.
            padding: bool `Tensor[N, H, W]`, True for padding.

        Returns:
            For each layer of the decoder what it predicts of each query; what the encoder proposes, if it does.
        """
        raise NotImplementedError(f"{type(self).__name__} must define predict()")

    def losses(
        self, features: Mapping[str, torch.Tensor], padding: torch.Tensor, targets: Sequence[Targets]
    ) -> dict[str, torch.Tensor]:
        """Compute the weighted losses by name; see `predict`."""
        raise NotImplementedError(f"{type(self).__name__} must define losses()")

    def select(
        self, prediction: Prediction, image_sizes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Choose the best pairs of a query and a class.

        Args:
            prediction: of the last layer.
            image_sizes: int64 `Tensor[N, 2]`, `(height, width)` of each image in pixels.

        Returns:
            Boxes `Tensor[N, D, 4]` as `(x1, y1, x2, y2)` in pixels, scores and classes `Tensor[N, D]`, best first.
        """
        scores = prediction.logits.float().sigmoid().flatten(1)
        scores, best = scores.topk(min(self.max_detections_per_image, self.num_queries * self.num_classes), dim=1)
        sizes = image_sizes.flip(1).repeat(1, 2).to(torch.float32)
        corners = box_convert(prediction.boxes.float(), "cxcywh", "xyxy") * sizes[:, None]
        rows = (best // self.num_classes)[..., None].expand(-1, -1, 4)
        return corners.gather(1, rows), scores, best % self.num_classes

    def convert_weights(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Rename weights of a file, which `DetectionCheckpointer` is about to load; see `convert_published_weights`.

        It raises `ValueError` where each layer of the file has heads of its own and all layers of the model share one.
        """
        coco_ids = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
        proposes = getattr(self.transformer, "two_stage", False)
        converted = convert_published_weights(weights, coco_ids if self.num_classes == len(coco_ids) else (), proposes)
        if self.class_embed[0] is self.class_embed[-1]:
            for name in ("class_embed.{}.bias", "bbox_embed.{}.layers.0.weight"):
                heads = [converted[name.format(i)] for i in range(len(self.class_embed)) if name.format(i) in converted]
                if any(head.shape != heads[0].shape or (head != heads[0]).any() for head in heads[1:]):
                    raise ValueError(
                        "each layer of the decoder has heads of its own in the file, and all layers of this model "
                        f"share one; set {self.own_heads_key}"
                    )
        return converted

    def _maps(
        self, features: Mapping[str, torch.Tensor], padding: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Maps, positions and padding of each level, as `EncoderDecoder.encode` takes them."""
        maps: list[torch.Tensor] = []
        for level, projection in enumerate(self.input_proj):
            if level < len(self.in_features):
                source = features[self.in_features[level]]
            else:
                source = maps[-1] if level > len(self.in_features) else features[self.in_features[-1]]
            maps.append(projection(source))
        paddings = [F.interpolate(padding[:, None].float(), size=x.shape[2:])[:, 0].bool() for x in maps]
        positions = [self.position_embedding(p).to(x.dtype) for p, x in zip(paddings, maps, strict=True)]
        return maps, positions, paddings

    def _predictions(self, states: Sequence[torch.Tensor], references: Sequence[torch.Tensor]) -> list[Prediction]:
        """What each layer predicts, from the queries after it and the references that it began with."""
        heads = zip(self.class_embed, self.bbox_embed, strict=True)  # the encoder's, if there are any, come last
        return [
            Prediction(class_head(state), refine_boxes(box_head(state), reference, self.transformer.decoder.eps))
            for state, reference, (class_head, box_head) in zip(states, references, heads, strict=False)
        ]

    def _sizes(self, images: ImageList) -> torch.Tensor:
        """`(height, width)` of each image without padding, int64 `Tensor[N, 2]`."""
        return torch.tensor(images.image_sizes).to(self.device, non_blocking=True)

    def _ground_truth(self, batched_inputs: list[dict[str, Any]], sizes: torch.Tensor) -> list[Targets]:
        """The objects of each image as the network sees them."""
        instances = self._targets(batched_inputs)
        check_labels(instances, self.num_classes, "set MODEL.DEFORMABLE_DETR.NUM_CLASSES")
        return [
            Targets(x.gt_classes, box_convert(x.gt_boxes.tensor.float(), "xyxy", "cxcywh") / size.flip(0).repeat(2))
            for x, size in zip(instances, sizes, strict=True)
        ]


def detector_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of `DeformableDetector` from a config, but for the transformer and the embedding of positions."""
    options = cfg.MODEL.DEFORMABLE_DETR
    matcher = HungarianMatcher(options.COST_CLASS, options.COST_BBOX, options.COST_GIOU, options.FOCAL_ALPHA)
    weights = (options.CLASS_WEIGHT, options.BBOX_WEIGHT, options.GIOU_WEIGHT, options.FOCAL_ALPHA)
    return {
        "backbone": build_backbone(cfg),
        "in_features": options.IN_FEATURES,
        "num_classes": options.NUM_CLASSES,
        "num_queries": options.NUM_OBJECT_QUERIES,
        "criterion": SetCriterion(matcher, *weights),
        "test_score_thresh": options.SCORE_THRESH_TEST,
        "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }


def transformer_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of `EncoderDecoder` that both transformers take, from a config."""
    options = cfg.MODEL.DEFORMABLE_DETR
    return {
        "embed_dim": options.HIDDEN_DIM,
        "num_heads": options.NHEADS,
        "num_levels": options.NUM_FEATURE_LEVELS,
        "num_points": options.N_POINTS,
        "encoder_layers": options.ENC_LAYERS,
        "decoder_layers": options.DEC_LAYERS,
        "feedforward_dim": options.DIM_FEEDFORWARD,
        "dropout": options.DROPOUT,
    }
