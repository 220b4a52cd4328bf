"""Step caches: stack runners that skip blocks when little has changed since the step before."""
