"""The states of contrastive pairs -> vectors, and what they are worth."""
