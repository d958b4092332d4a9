"""The report of a comparison or of single runs: one self-contained HTML file, or Markdown."""

from salun_fast.report.markdown import markdown
from salun_fast.report.page import write_report
from salun_fast.report.source import Source, read_source

__all__ = ["Source", "markdown", "read_source", "write_report"]
