"""The page at `/`: prompt, live previews, gallery; plain HTML, CSS and JavaScript modules, no build step.

`server/routes/playground.py` serves the files beside this one, as data. They call nothing but the public HTTP API, by
addresses relative to the page, so that the page also works below a path prefix of a proxy. No Python lives here.
"""
