"""Several processes with a part of the batch each learn what one process learns with the whole of it."""

import json
import sys

import pytest
import torch
from tests.training.processes import NORMALISATIONS, SAME, Place, normalisation
from tests.training.several import environment, finish, start
from tests.training.tiny import ALONE, CPU, write_files
from torch import nn

from nissl import cli
from nissl.runs.checkpoint import load_checkpoint
from nissl.runs.folder import STATE, WEIGHTS
from nissl.training.distributed import SynchronisedBatchNorm, World, joined, synchronise


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Run all jobs in two processes; gives the result of a job in a process."""
    folder = tmp_path_factory.mktemp("two")
    command, shared = [sys.executable, "-m", "tests.training.processes", str(folder)], environment(WORLD_SIZE="2")
    processes = [start(command, shared | {"RANK": str(rank)}) for rank in range(2)]
    errors = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    assert "Warning" not in "".join(errors)
    return lambda job, rank=0: load_checkpoint(folder / f"{job} of {rank}")[0]


def require_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name in one:
        difference = (one[name].double() - other[name].double()).abs().max()
        assert difference <= tolerance * max(1.0, float(other[name].double().abs().max())), name


@pytest.mark.parametrize("job", SAME)
def test_two_processes_learn_what_one_learns_with_the_whole_batch(two, tmp_path, job):
    alone = SAME[job](Place(tmp_path, ALONE))
    assert all(tensor.dtype == torch.float64 for tensor in alone.values() if tensor.is_floating_point())
    require_close(two(job), alone, 1e-6)
    require_close(two(job, rank=1), two(job), 1e-12)


@pytest.mark.parametrize("job", ["plasticity swta", "plasticity hpca", "training"])
def test_the_weights_and_the_running_statistics_of_the_comparison_have_moved(two, tmp_path, job):
    start_of_job = SAME["plasticity hpca"].__globals__["make_net"](write_files(tmp_path / "data"), ALONE).state_dict()
    result = two(job)
    prefix = "networks.0." if job == "training" else ""
    for name in ("encoder.blocks.0.0.weight", "decoder.blocks.0.4.weight", "encoder.blocks.1.1.running_mean"):
        assert (result[prefix + name] - start_of_job[name]).abs().max() > 1e-3


def test_a_step_that_one_process_cannot_use_is_skipped_by_all(two):
    for rank in (0, 1):
        result = two("spoilt", rank)
        assert result["skipped"] == 7
        assert all(tensor.isfinite().all() for tensor in result.values())


def test_f12_a_signal_to_one_process_stops_all_after_the_same_step(two):
    for rank in (0, 1):
        assert two("stopped", rank) == {"step": torch.tensor(3), "code": torch.tensor(143)}


def test_all_processes_hear_the_mean_and_the_largest(two):
    for rank in (0, 1):
        assert two("agreement", rank)["mean"].tolist() == [0.5, 1.0]
        assert two("agreement", rank)["largest"] == 11


# Normalisation


@pytest.mark.parametrize("job", NORMALISATIONS)
def test_normalisation_over_processes_is_that_of_torch_over_all_samples(two, tmp_path, job):
    alone = NORMALISATIONS[job](Place(tmp_path, ALONE))
    shares = [two(job, rank) for rank in (0, 1)]
    for name, expected in alone.items():
        if name[:-1] in ("y", "gradient") or name == "evaluated":
            found = torch.cat([share[name] for share in shares])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        else:
            for share in shares:
                torch.testing.assert_close(share[name], expected, rtol=0, atol=1e-10)


def test_half_precision_is_summed_in_full_precision(two):
    alone = normalisation(ALONE, "plain", 2, torch.bfloat16)
    shares = [two("half precision", rank) for rank in (0, 1)]
    for name in ("y0", "y1", "gradient0"):
        found = torch.cat([share[name] for share in shares])
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, alone[name], rtol=2**-7, atol=0.02)
    for name in ("0.running_mean", "0.running_var"):
        torch.testing.assert_close(shares[0][name], alone[name], rtol=1e-5, atol=1e-5)


def test_synchronising_keeps_parameters_names_and_mode():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()), nn.BatchNorm2d(2))
    net[1].eval()
    before, names = dict(net.named_parameters()), list(net.state_dict())
    synchronise(net)
    synchronise(net)
    assert isinstance(net[1][0], SynchronisedBatchNorm) and isinstance(net[2], SynchronisedBatchNorm)
    assert list(net.state_dict()) == names
    assert all(parameter is before[name] for name, parameter in net.named_parameters())
    assert (net[1][0].training, net[2].training) == (False, True)


def test_a_synchronised_network_can_be_used_by_one_process():
    net = nn.Sequential(nn.BatchNorm2d(2))
    net(torch.randn(4, 2, 3, 3))
    images = torch.randn(4, 2, 3, 3)
    expected = net.eval()(images)
    synchronise(net)
    assert torch.equal(net(images), expected)


def test_input_without_channels_is_refused():
    with pytest.raises(ValueError, match=r"\b1 dimension"):
        SynchronisedBatchNorm(2)(torch.zeros(2))


# One process


def test_one_process_needs_no_others(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(CPU) as world:
        assert world == World() == World(0, 1) and world.first
        values = torch.tensor([1.0, 2.0])
        assert world.mean(values) is values
        assert world.largest(7, CPU) == 7
        assert not torch.distributed.is_initialized()


# The command


@pytest.mark.slow
def test_torchrun_trains_what_the_command_trains_alone(tmp_path, monkeypatch):
    """In float32 sums come in another order: relative differences of 1e-7 that each step can make larger."""
    data = tmp_path / "data"
    for file in write_files(tmp_path / "written", count=8):
        for part, path in (("images", file.image), ("masks", file.target)):
            (data / part).mkdir(parents=True, exist_ok=True)
            path.rename(data / part / f"{file.id}.png")
    flags = "--labels 4 --size 16 --widths 4 8 --net.dropout 0 0 --steps 6 --train.batch 4 --train.optimiser sgd"
    flags += " --pretrain hebbian --pretrain.steps 4 --pretrain.batch 4 --device cpu"
    command = ["train", str(data), *flags.split(), "--out"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    env = environment()
    launcher += ["--master-port", env["MASTER_PORT"]]
    process = start([*launcher, "-m", "nissl", *command, str(tmp_path / "two")], env)
    (errors,) = finish([process])
    assert process.returncode == 0, errors
    assert "Warning" not in errors
    assert cli.run([*command, str(tmp_path / "one")]) == 0

    for name in (WEIGHTS, STATE):
        (one, _), (two, _) = (load_checkpoint(tmp_path / run / name) for run in ("one", "two"))
        require_close(two, one, 1e-5)  # measured: 7e-7 after six steps
    logs = [(tmp_path / run / "log.jsonl").read_text().splitlines() for run in ("one", "two")]
    assert [len(log) for log in logs] == [6, 6]
    for one, two in zip(*logs, strict=True):
        assert json.loads(two)["loss"] == pytest.approx(json.loads(one)["loss"], rel=1e-5)
    folders = [{path.relative_to(tmp_path / run) for path in (tmp_path / run).rglob("*")} for run in ("one", "two")]
    assert folders[0] == folders[1]
