"""Mixed precision: where it is used, and where it must not be."""

import torch

from nissl.config import Precision


def resolved_precision(device: torch.device, precision: Precision) -> Precision:
    """Return the precision that `auto` means on a device: bfloat16 on a GPU, float32 elsewhere."""
    return ("bfloat16" if device.type == "cuda" else "float32") if precision == "auto" else precision


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context of mixed precision: bfloat16 where asked for, or on a GPU by default."""
    return torch.autocast(device.type, torch.bfloat16, enabled=resolved_precision(device, precision) == "bfloat16")
