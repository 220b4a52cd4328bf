"""The OpenAI-compatible server: its front process speaks HTTP, keeps jobs and never imports torch."""
