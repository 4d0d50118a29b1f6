"""Runs made of the checkpoints of other code: LaVIN's."""
