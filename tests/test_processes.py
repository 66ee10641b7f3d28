"""Two real processes with batch B against one with batch 2B."""

import pytest
import torch
from gpu_checks.processes import CHOICES, run, run_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def together(request):
    device = torch.device(request.param)
    return device, run_ranks(device)


@pytest.mark.parametrize("choice", CHOICES)
def test_two_processes_are_one_with_the_whole_batch(together, choice):
    device, ranks = together
    alone = run(choice, 0, 1, device)
    for found in ranks[choice]:
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-6, msg=name)
