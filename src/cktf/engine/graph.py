"""The whole training step as one CUDA graph.

At a batch of 64, a step of small networks launches a thousand kernels that each take microseconds,
and the GPU waits for the host to launch the next. A graph is launched at once. It repeats the
kernels of one step on the same memory, so a batch is copied to where the captured step read its
own.

A graph cannot repeat Python values that change from step to step, random numbers of the CPU,
copies from the host, or values read back. docs/design.md lists the runs that have none.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from cktf.batch import Batch
from cktf.engine.config import TrainingConfig
from cktf.engine.memory import is_out_of_memory
from cktf.engine.randomness import random_state
from cktf.engine.step import TrainStep
from cktf.errors import TrainingError
from cktf.objectives import WeightedSum
from cktf.taps import Features

# The first sets the normalizers of contrast and the optimizer's momentum; the others settle the
# choice of kernels.
_EAGER_STEPS = 3

TakeStep = Callable[[Batch, Features | None], Tensor]


def find_graph_obstacle(config: TrainingConfig, step: TrainStep, device: torch.device) -> str:
    """Say why no CUDA graph can replay the steps of a phase; empty where one may."""
    if config.runtime.graph == "off":
        return "runtime.graph is off"
    if device.type != "cuda":
        return "the device is no CUDA GPU"
    if config.runtime.on_nonfinite == "skip":
        return "on_nonfinite=skip reads the loss of every step before it updates the student"
    is_sum = isinstance(step.objective, WeightedSum)
    parts = step.objective.sub_objectives() if is_sum else [step.objective]
    names = ", ".join(type(part).__name__ for part in parts if not part.capturable)
    return f"{names} with these options does more in a step than a graph repeats" if names else ""


class GraphedStep:
    """Takes the steps of a phase: the first ones kernel by kernel, the others as one CUDA graph.

    Args:
        take_step: forward, backward and update for a batch and, where they are computed outside of
            the graph, the teacher's features; returns the step's numbers.
        step: the modules that it trains.
        optimizer: its learning rates may change from step to step, and nothing else.
        config: of the run; with `runtime.graph=on` a step that cannot be captured is an error.
        device: where the step is computed.
        log: called with a line when the graph is captured, or cannot be.

    Raises:
        TrainingError: `runtime.graph` is `on`, and it is not possible.
    """

    def __init__(
        self,
        take_step: TakeStep,
        step: TrainStep,
        optimizer: torch.optim.Optimizer,
        config: TrainingConfig,
        device: torch.device,
        log: Callable[[str], None],
    ) -> None:
        self.take_step, self.step, self.optimizer = take_step, step, optimizer
        self.required, self.log = config.runtime.graph == "on", log
        self._graph: _CapturedStep | None = None
        self._eager_steps, self._is_eager = 0, False
        self._signature: list[Any] = []
        obstacle = find_graph_obstacle(config, step, device)
        if obstacle:
            self._give_up(obstacle, silent=device.type == "cpu")

    def begin_epoch(self) -> None:
        """Forget the graph if modules, weights or optimizer are not those that it captured."""
        if self._graph is not None and self._signature != _signature(self.step, self.optimizer):
            self.log("the step changed: its CUDA graph is captured anew")
            self._graph, self._eager_steps = None, 0

    def __call__(self, batch: Batch) -> Tensor:
        """Take a step; the numbers that it returns are not overwritten by later steps."""
        teacher = self.step.features_outside_graph(batch)
        if self._is_eager:
            return self.take_step(batch, teacher)
        if self._graph is None and self._eager_steps < _EAGER_STEPS:
            return self._take_eager_step(batch, teacher)
        if self._graph is None:
            try:
                self._graph = _CapturedStep(self.take_step, self.optimizer, batch, teacher)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self._give_up(str(error).splitlines()[0])
                return self.take_step(batch, teacher)
            self._signature = _signature(self.step, self.optimizer)
            self.log("the training step is replayed as one CUDA graph")
        return self._graph.replay(batch, teacher)

    def _take_eager_step(self, batch: Batch, teacher: Features | None) -> Tensor:
        before = _cpu_random_state()
        # As PyTorch asks, what is captured first runs on another stream than the default one.
        with _side_stream():
            numbers = self.take_step(batch, teacher)
        self._eager_steps += 1
        if _cpu_random_state() != before:
            self._give_up("the step draws random numbers on the CPU")
        return numbers

    def _give_up(self, reason: str, silent: bool = False) -> None:
        self._is_eager = True
        self.optimizer.zero_grad(set_to_none=True)
        if self.required:
            raise TrainingError(
                "runtime.graph is on, and no CUDA graph can replay the training step: "
                f"{reason}. Set runtime.graph to auto."
            )
        if not silent:
            self.log(f"the training step is no CUDA graph: {reason}")


class _CapturedStep:
    """One step on memory of its own."""

    def __init__(
        self,
        take_step: TakeStep,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        teacher: Features | None,
    ) -> None:
        self.optimizer = optimizer
        self._inputs = [tensor.clone() for tensor in _tensors(batch, teacher)]
        inputs = _replace_tensors(batch, teacher, self._inputs)
        groups, device = optimizer.param_groups, batch.images.device
        self._rates = [torch.tensor(float(group["lr"]), device=device) for group in groups]
        with self._rates_on_device():
            self._graph, self._numbers = _capture(take_step, inputs)

    def replay(self, batch: Batch, teacher: Features | None) -> Tensor:
        """Take a step on a batch; it waits for nothing."""
        for static, new in zip(self._inputs, _tensors(batch, teacher), strict=True):
            static.copy_(new)
        for rate, group in zip(self._rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self._graph.replay()
        return self._numbers.clone()

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Let the optimizer read its rates from the device; their schedule stays on the host."""
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            yield
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate


def _capture(
    take_step: TakeStep, inputs: tuple[Batch, Features | None]
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    graph = torch.cuda.CUDAGraph()
    # Other threads may load data meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        numbers = take_step(*inputs)
    return graph, numbers


def _fields(batch: Batch, teacher: Features | None) -> list[dict[str, Any]]:
    return [
        vars(batch) | {"host_index": None, "source": None},
        {} if teacher is None else vars(teacher),
    ]


def _tensors(batch: Batch, teacher: Features | None) -> list[Tensor]:
    leaves, _ = tree_flatten(_fields(batch, teacher))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _replace_tensors(
    batch: Batch, teacher: Features | None, tensors: Sequence[Tensor]
) -> tuple[Batch, Features | None]:
    remaining = iter(tensors)
    batch_fields, features = tree_map(
        lambda leaf: next(remaining) if isinstance(leaf, Tensor) else leaf,
        _fields(batch, teacher),
    )
    return Batch(**batch_fields), None if teacher is None else Features(**features)


@contextmanager
def _side_stream() -> Iterator[None]:
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.stream(side):
        yield
    current.wait_stream(side)


def _signature(step: TrainStep, optimizer: torch.optim.Optimizer) -> list[Any]:
    """List all that a captured step holds fixed, besides the sizes of a batch."""
    modules: list[nn.Module] = [step]
    if step.teacher_tap is not None:
        modules.append(step.teacher_tap.model)
    parts = [part for module in modules for part in module.modules()]
    tensors = [t for part in parts for t in (*part._parameters.values(), *part._buffers.values())]
    options = [
        {k: v for k, v in g.items() if k not in ("params", "lr")} for g in optimizer.param_groups
    ]
    return [
        [part.training for part in parts],
        [(t.data_ptr(), t.requires_grad) for t in tensors if t is not None],
        tree_map(str, options),
    ]


def _cpu_random_state() -> list[Any]:
    leaves, _ = tree_flatten(random_state(torch.device("cpu")))
    return [leaf.tolist() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
