"""Samples packed into rows of fixed length, in memory or while training."""
