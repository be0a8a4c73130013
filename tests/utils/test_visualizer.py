import detectron2.utils.visualizer as facade
from detectron2.visualization import ColorMode, GenericMask, VisImage, Visualizer


def test_names_are_those_of_the_implementation():
    assert facade.Visualizer is Visualizer
    assert facade.ColorMode is ColorMode
    assert facade.VisImage is VisImage
    assert facade.GenericMask is GenericMask


def test_names_that_projects_import():
    for name in facade.__all__:
        assert getattr(facade, name) is not None
    assert {"_create_text_labels", "_PanopticPrediction", "_SMALL_OBJECT_AREA_THRESH", "_OFF_WHITE"} <= set(
        facade.__all__
    )
    assert facade._SMALL_OBJECT_AREA_THRESH == 1000
    assert facade._OFF_WHITE == (1.0, 1.0, 240 / 255)
    assert facade.random_color(rgb=True, maximum=1).shape == (3,)
