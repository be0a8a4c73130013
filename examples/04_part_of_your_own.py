#!/usr/bin/env python
"""Put a part of your own into a model of the zoo: here a backbone, chosen by the config.

python examples/04_part_of_your_own.py
"""

import argparse

import torch
from torch import nn

from detectron2 import model_zoo
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import Boxes, Instances


@BACKBONE_REGISTRY.register()
class SmallBackbone(Backbone):
    """Three convolutions; the features have a sixteenth of the size of the image."""

    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__()
        channels = [input_shape.channels or 3, 16, 32, 64]
        self.layers = nn.Sequential(
            *(
                Conv2d(a, b, 5, stride=s, padding=2, norm=get_norm("BN", b), activation=torch.relu)
                for a, b, s in zip(channels, channels[1:], (4, 2, 2), strict=False)
            )
        )
        self._out_features = ["res4"]
        self._out_feature_channels = {"res4": 64}
        self._out_feature_strides = {"res4": 16}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"res4": self.layers(x)}


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    cfg = model_zoo.get_config("COCO-Detection/rpn_R_50_C4_1x.yaml")
    cfg.MODEL.BACKBONE.NAME = "SmallBackbone"
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

    # A model takes a list of dictionaries: losses in training, predictions in evaluation.
    image = torch.randint(0, 256, (3, 200, 300), dtype=torch.uint8)
    target = Instances((200, 300), gt_boxes=Boxes([[50, 40, 180, 150]]), gt_classes=torch.tensor([0]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.002)
    for _ in range(5):
        losses = model([{"image": image, "instances": target}])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        print({name: round(value.item(), 3) for name, value in losses.items()})

    model.eval()
    with torch.no_grad():
        proposals = model([{"image": image}])[0]["proposals"]
    print(f"{len(proposals)} proposals, the best {proposals.proposal_boxes.tensor[0].round().tolist()}")
