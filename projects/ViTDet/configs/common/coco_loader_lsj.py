# COCO 2017 with large-scale jitter (Simple Copy-Paste, arXiv:2012.07177): images fill a square of 1024 pixels.
import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L

_SIZE = 1024

dataloader = model_zoo.get_config("common/data/coco.py").dataloader

dataloader.train.total_batch_size = 64
dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),  # first, on the image as it is
    L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=_SIZE, target_width=_SIZE),
    L(T.FixedSizeCrop)(crop_size=(_SIZE, _SIZE), pad=False),  # the model pads
]
dataloader.train.mapper.recompute_boxes = True  # cropping a mask makes its box smaller than the cropped box
dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=_SIZE, max_size=_SIZE)]
