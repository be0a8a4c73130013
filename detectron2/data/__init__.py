"""Data sets, and the way from their files to batches for the model."""

from detectron2.data import datasets, detection_utils, samplers, transforms
from detectron2.data.build import (
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    load_proposals_into_dataset,
    print_instances_class_histogram,
)
from detectron2.data.catalog import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.common import DatasetFromList, MapDataset, ShardedIterableDataset, ToIterableDataset
from detectron2.data.dataset_mapper import DatasetMapper
from detectron2.data.multi_image import CopyPaste, MixUp, Mosaic, MultiImageAugmentation, MultiImageMapper
from detectron2.data.validation import DatasetError, validate_dataset_dicts

__all__ = [
    "CopyPaste",
    "DatasetCatalog",
    "DatasetError",
    "DatasetFromList",
    "DatasetMapper",
    "MapDataset",
    "Metadata",
    "MetadataCatalog",
    "MixUp",
    "Mosaic",
    "MultiImageAugmentation",
    "MultiImageMapper",
    "ShardedIterableDataset",
    "ToIterableDataset",
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "datasets",
    "detection_utils",
    "get_detection_dataset_dicts",
    "load_proposals_into_dataset",
    "print_instances_class_histogram",
    "samplers",
    "transforms",
    "validate_dataset_dicts",
]
