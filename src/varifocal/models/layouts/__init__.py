"""Checkpoints of other code: which of its tensors are which of ours, in both directions."""
