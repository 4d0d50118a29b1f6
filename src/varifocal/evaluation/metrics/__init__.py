"""Metrics by their official definitions; they know texts and numbers, no model and no file."""
