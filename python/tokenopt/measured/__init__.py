"""Measured operating points: reading, cleaning, calibrating on them, and scoring predictions against them."""
