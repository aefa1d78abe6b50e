"""Tables and files that people read."""
