"""The consistency is the squared distance to the teacher, and nothing where student and teacher are the same."""

import numpy as np
import pytest
import torch
from tests.methods.test_methods import NET, batch, make

from nissl.losses import segmentation_losses
from nissl.methods import mean_teacher
from nissl.nets import factory


def shares_of(network, images):
    """Softmax in float64."""
    with torch.no_grad():
        raised = np.exp(network(images).double().numpy())
    return raised / raised.sum(1, keepdims=True)


@pytest.fixture
def silent(monkeypatch):
    """Images without noise."""
    monkeypatch.setattr(mean_teacher, "noisy", lambda images: images)


def apart(name, dims=2):
    """A method in evaluation, so that nothing is drawn but noise, whose teacher is another network."""
    method = make(name, dims).eval()
    method.teacher.update(factory.build(NET, dims, 2, 3, seed=9))
    return method


@pytest.mark.parametrize("dims", [2, 3])
def test_the_terms_are_those_of_the_masks_and_the_weighted_squared_distance(silent, dims):
    method, seen = apart("mean-teacher", dims), batch(dims)
    student, teacher = method.networks[0], method.teacher.average.module
    distance = np.mean((shares_of(student, seen.unlabelled) - shares_of(teacher, seen.unlabelled)) ** 2)
    assert distance > 1e-3
    terms = method(seen, 1.0)
    assert terms.pop("consistency").item() == pytest.approx(0.2 * distance, rel=1e-5)
    assert terms == segmentation_losses(student(seen.images), seen.targets)


@pytest.mark.parametrize("name", ["mean-teacher", "uamt"])
def test_the_same_student_and_teacher_without_noise_agree(silent, name):
    assert make(name).eval()(batch(), 1.0)["consistency"].item() == 0


@pytest.mark.parametrize("name", ["mean-teacher", "uamt"])
def test_student_and_teacher_each_see_noise_of_their_own(name):
    method, seen, inputs = make(name).eval(), batch(), []
    for network in (method.networks[0], method.teacher.average.module):
        network.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    assert method(seen, 1.0)["consistency"].item() > 0
    assert torch.equal(inputs[0], seen.images)
    noises = [given - seen.unlabelled for given in inputs[1:]]
    assert all(0 < noise.abs().max() <= 0.2 + 1e-6 for noise in noises)
    assert not any(torch.equal(noises[0], noise) for noise in noises[1:])


@pytest.mark.parametrize("name", ["mean-teacher", "uamt"])
def test_training_moves_the_student_by_gradient_and_the_teacher_by_averaging_alone(name):
    method = make(name).train()
    teacher = method.teacher.average.module
    optimiser = torch.optim.SGD(method.parameters(), lr=0.1)
    heads = []
    for step in range(4):
        before = teacher.head.weight.clone()
        optimiser.zero_grad()
        sum(method(batch(seed=step), 1.0).values()).backward()
        optimiser.step()
        assert torch.equal(teacher.head.weight, before)
        method.after_step()
        heads.append(method.networks[0].head.weight.detach().clone())
    assert not torch.equal(heads[0], heads[-1])
    torch.testing.assert_close(teacher.head.weight, torch.stack(heads).mean(0))  # 4 steps are below the decay of 0.99
    assert method.predictor() is method.networks[0]
