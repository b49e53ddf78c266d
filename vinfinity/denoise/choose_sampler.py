"""Make the sampler that a setting names, on a model's noise schedule."""

from vinfinity.denoise.flow_samplers import FLOW_SAMPLERS
from vinfinity.denoise.flows import FlowSchedule, Schedule
from vinfinity.denoise.samplers import SAMPLERS
from vinfinity.denoise.state import Sampler


def make_sampler(name: str, schedule: Schedule, *, steps: int, eta: float = 0.0) -> Sampler:
    """Make the sampler of that name on a model's noise schedule.

    Raises ValueError if the sampler does not suit the schedule.
    """
    if steps > schedule.num_train_timesteps:
        raise ValueError(f"steps: {steps} is more than the {schedule.num_train_timesteps} training steps")
    flow = isinstance(schedule, FlowSchedule)
    known = FLOW_SAMPLERS if flow else SAMPLERS
    if name not in known:
        kind = "flow matching" if flow else "a schedule of betas"
        raise ValueError(f"does not suit a model trained with {kind}, which takes {', '.join(known)}")
    if isinstance(schedule, FlowSchedule):
        return FLOW_SAMPLERS[name](schedule, steps)
    return SAMPLERS[name](schedule, steps, eta)
