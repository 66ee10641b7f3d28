"""What the hardware multiplies."""

import torch


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32's; where they are emulated, far slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
