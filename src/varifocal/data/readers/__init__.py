"""Readers of raw rows: JSON, CSV, parquet, tar shards, image folders."""
