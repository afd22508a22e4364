"""Where records come from: one file per dataset family."""

from __future__ import annotations

from datamodules.chatir import ChatIRData
from datamodules.cirr import CIRRData
from datamodules.fashioniq import FashionIQData
from datamodules.folder import FolderData
from datamodules.joined import JoinedData
from datamodules.karpathy import KarpathyData
from datamodules.llava import LlavaPretrainData
from datamodules.mixed import MixedData
from datamodules.mtcir import MtcirData
from datamodules.visdial import VisDialData
from datamodules.webdataset import WebDatasetData
from datamodules.world import WorldData
from datamodules.world_conversations import WorldConversationData
from datamodules.world_dialogues import WorldDialogueData
from datamodules.world_labels import WorldLabelData
from datamodules.world_rewriting import WorldRewritingData

__all__ = [
    "CIRRData",
    "ChatIRData",
    "FashionIQData",
    "FolderData",
    "JoinedData",
    "KarpathyData",
    "LlavaPretrainData",
    "MixedData",
    "MtcirData",
    "VisDialData",
    "WebDatasetData",
    "WorldConversationData",
    "WorldData",
    "WorldDialogueData",
    "WorldLabelData",
    "WorldRewritingData",
]
