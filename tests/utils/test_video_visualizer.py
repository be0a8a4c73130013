import detectron2.utils.video_visualizer as facade
from detectron2.visualization import VideoVisualizer
from detectron2.visualization.video_visualizer import _DetectedInstance


def test_names_are_those_of_the_implementation():
    assert facade.VideoVisualizer is VideoVisualizer
    assert facade._DetectedInstance is _DetectedInstance
    for name in facade.__all__:
        assert getattr(facade, name) is not None
