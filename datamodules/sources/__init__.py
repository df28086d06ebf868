"""Sources of images: folders, tar shards, Hugging Face `datasets`, and real images that ship inside dependencies."""

from datamodules.sources.base import ImageRecords, ImageSource, Split
from datamodules.sources.captions import CaptionedFolder, CaptionedPhotos, CaptionedSource
from datamodules.sources.digits import DigitsSource
from datamodules.sources.folder import FolderSource
from datamodules.sources.hub import HubSource
from datamodules.sources.photos import PhotosSource
from datamodules.sources.webdataset import WebDatasetSource

__all__ = [
    "CaptionedFolder",
    "CaptionedPhotos",
    "CaptionedSource",
    "DigitsSource",
    "FolderSource",
    "HubSource",
    "ImageRecords",
    "ImageSource",
    "PhotosSource",
    "Split",
    "WebDatasetSource",
]
