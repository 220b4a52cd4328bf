"""Trains, exports and grades the bundled demo model ``omnimuse/bundled/shapes``.

Not imported by the engine.  Read ``README.md`` for the commands.
"""
