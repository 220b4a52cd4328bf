"""Between a socket and a route: connections, limits, keys, bodies, streams of events."""
