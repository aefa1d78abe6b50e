"""Decisions that cannot be enumerated: scipy on top of what the core computes."""
