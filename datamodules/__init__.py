"""Data modules: batches of labelled images, tokens or labels, in an order that resumes exactly."""

from datamodules.captions import CaptionDataModule
from datamodules.images import ImageDataModule
from datamodules.labels import LabelDataModule
from datamodules.online import OnlineTokenDataModule
from datamodules.references import ReferenceDataModule
from datamodules.sources import (
    CaptionedFolder,
    CaptionedPhotos,
    CaptionedSource,
    DigitsSource,
    FolderSource,
    HubSource,
    ImageRecords,
    ImageSource,
    PhotosSource,
    WebDatasetSource,
)
from datamodules.tokens import TokenDataModule
from datamodules.views import Views

__all__ = [
    "CaptionDataModule",
    "CaptionedFolder",
    "CaptionedPhotos",
    "CaptionedSource",
    "DigitsSource",
    "FolderSource",
    "HubSource",
    "ImageDataModule",
    "ImageRecords",
    "ImageSource",
    "LabelDataModule",
    "OnlineTokenDataModule",
    "PhotosSource",
    "ReferenceDataModule",
    "TokenDataModule",
    "Views",
    "WebDatasetSource",
]
