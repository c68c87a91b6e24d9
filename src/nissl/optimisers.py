"""The optimisers of torch, without its compiler."""

import inspect
from typing import TypeVar

import torch

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)
OF_THE_COMPILER = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def without_compiler(optimiser: type[Kind]) -> type[Kind]:
    """Return the optimiser, the same to the last bit, as one that torch.compile cannot look into.

    In torch 2.13 the first call of any method of an optimiser imports `torch._dynamo`, so as to hide the method from
    the compiler: 2.4 CPU-seconds of every process that trains, where all else takes 2.0. Nothing here is compiled.
    """
    plain = {name: inspect.unwrap(getattr(optimiser, name)) for name in OF_THE_COMPILER}
    plain["step"] = torch.no_grad()(inspect.unwrap(optimiser.step))
    return type(optimiser.__name__, (optimiser,), plain)


SGD = without_compiler(torch.optim.SGD)
Adam = without_compiler(torch.optim.Adam)
AdamW = without_compiler(torch.optim.AdamW)
