"""The CPU, read from sample texts of /proc and /sys."""

import msgspec
import pytest

from edgegen.devices import cpu

X86 = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8488C
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse4_1 fma avx f16c avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8 hypervisor

processor\t: 1
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8488C
physical id\t: 0
core id\t\t: 1
flags\t\t: fpu sse4_1 fma avx f16c avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8 hypervisor
"""
PI5_CORE = """\
processor\t: {}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
PI5 = "".join(map(PI5_CORE.format, range(4))) + (
    "Revision\t: c04170\nSerial\t\t: 0\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
)
BIG_LITTLE = """\
processor\t: 0
Features\t: fp asimd asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd05

processor\t: 1
Features\t: fp asimd asimddp i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd47

processor\t: 2
Features\t: fp asimd asimddp i8mm bf16
CPU implementer\t: 0x51
CPU part\t: 0x001
"""


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (X86, "Intel(R) Xeon(R) Platinum 8488C"),
        (PI5, "4x Cortex-A76 (Raspberry Pi 5 Model B Rev 1.0)"),
        (BIG_LITTLE, "1x Cortex-A55 + 1x Cortex-A710 + 1x implementer 0x51 part 0x001"),
        ("", ""),
    ],
)
def test_a_cpu_is_called_by_its_model_name_or_by_its_cores(text, name):
    assert cpu.model(text) == name


def test_a_board_is_named_by_the_device_tree_where_cpuinfo_does_not():
    assert cpu.model(PI5_CORE.format(0), "Radxa ROCK 5B") == "1x Cortex-A76 (Radxa ROCK 5B)"


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (X86, "sse4_1 avx f16c fma avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8"),
        (PI5, "asimd asimdhp asimddp"),
        (BIG_LITTLE, "asimd asimddp"),  # what only the big cores have is not to be relied on
        ("", ""),
    ],
)
def test_the_flags_are_those_that_matter_and_that_every_core_has(text, flags):
    assert cpu.isa(text) == tuple(flags.split())


@pytest.mark.parametrize(
    ("text", "cores"),
    [("50000 100000", 0.5), ("400000 100000", 4.0), ("max 100000", None), ("-1 100000", None)],
)
def test_a_quota_is_time_allowed_over_period(text, cores):
    assert cpu.quota_cores(text) == cores
    assert cpu.quota_cores("") is None


def test_the_tightest_quota_of_the_own_cgroup_and_those_around_it_counts(tmp_path):
    tree(
        tmp_path,
        {
            "proc/cpuinfo": X86,
            "proc/self/cgroup": "0::/pod/box\n",
            "sys/fs/cgroup/pod/cpu.max": "25000 100000\n",
            "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
        },
    )
    (device,) = cpu.probe(tmp_path)
    assert device.usable_cores == 0.25
    assert any(note.startswith("limited to 0.25 of ") for note in device.notes)


def test_a_quota_of_the_first_kind_of_cgroups_counts_too(tmp_path):
    v1 = {"quota": "50000", "period": "100000"}
    tree(tmp_path, {f"sys/fs/cgroup/cpu/cpu.cfs_{k}_us": v for k, v in v1.items()})
    assert cpu.probe(tmp_path)[0].usable_cores == 0.5


def test_caches_governors_and_clock_are_read_from_sys(tmp_path):
    cache = "sys/devices/system/cpu/cpu0/cache/index"
    clock = "sys/devices/system/cpu/cpu{}/cpufreq/"
    tree(
        tmp_path,
        {
            **{f"{cache}0/{k}": v for k, v in [("level", "1"), ("type", "Data"), ("size", "64K")]},
            **{f"{cache}1/{k}": v for k, v in [("level", "1"), ("type", "Instruction")]},
            **{
                f"{cache}2/{k}": v for k, v in [("level", "3"), ("type", "Unified"), ("size", "2M")]
            },
            clock.format(0) + "scaling_governor": "ondemand\n",
            clock.format(0) + "cpuinfo_max_freq": "1800000\n",
            clock.format(4) + "scaling_governor": "performance\n",
            clock.format(4) + "cpuinfo_max_freq": "2400000\n",
        },
    )
    (device,) = cpu.probe(tmp_path)
    assert device.caches_kib == {"L1d": 64, "L3": 2048}
    assert device.governor == "ondemand, performance"
    assert device.max_mhz == 2400.0


def test_where_nothing_can_be_read_the_cpu_is_there_still_and_says_what_is_missing(tmp_path):
    (device,) = cpu.probe(tmp_path)
    assert device.description
    assert device.memory_mb > device.free_memory_mb > 0
    for what in ("instruction-set flags", "caches", "frequency governor", "clock"):
        assert f"not readable here: {what}" in device.notes


def test_a_virtual_machine_is_said(tmp_path):
    (device,) = cpu.probe(tree(tmp_path, {"proc/cpuinfo": X86}))
    assert any("virtual machine" in note for note in device.notes)


def test_the_environment_of_a_measurement_survives_json():
    environment = cpu.environment()
    assert msgspec.json.decode(msgspec.json.encode(environment)) == environment
    assert {"cpu", "isa", "logical_cores", "governor", "memory_mb", "python", "os"} <= set(
        environment
    )
