"""A language model that answers, and a picture model that draws what it asks for: in one request, text and picture."""
