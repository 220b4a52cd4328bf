"""Doors for models that come from elsewhere, one package each. They make what a family makes: a spec and a pipeline."""
