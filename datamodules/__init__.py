"""Where records come from: one file per dataset family."""

from __future__ import annotations

from datamodules.folder import FolderData
from datamodules.joined import JoinedData
from datamodules.llava import LlavaPretrainData
from datamodules.mtcir import MtcirData
from datamodules.webdataset import WebDatasetData
from datamodules.world import WorldData

__all__ = [
    "FolderData",
    "JoinedData",
    "LlavaPretrainData",
    "MtcirData",
    "WebDatasetData",
    "WorldData",
]
