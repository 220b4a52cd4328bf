"""What drives processes: workers with an engine each, the front's side of them, and what both say."""
