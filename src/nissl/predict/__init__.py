"""Masks for a folder of new images."""

from nissl.predict.folder import FolderResult, predict_folder
from nissl.predict.memory import peak_bytes
from nissl.predict.tiles import predict_mask
from nissl.rooms import open_room

open_room(__name__)

__all__ = ["FolderResult", "peak_bytes", "predict_folder", "predict_mask"]
