"""Floating-point operations of whatever torch computes in a block."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the floating-point operations in the block, forward and back, in `count`: two for a multiply-add.

    The formulas are those of torch's own FlopCounterMode, which would load the compiler (see `nissl.optimisers`).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # "skip" means to import the compiler in order to tell it so

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the operation and count it, where torch has a formula for it."""
        keywords = dict(kwargs or {})
        formula: Callable[..., int] | None = flop_registry.get(operation._overloadpacket)
        if formula is None:
            with self:  # an operation that is made of others is counted by them
                result = operation.decompose(*args, **keywords)
            return operation(*args, **keywords) if result is NotImplemented else result
        result = operation(*args, **keywords)
        self.count += formula(*args, **keywords, out_val=result)
        return result
