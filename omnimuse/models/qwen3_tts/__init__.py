"""Qwen3-TTS: speech from text, in a voice of the checkpoint's, of a sound, or one that words describe."""
