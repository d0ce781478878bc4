"""Counting, tracing and drawing: what the chapters say about the models."""
