"""The contracts between the parts: batches, statistics, records, and what lies in the shards.

Nothing here imports torch or pyarrow when it is imported.
"""
