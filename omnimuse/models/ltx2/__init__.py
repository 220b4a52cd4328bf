"""LTX-2: videos with their sound, from text (Lightricks/LTX-2)."""
