"""One self-contained HTML page per run."""

from nissl.report.html import write_report

__all__ = ["write_report"]
