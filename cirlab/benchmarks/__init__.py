"""Benchmarks: one file each, official or own files in, queries and rules out."""

from __future__ import annotations

from cirlab.benchmarks.base import Benchmark, Protocol, TargetRanks
from cirlab.benchmarks.chatir import ChatIR
from cirlab.benchmarks.circo import CIRCO
from cirlab.benchmarks.cirr import CIRR
from cirlab.benchmarks.coco_facet import COCOFacet
from cirlab.benchmarks.fashioniq import FashionIQ
from cirlab.benchmarks.folder import FolderComposed, FolderImageToText, FolderTextToImage
from cirlab.benchmarks.folder_dialogues import FolderDialogues
from cirlab.benchmarks.folder_facets import FolderFacets
from cirlab.benchmarks.genecis import GeneCIS
from cirlab.benchmarks.karpathy import KarpathyImageToText, KarpathyTextToImage
from cirlab.benchmarks.world_circo import WorldCIRCO
from cirlab.benchmarks.world_cirr import WorldCIRR
from cirlab.benchmarks.world_composed import WorldComposed
from cirlab.benchmarks.world_dialogue import WorldDialogue
from cirlab.benchmarks.world_facet import WorldFacet
from cirlab.benchmarks.world_fashion import WorldFashionIQ
from cirlab.benchmarks.world_genecis import WorldGeneCIS
from cirlab.benchmarks.world_text_to_image import WorldTextToImage

__all__ = [
    "CIRCO",
    "CIRR",
    "Benchmark",
    "COCOFacet",
    "ChatIR",
    "FashionIQ",
    "FolderComposed",
    "FolderDialogues",
    "FolderFacets",
    "FolderImageToText",
    "FolderTextToImage",
    "GeneCIS",
    "KarpathyImageToText",
    "KarpathyTextToImage",
    "Protocol",
    "TargetRanks",
    "WorldCIRCO",
    "WorldCIRR",
    "WorldComposed",
    "WorldDialogue",
    "WorldFacet",
    "WorldFashionIQ",
    "WorldGeneCIS",
    "WorldTextToImage",
]
