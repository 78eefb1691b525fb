"""Models opened up, and proved."""
