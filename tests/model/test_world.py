"""What a training process sets up before it creates a model."""

import ctypes
import subprocess
import sys

import pytest

LIKE_STEPS = """
import resource, sys
import torch
from model.training.world import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()
for step in range(20):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    weights = torch.ones(12 * 2**20)  # 48 MiB: glibc never keeps blocks of more than 32
    weights = weights * 2
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_freed_memory_is_reused_without_the_kernel():
    """Pages that the kernel had to clear in ten steps of 24,576 each, once the first steps are done."""
    cleared = {
        way: int(subprocess.check_output([sys.executable, "-c", LIKE_STEPS, way])) for way in ("keep", "give")
    }
    assert cleared["keep"] < 50_000 < 200_000 < cleared["give"]
