"""One file per attention kernel. Each says by `why_not` where it cannot run; `selection.py` lists and binds
them.
"""
