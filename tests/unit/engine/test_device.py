"""Jobs side by side on a node with several GPUs; the GPUs are pretended, the claims and processes are real."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

JOB = """
import sys, torch
torch.cuda.is_available, torch.cuda.device_count, torch.cuda.set_device = (lambda: True), (lambda: 2), (lambda device: None)
from tokenlabel.engine import device
from tokenlabel.engine.device import choose_device
device.CLAIM = sys.argv[1] + "{user}-gpu{index}"  # of this test's jobs alone
print(choose_device("auto"), choose_device("cuda"), flush=True)
sys.stdin.read()
"""


class Job:
    def __init__(self, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", JOB, f"{os.getpid()}-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=_environment() | environment,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.devices = self.process.stdout.readline().split()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}


@pytest.mark.campaign
def test_each_job_takes_a_gpu_of_its_own_and_a_killed_one_gives_it_back() -> None:
    first, second = Job(), Job()
    granted = Job(CUDA_VISIBLE_DEVICES="5,7")
    crowded = Job()
    first.kill()
    after = Job()
    for job in (second, granted, crowded, after):
        job.kill()
    assert first.devices == ["cuda:0", "cuda:0"]  # asked twice, it is the same
    assert second.devices == ["cuda:1", "cuda:1"]
    assert granted.devices == ["cuda", "cuda"]  # the scheduler has chosen
    assert crowded.devices == ["cuda:0", "cuda:0"]  # works, with a warning
    assert after.devices == ["cuda:0", "cuda:0"]
