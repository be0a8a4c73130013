#!/usr/bin/env python
"""Choose how images are changed in training, with an augmentation of your own, and see what the model gets.

python examples/03_augmentations.py
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import detectron2.data.transforms as T
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.synthetic import generate_shapes_dataset
from detectron2.utils.visualizer import Visualizer

FOLDER = Path("output/examples/augmentations")


class RandomFog(T.Augmentation):
    """Blend the image with white; boxes and masks stay where they are."""

    def __init__(self, most: float):
        super().__init__()
        self.most = most

    def get_transform(self, image: np.ndarray) -> T.Transform:
        weight = self._rand_range(0, self.most)
        return T.BlendTransform(src_image=np.full_like(image, 255), src_weight=weight, dst_weight=1 - weight)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    annotations = generate_shapes_dataset(FOLDER, 6)
    register_coco_instances("shapes_augmented", {}, str(annotations), str(FOLDER / "images"))
    augmentations = [
        T.RandomRotation([-20, 20], expand=False),
        T.ResizeShortestEdge([240, 320], 480),
        T.RandomFlip(),
        RandomFog(0.6),
    ]
    mapper = DatasetMapper(is_train=True, augmentations=augmentations, image_format="RGB", use_instance_mask=True)
    loader = build_detection_train_loader(
        DatasetCatalog.get("shapes_augmented"), mapper=mapper, total_batch_size=4, num_workers=0
    )
    torch.manual_seed(0)
    for i, item in enumerate(next(iter(loader))):
        visualizer = Visualizer(item["image"].permute(1, 2, 0).numpy(), MetadataCatalog.get("shapes_augmented"))
        target = item["instances"]
        names = [visualizer.metadata.thing_classes[k] for k in target.gt_classes.tolist()]
        drawn = visualizer.overlay_instances(boxes=target.gt_boxes, masks=target.gt_masks, labels=names)
        drawn.save(str(FOLDER / f"augmented_{i}.png"))
        print(f"{tuple(item['image'].shape)}, {len(target)} objects: {FOLDER / f'augmented_{i}.png'}")
