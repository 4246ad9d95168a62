"""What GPUs can do, from the makers' data sheets: peak FLOP/s and memory, by name."""

from __future__ import annotations

DECIDES_NOTHING = "figures for logs and plans"
# Dense bfloat16 with float32 accumulation, FLOP/s, from the makers' data sheets; the first name that is part of
# torch.cuda.get_device_name() counts. "with sparsity" figures are halved.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989.4e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,  # SXM5
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165.2e12,  # Ada whitepaper, appendix A
    "RTX 3090": 71e12,  # GA102 whitepaper
    "MI300X": 1307e12,
}
MEMORY = {"H100": 80, "H200": 141, "B200": 180, "A100": 80, "L40S": 48, "RTX 4090": 24}  # GB of one device
