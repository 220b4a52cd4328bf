"""What is going on, made visible: progress today; metrics, traces and the profiler have their place here."""
