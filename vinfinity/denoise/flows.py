"""The noise levels of models trained by flow matching (Lipman et al. 2023), and the schedule in a model's folder.

Latents are x = (1 - sigma) x0 + sigma noise, and the model predicts the velocity, noise - x0. A shift moves the levels
of all steps towards noise, where videos of many tokens need more of them (Esser et al. 2024, eq. 23).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vinfinity.denoise.schedule import SchedulerConfig, not_followed, unusual
from vinfinity.system.fields import above_zero, from_zero, known_fields

# The diffusers schedulers that models trained by flow matching name, and what their files call the shift.
FLOW_SCHEDULERS: Mapping[str, str] = {
    "FlowMatchEulerDiscreteScheduler": "shift",
    "FlowMatchHeunDiscreteScheduler": "shift",
    "UniPCMultistepScheduler": "flow_shift",
    "DPMSolverMultistepScheduler": "flow_shift",
}
# The one that is not available as a sampler.
UNAVAILABLE = "FlowMatchHeunDiscreteScheduler"
# Settings that say which noise levels the model was trained for, and the only supported values.
SUPPORTED: Mapping[str, tuple[object, ...]] = {
    "prediction_type": ("flow_prediction",),
    "use_dynamic_shifting": (False,),
    "shift_terminal": (0, False),
    "invert_sigmas": (False,),
}
# Settings of sampling that a user would miss, and the values that samplers follow or that have no effect.
NOTEWORTHY: Mapping[str, tuple[object, ...]] = {
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "final_sigmas_type": ("zero",),
    "predict_x0": (True,),
    "solver_order": (1, 2),
    "solver_type": ("bh1", "bh2", "midpoint", "heun", "logrho"),
    "stochastic_sampling": (False,),
    "thresholding": (False,),
    "use_beta_sigmas": (False,),
    "use_exponential_sigmas": (False,),
    "use_karras_sigmas": (False,),
    "use_lu_lambdas": (False,),
}
# keeps the first level of UniPC below 1, where the logarithm of the signal would be infinite
BELOW_ONE = 1e-6


@dataclass(frozen=True)
class FlowSchedule:
    """The settings of a diffusers scheduler_config.json for flow matching.

    shift: moves the noise levels towards noise. scheduler: the class name in the file. solver_order, solver_type,
    lower_order_final, disable_corrector: as in diffusers' multistep schedulers. noteworthy: settings of sampling in the
    file that no sampler follows.
    """

    num_train_timesteps: int = 1000
    shift: float = above_zero(1.0)
    solver_order: int = 2
    solver_type: str = "bh2"
    lower_order_final: bool = True
    disable_corrector: tuple[int, ...] = from_zero(())
    scheduler: str | None = field(default=None, compare=False)
    noteworthy: Mapping[str, object] = field(default_factory=dict, compare=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "FlowSchedule":
        """Read a parsed scheduler_config.json.

        Settings of the model are followed, or refused with a ValueError. Settings of sampling are followed if samplers
        have them; `ignored_by` names the others.
        """
        name = str(values.get("_class_name"))
        if name not in FLOW_SCHEDULERS:
            raise ValueError(f"_class_name: {name} is not one of {', '.join(FLOW_SCHEDULERS)}")
        if not name.startswith("FlowMatch") and not values.get("use_flow_sigmas"):
            raise ValueError("use_flow_sigmas: is not true, but the model was trained by flow matching")
        for key, allowed in SUPPORTED.items():
            if values.get(key) is not None and values[key] not in allowed:
                raise ValueError(f"{key}: {values[key]!r} is not supported for flow matching")
        given = {**values, "shift": values.get(FLOW_SCHEDULERS[name])}
        noteworthy = unusual(values, NOTEWORTHY)
        known = known_fields(cls, given, ignore=None)
        followed = {key: value for key, value in known.items() if key not in noteworthy}
        return cls(**followed, scheduler=name, noteworthy=noteworthy)

    def shifted(self, sigmas: np.ndarray) -> np.ndarray:
        """Move noise levels towards noise (Esser et al. 2024, eq. 23)."""
        levels: np.ndarray = self.shift * sigmas / (1 + (self.shift - 1) * sigmas)
        return levels

    def ignored_by(self, sampler: str) -> str:
        """Return a warning that names the settings in the model's file that a sampler ignores; "" without any."""
        unavailable = UNAVAILABLE if self.scheduler == UNAVAILABLE else None
        return not_followed(sampler, self.noteworthy, unavailable, follows="shift")


Schedule = SchedulerConfig | FlowSchedule


def read_schedule(values: Mapping[str, object], *, flow: bool) -> Schedule:
    """Return the noise schedule in a parsed scheduler_config.json.

    flow: whether the model was trained by flow matching. Raises ValueError for settings that are not supported.
    """
    return FlowSchedule.from_dict(values) if flow else SchedulerConfig.from_dict(values)
