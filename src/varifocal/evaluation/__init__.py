"""Scores by the public protocols, with predictions kept on disk."""
