"""Readers of benchmark files: one module a family, each turning a document into points."""
