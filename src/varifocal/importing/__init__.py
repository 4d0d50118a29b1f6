"""Runs made of the checkpoints of other code: LaVIN's, MixLoRA's, LLaVA's."""
