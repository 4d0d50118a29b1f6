"""What leaves the house: plain checkpoints and adapters, each held against the trained model."""
