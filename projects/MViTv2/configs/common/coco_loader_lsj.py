# COCO 2017 with large-scale jitter (Simple Copy-Paste, arXiv:2012.07177).
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from .coco_loader import dataloader

_SIZE = 1024

dataloader.train.total_batch_size = 64
dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=_SIZE, target_width=_SIZE),
    L(T.FixedSizeCrop)(crop_size=(_SIZE, _SIZE)),
]
dataloader.train.mapper.recompute_boxes = True  # cropping a mask makes its box smaller than the cropped box
