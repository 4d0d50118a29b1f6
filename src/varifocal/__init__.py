"""Varifocal: give a frozen language model eyes."""
