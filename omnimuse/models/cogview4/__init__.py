"""CogView4: pictures from English and Chinese text, by a network that text and image go through alike (THUDM)."""
