"""The nouns: errors, configuration, parameters, requests, outputs, specs and the registry. No torch here."""
