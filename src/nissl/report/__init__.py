"""One self-contained HTML page per run."""

from nissl.report.html import write_report
from nissl.rooms import open_room

open_room(__name__)

__all__ = ["write_report"]
