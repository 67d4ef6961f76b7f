"""Where methods compute: chosen by name, told in the record, and the same merge within rounding."""

from pathlib import Path

import pytest
import torch

import hf_tsv
import hf_tsv.checkpoints.writer
from hf_tsv.errors import OutputError, ResourceError
from hf_tsv.job.recording import versions
from hf_tsv.merging.engine import merge_step
from hf_tsv.merging.progress import Silent
from hf_tsv.merging.resources import Resources, device_name, device_named
from hf_tsv.merging.surveys import run_surveys
from hf_tsv.methods import METHODS
from hf_tsv.verbs.verify import _other_versions
from tests.support import adapters
from tests.support.absent_device import DEVICE, AbsentDevice
from tests.support.cli import run
from tests.support.models import bert, llama, mixtral, recipe, zoo
from tests.support.tolerances import WEIGHTS


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of them, as far as torch tells of them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))


@pytest.mark.usefixtures("gpus")
class TestNames:
    def test_the_processes_of_a_machine_take_its_gpus_in_turn(self) -> None:
        assert [device_named("cuda", rank).index for rank in range(6)] == [0, 1, 2, 3, 0, 1]

    def test_one_that_is_named_is_taken(self) -> None:
        assert device_named("cuda:2", 1) == torch.device("cuda", 2)
        assert device_named("cpu", 1) == torch.device("cpu")

    @pytest.mark.parametrize("name", ["cuda:4", "mps", "meta", "gpu", "cpu:x"])
    def test_what_there_is_not_is_told(self, name: str) -> None:
        with pytest.raises(ResourceError, match=rf"--device {name}: expected c"):
            device_named(name)

    def test_bits_depend_on_the_model_of_gpu(self) -> None:
        assert device_name(torch.device("cuda", 1)) == "GPU of cuda:1"

    def test_the_record_names_it_and_a_merge_elsewhere_is_noted(self) -> None:
        made = versions(torch.device("cuda", 1))
        assert made.processor == "GPU of cuda:1"
        assert _other_versions(made, torch.device("cuda", 1)) == []
        assert "made with processor GPU of cuda:1" in _other_versions(made, torch.device("cpu"))[0]

    def test_its_memory_is_the_limit(self) -> None:
        assert Resources.of(1, None, device=torch.device("cuda", 1)).max_memory == 700


def test_without_a_gpu_it_is_told(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    folder = zoo(bert, tmp_path)
    result = run("merge", recipe(folder), tmp_path / "out", "--device", "cuda")
    assert result.exit_code == 4
    assert "sees no GPU here. Leave --device out" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_started_run_stays_on_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of one output come from one kind of processor."""
    path, started = recipe(zoo(bert, tmp_path)), []
    write = hf_tsv.checkpoints.writer.CheckpointWriter.write

    def stopped(self: hf_tsv.checkpoints.writer.CheckpointWriter, name: str, tensor: torch.Tensor) -> str:
        if started:
            raise KeyboardInterrupt
        started.append(name)
        return write(self, name, tensor)

    monkeypatch.setattr("hf_tsv.checkpoints.writer.CheckpointWriter.write", stopped)
    with pytest.raises(KeyboardInterrupt):
        hf_tsv.merge(path, tmp_path / "out", options=hf_tsv.Options(workers=1))
    monkeypatch.setattr("hf_tsv.merging.resources.device_named", lambda name, rank: torch.device("cuda", 0))
    monkeypatch.setattr("hf_tsv.job.identity.device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**10, 10**10))
    with pytest.raises(OutputError, match="an unfinished run with another device"):
        hf_tsv.merge(path, tmp_path / "out", options=hf_tsv.Options(device="cuda"))


QUICK_METHODS = ["tsv_m", "ties"]  # the contract tests all of them on single tensors
FURTHER_METHODS = [
    pytest.param(name, marks=pytest.mark.slow)
    for name, method in METHODS.items()
    if method.max_tasks is None and name not in QUICK_METHODS
]


@pytest.mark.parametrize("method", [*QUICK_METHODS, *FURTHER_METHODS])
def test_every_tensor_of_a_model_is_merged_there(tmp_path: Path, method: str) -> None:
    # A mixture of experts has stacks of matrices as well.
    architecture = mixtral if method in QUICK_METHODS else bert
    plan = hf_tsv.plan(recipe(zoo(architecture, tmp_path), method))
    found = run_surveys(plan, plan.steps, Resources(1), Silent())
    for step in plan.steps:
        with AbsentDevice():
            there = merge_step(plan, step, found.of(step), DEVICE)[0]
        here = merge_step(plan, step, found.of(step))[0]
        assert there.device.type == "cpu"
        torch.testing.assert_close(there, here, rtol=WEIGHTS, atol=WEIGHTS)


def test_adapters_are_merged_there(tmp_path: Path) -> None:
    folder = adapters.zoo(tmp_path, llama, target_modules=["q_proj", "up_proj"])
    plan = hf_tsv.plan(adapters.recipe(folder, ["DIR/a1", "DIR/a2"]))
    for step in plan.merged:
        with AbsentDevice():
            there = merge_step(plan, step, None, DEVICE)[0]
        torch.testing.assert_close(there, merge_step(plan, step)[0], rtol=WEIGHTS, atol=WEIGHTS)
