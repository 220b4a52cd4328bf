"""A solver for flow matching that remembers the last velocity: Adams and Bashforth's method of second order."""

from dataclasses import dataclass

from omnimuse.diffusion.schedules import FlowSchedule
from omnimuse.diffusion.solvers import FlowEuler


@dataclass
class LastVelocity:
    """What is remembered of one output between steps."""

    velocity: object = None

    def to(self, device):
        """Move it, in place."""
        if self.velocity is not None:
            self.velocity = self.velocity.to(device)


class TwoStep(FlowEuler):
    """Euler's method, with the velocity extrapolated from the last two. Its first step is Euler's."""

    def start(self, schedule):
        """Nothing yet."""
        return LastVelocity()

    def step(self, memory, index, schedule, sample, prediction, generator):
        """x + h (v + h / 2 h' (v - v')), where h' and v' are those of the step before."""
        sigmas = schedule.sigmas
        length, velocity = sigmas[index + 1] - sigmas[index], prediction
        if memory.velocity is not None:
            ratio = length / (sigmas[index] - sigmas[index - 1])
            velocity = prediction + ratio / 2 * (prediction - memory.velocity)
        memory.velocity = prediction
        return sample + length * velocity


def two_step(config, spacing, mu):
    """The solver of a checkpoint whose scheduler has this configuration."""
    return TwoStep(FlowSchedule.from_config(config, mu), spacing)
