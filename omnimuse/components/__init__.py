"""Networks that several families share. A family names one in its `spec.py`; nothing else knows them.

Each is built like a family's own network: `from_config` on the meta device, weights streamed in by name rules.
"""
