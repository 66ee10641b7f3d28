"""One self-contained HTML file from run folders: pictures first."""

from cktf.report.page import write_report

__all__ = ["write_report"]
