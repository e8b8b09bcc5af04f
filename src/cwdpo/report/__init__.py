"""Reports of runs as one self-contained HTML page, made from what run directories hold. No torch here."""

from cwdpo.report.page import write_report

__all__ = ["write_report"]
