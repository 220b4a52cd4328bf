"""Bytes to pixels and back, and where finished files go. Knows nothing of models or requests."""
