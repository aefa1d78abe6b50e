"""The catalogue: accelerators, models and engines, each figure with its source."""
