"""The averaged teacher is the average that it is said to be, and its own passes leave it alone."""

import pytest
import torch
from tests.methods.test_methods import NET
from torch import nn

from nissl.methods.shared import Teacher
from nissl.nets import factory


def student(dims=2, seed=0):
    return factory.build(NET, dims, 2, 3, seed)


def images(dims=2, seed=0):
    return torch.randn(2, 2, *(8,) * dims, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.99])
def test_the_teacher_is_the_stated_average_of_weights_and_running_statistics(decay):
    net = student().train()
    teacher = Teacher(net, decay)
    states = []
    for step in range(6):
        with torch.no_grad():
            net(images(seed=step))  # running statistics
            for parameter in net.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        states.append({name: tensor.double() for name, tensor in net.state_dict().items()})
        teacher.update(net)
        expected = states[0]
        for made, state in enumerate(states[1:], start=1):
            share = min(decay, 1 - 1 / (made + 1))
            expected = {name: share * expected[name] + (1 - share) * tensor for name, tensor in state.items()}
        for name, tensor in teacher.average.module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                assert tensor == step + 1
            else:
                torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_it_starts_as_the_mean_of_the_student():
    net = student()
    teacher, heads = Teacher(net, 0.99), []
    for _ in range(5):
        nn.init.normal_(net.head.weight)
        heads.append(net.head.weight.detach().clone())
        teacher.update(net)
    torch.testing.assert_close(teacher.average.module.head.weight, torch.stack(heads).mean(0))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_its_passes_change_neither_itself_nor_the_student(dims, training):
    net = student(dims).train()
    teacher = Teacher(net, 0.9).train(training)
    before = {name: tensor.clone() for name, tensor in (*teacher.state_dict().items(), *net.state_dict().items())}
    logits = teacher(images(dims))
    assert not logits.requires_grad and not any(parameter.requires_grad for parameter in teacher.parameters())
    after = dict((*teacher.state_dict().items(), *net.state_dict().items()))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(module.training for module in net.modules())


def test_in_training_its_dropout_is_on_and_it_normalises_by_running_statistics():
    teacher = Teacher(student(), 0.9)
    assert not torch.equal(teacher(images()), teacher(images()))
    teacher.eval()
    whole = teacher(images())
    assert torch.equal(whole, teacher(images()))
    for module in teacher.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    teacher.train()
    # By statistics of the batch, an image's logits would depend on the other one.
    torch.testing.assert_close(teacher(images()[:1]), whole[:1])
