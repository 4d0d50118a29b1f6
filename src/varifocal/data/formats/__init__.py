"""Formats of records: each parses a record into an example."""
