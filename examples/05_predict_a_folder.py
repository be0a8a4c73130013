#!/usr/bin/env python
"""Predict on a folder of images: pictures, a COCO file, and a table that a spreadsheet opens.

python examples/05_predict_a_folder.py [checkpoint] [folder]

Without a checkpoint the model is a random one, so that the example needs nothing else: it finds nonsense. That of
`detectron2 demo`, `output/demo/model_final.pth`, finds shapes.
"""

import argparse
from pathlib import Path

from detectron2 import Predictor
from detectron2.data import Metadata
from detectron2.data.datasets.synthetic import SHAPE_CLASSES, generate_shapes_dataset
from detectron2.inference import ResultWriter
from detectron2.utils.logger import setup_logger

OUTPUT = Path("output/examples/folder")


def random_predictor() -> Predictor:
    """A small RetinaNet that has learnt nothing."""
    name = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
    changes = ["MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    changes += ["MODEL.RETINANET.NUM_CLASSES", len(SHAPE_CLASSES), "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
    changes += ["INPUT.MIN_SIZE_TEST", 160, "TEST.DETECTIONS_PER_IMAGE", 5]
    names = Metadata(thing_classes=list(SHAPE_CLASSES))
    return Predictor(name, device="cpu", overrides=changes, allow_random_weights=True, metadata=names)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("folder", nargs="?", default=OUTPUT / "images")
    args = parser.parse_args()
    setup_logger()
    generate_shapes_dataset(OUTPUT, 6)
    predictor = Predictor(args.checkpoint) if args.checkpoint else random_predictor()
    (OUTPUT / "images" / "broken.png").write_text("not an image")  # does not stop the rest

    with ResultWriter(OUTPUT / "predictions", csv=True) as writer:
        for result in predictor(args.folder, on_error="keep"):
            writer.write(result)
            if result.error is None:
                print(f"{', '.join(result.names) or 'nothing'}: {OUTPUT}/predictions/{Path(result.name).name}")
    for name, error in writer.failed.items():
        print(f"left out {name}: {error}")
    print(f"{writer.object_count} objects in {writer.image_count} images: {OUTPUT}/predictions/counts.csv")
