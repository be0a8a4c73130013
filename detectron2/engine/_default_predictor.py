"""From one image to its predictions."""

from typing import Any

import numpy as np
import torch

import detectron2.data.transforms as T
from detectron2.checkpoint import CheckpointDescription, DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model


class DefaultPredictor:
    """Run a model on single images: load weights, convert the colour order, resize, predict.

    The device is ``cfg.MODEL.DEVICE``.  For folders, batches or benchmarks use the model itself, as this class does.

    Example::

        predictor = DefaultPredictor(cfg)
        outputs = predictor(cv2.imread("input.jpg"))

    Checkpoints of :class:`DefaultTrainer` bring their config along::

        cfg = detectron2.checkpoint.read_description("model_final.pth").load_config()
        cfg.MODEL.WEIGHTS = "model_final.pth"

    Args:
        cfg: reads ``MODEL.*``, ``INPUT.FORMAT``, ``INPUT.{MIN,MAX}_SIZE_TEST`` and ``DATASETS.TEST`` (for metadata).

    Attributes:
        metadata: of the first test data set; class names and colours. Where that is not registered, those that the
            checkpoint brings along.
        model: in evaluation mode.
        aug: the resizing.
        input_format: the colour order that the model expects.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg)
        self.model.eval()
        name = cfg.DATASETS.TEST[0] if len(cfg.DATASETS.TEST) else "__unused"
        self.metadata = MetadataCatalog.get(name)
        checkpoint = DetectionCheckpointer(self.model).load_for_inference(cfg.MODEL.WEIGHTS)
        if (
            name not in DatasetCatalog
            and "thing_classes" not in self.metadata.as_dict()
            and "description" in checkpoint
        ):
            description = CheckpointDescription.from_plain(checkpoint["description"], cfg.MODEL.WEIGHTS)
            self.metadata = description.load_metadata()
        size = cfg.INPUT.MIN_SIZE_TEST
        self.aug: T.Augmentation = T.ResizeShortestEdge([size, size], cfg.INPUT.MAX_SIZE_TEST)  # 0: as they are
        self.input_format = cfg.INPUT.FORMAT
        if self.input_format not in ("RGB", "BGR"):
            raise ValueError(f'DefaultPredictor knows INPUT.FORMAT "RGB" and "BGR", got {self.input_format!r}.')

    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """Predict on one image.

        Args:
            original_image: array ``(H, W, C)``, channels in BGR order, values in [0, 255].

        Returns:
            The model's output for this image, in the image's own resolution; see the documentation of model outputs.

        Raises:
            TypeError: the image is not an array; ``cv2.imread`` returns ``None`` for a file it cannot read.
            ValueError: the array does not have three dimensions.
        """
        if not isinstance(original_image, np.ndarray):
            raise TypeError(
                f"Expected an image as an array (H, W, C), got {type(original_image).__name__}"
                + (": the file could not be read." if original_image is None else ".")
            )
        if original_image.ndim != 3:
            raise ValueError(f"Expected an image of shape (H, W, C), got {original_image.shape}.")
        with torch.no_grad():
            return self.model([self._prepare(original_image)])[0]

    def _prepare(self, image: np.ndarray) -> dict[str, Any]:
        """-> the model's input for one BGR image."""
        if self.input_format == "RGB":
            image = image[:, :, ::-1]
        height, width = image.shape[:2]
        resized: Any = self.aug.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.astype("float32").transpose(2, 0, 1)))
        return {"image": tensor.to(self.cfg.MODEL.DEVICE), "height": height, "width": width}
