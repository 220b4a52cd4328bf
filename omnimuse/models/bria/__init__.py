"""Bria 3.2: pictures from text, by a network of FLUX's kind that saw licensed pictures only (briaai/BRIA-3.2)."""
