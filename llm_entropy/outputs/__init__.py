"""Shards -> what people open."""
