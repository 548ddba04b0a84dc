"""What this machine has: processor, cores, memory, and what it is fast in."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine() -> str:
    """Describe processor, cores and memory in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB"


def cores() -> int:
    """Count the processor cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # absent on macOS
    return len(usable(0)) if usable else os.cpu_count() or 1


def fast_in_bfloat16() -> bool:
    """Say whether the processor multiplies bfloat16 faster than float32: with AMX, or AMD's with AVX-512 bfloat16.

    Intel's with AVX-512 bfloat16 and no AMX, as in some virtual machines, are slower in it (docs/performance.md).
    """
    info = _cpuinfo()
    flags, amd = set(info.get("flags", "").split()), info.get("vendor_id") == "AuthenticAMD"
    return "amx_bf16" in flags or (amd and "avx512_bf16" in flags)


def _processor() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
