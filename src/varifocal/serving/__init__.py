"""Asking and chatting with a finished run."""
