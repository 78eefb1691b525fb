"""Other ways to the same numbers, each a worker in an environment of its own: `python -m benchmarks.peers`."""
