"""Shards -> tables: what the processes wrote, in corpus order, as the files that people open.

`parts` finds and reads the shards, `text` makes CSV of them, `tables` writes the files of one condition or of the
comparison, `model` does it all for one model, in bounded memory.
"""

from llm_entropy.merge.model import merge_model
from llm_entropy.merge.results import SummaryRow, read_metric, summary_rows

__all__ = ["SummaryRow", "merge_model", "read_metric", "summary_rows"]
