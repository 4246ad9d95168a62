"""Use of CPU, memory, disk and network, under the names that MLflow gives its own system metrics."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psutil._ntuples import snetio

DECIDES_NOTHING = "measurements of the machine, for the log"
SYSTEM_METRICS_EVERY = 10.0  # seconds, as MLflow samples


class SystemMetrics:
    """Samples of the machine's load. Units are in the names."""

    def __init__(self) -> None:
        self._last = float("-inf")
        self._network_before: snetio | None = None

    def sample(self) -> dict[str, float]:
        """One sample; empty if the last one is less than ten seconds old or psutil is not installed."""
        now = time.monotonic()
        if now - self._last < SYSTEM_METRICS_EVERY:
            return {}
        first, self._last = self._last == float("-inf"), now
        try:
            import psutil
        except ImportError:
            return {}
        memory, disk, network = psutil.virtual_memory(), psutil.disk_usage(os.sep), psutil.net_io_counters()
        busy = psutil.cpu_percent()  # since the last call, so the first value means nothing
        if first or network is None:
            self._network_before = network
            return {}
        before = self._network_before or network
        return {
            "system/cpu_utilization_percentage": busy,
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": memory.used / memory.total * 100,
            "system/disk_usage_percentage": disk.percent,
            "system/disk_usage_megabytes": disk.used / 1e6,
            "system/disk_available_megabytes": disk.free / 1e6,
            "system/network_receive_megabytes": (network.bytes_recv - before.bytes_recv) / 1e6,
            "system/network_transmit_megabytes": (network.bytes_sent - before.bytes_sent) / 1e6,
        }
