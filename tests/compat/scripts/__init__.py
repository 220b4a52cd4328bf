"""Scripts as people have them: their calls and options are those of the guides, the import root is the door."""
