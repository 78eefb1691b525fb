"""`report.html`: all that a run found on one page, a file that opens from the disk and asks for nothing else.

`sample` collects some sentences in the one pass of the merge, `sentences` shows them, `content` everything else, in
`numbers` that are short to write; `page` puts it all into `page.html`, with `page.css` and the program of `program/`,
a file for each section of the page and for what they share.
"""

from llm_entropy.outputs.report.page import REPORT, ReportPage, write_report

__all__ = ["REPORT", "ReportPage", "write_report"]
