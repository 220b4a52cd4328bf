"""The shapes of what goes over the wire, as pydantic models; they know nothing of engines."""
