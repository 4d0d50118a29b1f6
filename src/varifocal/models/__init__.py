"""Grafted models: a language model, a vision tower and the connector between them."""
