"""The high-water mark of this process's memory."""

import mmap
import sys

import numpy as np
import pytest

from edgegen.devices import meters
from edgegen.devices.meters import memory

MB = 1e6
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


def test_vm_hwm_is_read_from_the_status_text_in_units_of_1024_bytes():
    assert memory.vm_hwm_mb("Name:\tx\nVmPeak:\t 9 kB\nVmHWM:\t    2000 kB\n") == 2.048
    assert memory.vm_hwm_mb("Name:\tx\n") is None


@linux
def test_the_peak_rises_with_what_is_written_and_falls_again_after_a_reset():
    if not meters.reset_peak():
        pytest.skip("this system does not let a process reset its peak (/proc/self/clear_refs)")
    before = meters.peak_rss_mb()
    with mmap.mmap(-1, 100_000_000) as block:  # malloc may keep what is freed, an unmapping cannot
        np.frombuffer(block, np.uint8)[::4096].fill(1)
        high = meters.peak_rss_mb()
    assert high - before > 90
    assert meters.reset_peak()
    assert meters.peak_rss_mb() < high - 90


def test_a_peak_that_may_not_be_reset_is_said(tmp_path):
    assert memory.reset_peak(tmp_path / "no" / "clear_refs") is False


@linux
def test_getrusage_stands_in_where_the_kernel_shows_no_vm_hwm():
    peak, source = memory._maxrss()
    assert source == "ru_maxrss"
    assert peak > 5  # the interpreter alone is larger
    assert meters.peak_source() == "VmHWM"
