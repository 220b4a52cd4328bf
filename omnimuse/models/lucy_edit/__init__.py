"""Lucy Edit: a video changed as a text says, by a network of Wan's that sees it (decart-ai/Lucy-Edit-Dev)."""
