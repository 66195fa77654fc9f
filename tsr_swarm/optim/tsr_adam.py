"""TSR-Adam in one process, at every step, as a torch optimizer (Dang et al., arXiv 2602.08007, Algorithm 1).

Letters: G (M, N) the gradient, U (M, R), V (N, R) a parameter's bases, C (R, R) its core. Where this departs from the
paper and its code:

- The randomized SVD of a refresh (tsr_adam_refresh.py) starts from the bases in use and P fresh columns, not from fresh
  columns alone; bases are rounded to 12 bits, as on the wire. P = 5 and one power iteration are the code's.
- At a refresh the moments are turned to the new bases by the two-sided rule of LDAdam (arXiv 2410.16103) instead of
  carried over unchanged. They are never less than float32: a bfloat16 average with beta = 0.999 cannot decay.
- eps is added after the bias correction, as in Adam's own paper and torch's; their code adds it before, which makes it
  1 / sqrt(1 - beta2^t) times larger, 31 times at the first step. Weights decay before the step, as in torch,
  not after, which differs by lr^2 decay D. The default eps is 1e-8, as in torch; theirs is 1e-6.
- ``feedback_bits`` (tsr_adam_feedback.py) is not theirs.
"""

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from tsr_swarm.optim.core_stack import STACK_NUMBERS
from tsr_swarm.optim.tsr_adam_feedback import add_lost, descended, feed_back, forget_error
from tsr_swarm.optim.tsr_adam_refresh import refresh
from tsr_swarm.optim.tsr_adam_state import (
    LATER_OPTIONS,
    NO_STATE,
    checked_options,
    fresh_state,
    moments_shape,
    read_state,
    require_saved_groups,
    require_whole_parameters,
    step_tensor,
)
from tsr_swarm.optim.tsr_adam_step import Stack, StepOptions, step_stacks

_DENSE_STACK = 1 << 16  # most numbers of a full-size parameter that is stacked, which copies its gradient
_Item = tuple[int, Tensor, dict[str, Any]]  # number, parameter, group


class TSRAdam(Optimizer):
    """Adam whose moments live in an r x r core per matrix; a drop-in torch optimizer.

    Two-dimensional parameters with both sizes above ``rank`` are low rank; all others, and all with ``rank=None``, take
    plain Adam steps (AdamW with ``weight_decay``). Every option can be set per parameter group; ``rank`` holds from a
    parameter's first step on. Numbers of numpy and torch will do for all of them.

    lr: rate, as for dense Adam; the published runs use 0.01 with ``scale`` 0.5 to 0.75.
    rank: r, at least 1, or None.
    refresh_every: steps between two refreshes of a parameter's bases; the first is at its first step.
    oversampling: fresh columns of a refresh beside the R of the old basis; more find strong directions sooner.
    power_iterations: of a refresh; each costs two products of the gradient with R + P columns.
    scale: multiplies low-rank steps; 0 takes sqrt(M N) / r, which makes them as long as dense ones.
    seed: of the random bases that the first refresh starts from, and of fresh columns.
    feedback_bits: 4 or 8 bits a number for a full-size error feedback; 0: none. For refreshes every few steps: what
        waits longer comes back at once (on the bench's quadratic it diverges with one in 100 steps).
    maximize: maximize the loss instead of minimizing it.
    foreach: parameters of one shape step together, which takes fewer operations; false: one at a time.
    capturable: count steps in tensors, so that only steps that refresh wait for the device, and ``compile`` can make
        one graph of the others. CUDA graphs can capture it by design, see ``refresh``; no GPU has tried that yet.

    A gradient too large to be squared counts as a smaller one of the same direction. One that is not finite makes
    weights NaN, as with torch's Adam: leave such steps out, as ``torch.amp.GradScaler`` does. Parameters of which a
    process holds only a part, FSDP's, are refused with ValueError unless ``rank`` is None.
    """

    _compiled: Callable[[Sequence[Stack]], None] | None = None

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: int | None = 128,
        refresh_every: int = 100,
        oversampling: int = 5,
        power_iterations: int = 1,
        scale: float = 0.0,
        seed: int = 0,
        feedback_bits: int = 0,
        maximize: bool = False,
        foreach: bool = True,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "rank": rank,
            "refresh_every": refresh_every,
            "oversampling": oversampling,
            "power_iterations": power_iterations,
            "scale": scale,
            "seed": seed,
            "feedback_bits": feedback_bits,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
        }
        self._taken: dict[Tensor, int] = {}  # steps of each parameter, known without waiting for a device
        super().__init__(params, checked_options(defaults))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options it does not name are the optimizer's. Raises ValueError for one out of range."""
        if isinstance(param_group, dict):
            param_group = {**param_group, **checked_options({**self.defaults, **param_group})}
        super().add_param_group(param_group)
        try:
            require_whole_parameters(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step and return the closure's loss, if there is one.

        Raises RuntimeError for sparse gradients, complex parameters and a graph's capture that cannot be, ValueError
        for a rank that has changed; nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        due = list(self._due())
        with _own_precision({parameter.device.type for _, parameter, _ in due}):
            for _, parameter, group in due:
                self._count(parameter, group)
            stacks = (self._prepared(items) for items in self._alike(due))
            if self._compiled is not None:
                self._compiled(list(stacks))
            else:
                for stack in stacks:
                    step_stacks([stack])
        return loss

    @torch.no_grad()
    def refresh(self) -> None:
        """Aim all bases at the present gradients now.

        Where a CUDA graph replays the step, which aims nothing, call this between replays, every ``refresh_every``.
        """
        for number, parameter, group in self._due():
            state = self.state[parameter]
            if "left" in state and parameter.grad is not None:
                with _own_precision({parameter.device.type}):
                    along = descended(parameter.grad, state, group)
                    lost = refresh(state, along, group, number, int(state["step"]))
                    if lost is not None:
                        add_lost(state, lost, group)

    def compile(self, **options: Any) -> None:
        """Have ``torch.compile``, with its ``options``, make one graph of the step between two refreshes.

        Every group must be capturable. A rate that changes should be a tensor, else each of its values may compile
        anew. Copies of the optimizer, and unpickled ones, are not compiled.
        """
        if not all(group["capturable"] for group in self.param_groups):
            raise ValueError("A step can be compiled only with capturable=True, which counts steps in tensors.")
        self._compiled = torch.compile(step_stacks, fullgraph=True, **options)

    def _due(self) -> Iterator[_Item]:
        """All parameters that have a gradient, once they are known to be legal."""
        items = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        due = [(number, *item) for number, item in enumerate(items) if item[0].grad is not None]
        for number, parameter, group in due:
            self._require_legal(parameter, group, number)
        for number, parameter, group in due:
            if not self.state[parameter]:
                self.state[parameter].update(fresh_state(parameter, group["rank"], group["seed"], number))
            yield number, parameter, group

    def _require_legal(self, parameter: Tensor, group: dict[str, Any], number: int) -> None:
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise RuntimeError("TSRAdam does not support sparse gradients; use sparse=False or torch.optim.SparseAdam.")
        if parameter.is_complex():
            raise RuntimeError("TSRAdam does not support complex parameters; use torch.view_as_real of them.")
        if _is_captured(parameter) and not (group["capturable"] and self.state.get(parameter)):
            raise RuntimeError("A graph can capture steps of TSRAdam only with capturable=True and after a first step.")
        found = self.state[parameter]["exp_avg"].shape if self.state.get(parameter) else None
        if found is not None and tuple(found) != moments_shape(parameter, group["rank"]):
            raise ValueError(
                f"Parameter {number} of shape {tuple(parameter.shape)} has moments of {tuple(found)}, which do not fit "
                f"rank {group['rank']}: neither can change after its first step; make a new TSRAdam."
            )

    def _count(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Count the step: in the state, and for refreshes on the host, where a tensor would have to be waited for."""
        state = self.state[parameter]
        if parameter not in self._taken:
            self._taken[parameter] = 0 if parameter.is_meta else int(state["step"])
        self._taken[parameter] += 1
        if group["capturable"] and not isinstance(state["step"], Tensor):
            state["step"] = step_tensor(state["step"], parameter)
        elif not group["capturable"] and isinstance(state["step"], Tensor):
            state["step"] = int(state["step"])
        state["step"] += 1

    def _alike(self, due: Sequence[_Item]) -> Iterator[list[_Item]]:
        """Parameters that step as one stack. Those with error feedback, a full-size sum each, step one at a time."""
        alike: dict[Hashable, list[_Item]] = {}
        for number, parameter, group in due:
            state = self.state[parameter]
            most = _most_stacked(parameter, group, state)
            step = None if group["capturable"] else state["step"]
            grad = parameter.grad
            assert grad is not None, "only those that are due take a step"
            key = (id(group), parameter.shape, parameter.dtype, grad.dtype, parameter.device, step)
            items = alike.setdefault(key, [])
            items.append((number, parameter, group))
            if len(items) == most:
                yield alike.pop(key)
        yield from alike.values()

    def _prepared(self, items: Sequence[_Item]) -> Stack:
        """Refresh the bases that are due, and return what the step takes."""
        group, gradients = items[0][2], []
        options = StepOptions(*(group[option] for option in StepOptions._fields))
        for number, parameter, _ in items:
            state, gradient, lost = self.state[parameter], parameter.grad, None
            assert gradient is not None, "only those that are due take a step"
            if "left" in state:
                is_due = (self._taken[parameter] - 1) % group["refresh_every"] == 0 and not _is_captured(parameter)
                along = descended(gradient, state, group) if is_due or group["feedback_bits"] else gradient
                if is_due:
                    lost = refresh(state, along, group, number, self._taken[parameter] - 1)
                if group["feedback_bits"]:
                    feed_back(state, along, lost, group)
                    gradient, options = along, options._replace(maximize=False)
                else:
                    forget_error(state)
            gradients.append(gradient)
        parameters = [parameter for _, parameter, _ in items]
        return Stack(parameters, gradients, [self.state[parameter] for parameter in parameters], options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read a state back, its groups' options with it, as torch's optimizers do.

        Options that an older state lacks stay as they are. Unlike torch's own, moments keep their dtype where the
        parameter's is a shorter one. Raises ValueError, before any change, for a state of another optimizer or model.
        """
        if not isinstance(state_dict, dict):
            raise ValueError(NO_STATE)
        handle = self.register_load_state_dict_pre_hook(_read)  # runs last, after the caller's own hooks
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Torch's hook of loading, copying and unpickling."""
        super().__setstate__(state)
        self._taken = {}
        for options in (self.defaults, *self.param_groups):
            for option, value in LATER_OPTIONS.items():
                options.setdefault(option, value)
        for parameter, kept in self.state.items():
            if isinstance(kept, _Read):
                self.state[parameter] = kept.state


@dataclass(frozen=True, slots=True)
class _Read:
    """A parameter's state as it was read, wrapped: torch would cast bare tensors to the parameter's dtype."""

    state: dict[str, Any]


def _read(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
    """Check ``state_dict`` and convert it to this optimizer's types. Raises ValueError."""
    require_saved_groups(state_dict)
    groups, saved_groups = optimizer.param_groups, state_dict["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved_groups]:
        return None  # torch raises its own error
    read_groups, read_states = [], {}
    for group, saved in zip(groups, saved_groups, strict=True):
        options = {option: group[option] for option in optimizer.defaults if option in group}
        read_groups.append({**saved, **checked_options({**options, **saved})})
        for parameter, number in zip(group["params"], saved["params"], strict=True):
            if state := read_state(state_dict["state"].get(number), parameter, read_groups[-1]["rank"], number):
                read_states[number] = _Read(state)
    return {**state_dict, "state": read_states, "param_groups": read_groups}


@contextmanager
def _own_precision(device_types: Collection[str]) -> Iterator[None]:
    """Disable ``torch.autocast`` in a step, as torch's optimizers do."""
    with ExitStack() as stack:
        for device_type in device_types:
            if torch.amp.is_autocast_available(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


def _is_captured(parameter: Tensor) -> bool:
    return parameter.is_cuda and torch.cuda.is_current_stream_capturing()


def _most_stacked(parameter: Tensor, group: dict[str, Any], state: dict[str, Any]) -> int:
    """How many parameters of this shape may be one stack: where they are large, stacking saves nothing."""
    if not group["foreach"] or ("left" in state and group["feedback_bits"]):
        return 1
    if "left" not in state:
        return max(1, _DENSE_STACK // max(1, parameter.numel()))
    return max(1, STACK_NUMBERS // (len(state["exp_avg"]) * max(parameter.shape)))
