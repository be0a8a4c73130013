"""Draw predictions on the frames of a video. The class lives in `detectron2.visualization`."""

from detectron2.utils.colormap import random_color
from detectron2.visualization.labels import _create_text_labels
from detectron2.visualization.video_visualizer import VideoVisualizer, _DetectedInstance

__all__ = ["VideoVisualizer", "_DetectedInstance", "_create_text_labels", "random_color"]
