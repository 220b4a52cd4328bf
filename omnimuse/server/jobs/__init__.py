"""Durable jobs: the book of them, their rows, their files."""
