"""One answer: who is admitted, and how what they asked for is drawn."""
