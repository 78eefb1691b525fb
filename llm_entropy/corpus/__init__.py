"""Text in: from files to batches."""
