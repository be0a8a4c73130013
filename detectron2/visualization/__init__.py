"""Pictures of data and predictions."""

from .canvas import VisImage
from .colors import ColorMode
from .masks import GenericMask
from .video_visualizer import VideoVisualizer
from .visualizer import Visualizer

__all__ = ["ColorMode", "GenericMask", "VideoVisualizer", "VisImage", "Visualizer"]
