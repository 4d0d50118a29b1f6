"""Images and numbers that explain a trained run."""
