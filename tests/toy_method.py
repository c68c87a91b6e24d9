"""A method as somebody else would write it: two options, and two networks of different shape."""

from dataclasses import dataclass, replace
from typing import Annotated

from torch.nn import functional

from nissl.learner import NETWORK, derived_seed
from nissl.members import require, short
from nissl.methods import METHODS
from nissl.methods.method import Method
from nissl.methods.settings import MethodSettings
from nissl.methods.shared import unlabelled

NAME = "toy-distillation"


@dataclass(frozen=True)
class Distillation(MethodSettings):
    """A small network learns from a larger one where there are no masks."""

    name: Annotated[str, short("method")] = NAME
    agreement: float = 0.5
    """Weight of the agreement."""
    temperature: float = 2.0
    """Divides the logits."""

    def __post_init__(self):
        require(self.temperature > 0, "method.temperature", self.temperature, "more than 0")


class Distilled(Method):
    """Both learn from the masks; the small one, which predicts, also from the larger one."""

    sees = "labelled+unlabelled"

    @classmethod
    def initial(cls, settings, problem, seed):
        """Make a network as asked for, and one twice as wide."""
        wide = replace(problem.net, widths=tuple(2 * width for width in problem.net.widths))
        problems = {"small": problem, "large": replace(problem, net=wide)}
        return {
            name: one.network(derived_seed(seed, NETWORK, index)) for index, (name, one) in enumerate(problems.items())
        }

    def losses(self, batch, progress):
        """Return `dice` and `cross_entropy` of both, and `agreement`."""
        both = [self.supervised_losses(network(batch.images), batch.targets) for network in self.networks]
        small, large = (network(unlabelled(batch)) / self.settings.temperature for network in self.networks)
        agreement = functional.mse_loss(small.softmax(1), large.detach().softmax(1))
        terms = {name: both[0][name] + both[1][name] for name in both[0]}
        return terms | {"agreement": self.settings.agreement * agreement}


def register():
    """Enter it among the methods, as a package would."""
    METHODS.add(Distillation, Distilled)
