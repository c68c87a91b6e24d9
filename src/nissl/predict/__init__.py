"""Masks for a folder of new images."""

from nissl.predict.folder import FolderResult, predict_folder
from nissl.predict.tiles import peak_bytes, predict_mask

__all__ = ["FolderResult", "peak_bytes", "predict_folder", "predict_mask"]
