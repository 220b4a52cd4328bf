"""A step cache that looks at nothing: of the steps behind the warm-up, every other one is skipped."""

from omnimuse.cache.policies import COMPUTE, Policy, Verdict


class Alternate(Policy):
    """Skip, unless the step before was skipped. `threshold` says nothing, but that 0 is off, as for all."""

    watches = ""
    always = False

    def judge(self, row, memory, change):
        """`row.skips` counts the steps in a row that were skipped."""
        return COMPUTE if row.skips else Verdict(skip=True)
