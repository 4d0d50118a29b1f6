"""Examples to token ids: chat template, answer spans, truncation, encoded tables."""
