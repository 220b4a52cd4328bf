"""The share of a machine that control groups allow, read from folders laid out as Linux lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnimuse.core.machine import cores, memory, processor, quota

V1 = "33 31 0:30 {top} /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
V2 = "42 31 0:39 {top} {at} rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate"


FILES = {
    "cpu_max": "cpu.max",
    "quota": "cpu.cfs_quota_us",
    "period": "cpu.cfs_period_us",
    "memory_max": "memory.max",
    "memory_limit": "memory.limit_in_bytes",
}
"""What values of a group are called where it has them."""


def machine(root: Path, groups: str, *mounts: str) -> Path:
    """A root folder that says what our groups are and what is mounted where."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text("".join(f"{mount}\n" for mount in mounts))
    return root


def write(root: Path, folder: str, **values: str) -> None:
    """Files of one group, by the names in `FILES`."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (root / folder / FILES[name]).write_text(f"{value}\n")


def test_version_2_gives_the_quota_over_its_period(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n", V2.format(top="/", at="/sys/fs/cgroup"))
    write(root, "sys/fs/cgroup", cpu_max="150000 100000")
    assert quota(root) == 1.5


def test_version_1_gives_the_quota_over_its_period(tmp_path: Path) -> None:
    root = machine(tmp_path, "4:memory:/m\n3:cpu,cpuacct:/\n0::/\n", V1_MEMORY, V1.format(top="/"))
    write(root, "sys/fs/cgroup/cpu,cpuacct", quota="50000", period="100000")
    assert quota(root) == 0.5


def test_a_group_within_another_is_bound_by_both(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/kubepods/pod7/box\n", V2.format(top="/", at="/sys/fs/cgroup"))
    write(root, "sys/fs/cgroup/kubepods", cpu_max="400000 100000")
    write(root, "sys/fs/cgroup/kubepods/pod7", cpu_max="200000 100000")
    write(root, "sys/fs/cgroup/kubepods/pod7/box", cpu_max="max 100000")
    write(root, "sys/fs/cgroup/other", cpu_max="10000 100000")
    assert quota(root) == 2.0


def test_a_container_whose_mount_begins_at_its_own_group_is_understood(tmp_path: Path) -> None:
    root = machine(tmp_path, "3:cpuacct,cpu:/docker/abc/inner\n", V1.format(top="/docker/abc"))
    write(root, "sys/fs/cgroup/cpu,cpuacct", quota="300000", period="100000")
    write(root, "sys/fs/cgroup/cpu,cpuacct/inner", quota="-1", period="100000")
    assert quota(root) == 3.0


def test_a_group_that_the_mount_does_not_show_is_taken_for_its_top(tmp_path: Path) -> None:
    for number, group in enumerate(("/elsewhere", "/../../host")):
        root = machine(tmp_path / str(number), f"3:cpu:{group}\n", V1.format(top="/docker/abc"))
        write(root, "sys/fs/cgroup/cpu,cpuacct", quota="100000", period="100000")
        assert quota(root) == 1.0


def test_of_both_versions_at_once_the_one_with_the_processor_counts(tmp_path: Path) -> None:
    mounts = (V1.format(top="/"), V2.format(top="/", at="/sys/fs/cgroup/unified"))
    root = machine(tmp_path, "1:cpu,cpuacct:/a\n0::/b\n", *mounts)
    write(root, "sys/fs/cgroup/cpu,cpuacct/a", quota="250000", period="100000")
    (root / "sys/fs/cgroup/unified/b").mkdir(parents=True)
    assert quota(root) == 2.5


@pytest.mark.parametrize("unlimited", [{"cpu_max": "max 100000"}, {"quota": "-1", "period": "100000"}, {}])
def test_no_limit_is_none(tmp_path: Path, unlimited: dict[str, str]) -> None:
    mounts = (V1.format(top="/"), V2.format(top="/", at="/sys/fs/cgroup"))
    root = machine(tmp_path, "1:cpu,cpuacct:/\n0::/\n", *mounts)
    for folder in ("sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct"):
        write(root, folder, **unlimited)
    assert quota(root) is None


def test_where_there_are_no_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert quota(tmp_path) is None


def test_this_machine_can_be_asked() -> None:
    limit = quota()
    assert cores() >= 1 and (limit is None or limit > 0)


def test_memory_is_what_the_group_and_all_above_it_allow(tmp_path: Path) -> None:
    root = machine(tmp_path / "2", "0::/units/box\n", V2.format(top="/", at="/sys/fs/cgroup"))
    write(root, "sys/fs/cgroup", cpu_max="max 100000")
    whole = memory(root)
    write(root, "sys/fs/cgroup/units", memory_max="2000000")
    write(root, "sys/fs/cgroup/units/box", memory_max="3000000")
    write(root, "sys/fs/cgroup/other", memory_max="1000000")
    assert memory(root) == 2000000 < whole == memory(tmp_path / "none")
    root = machine(tmp_path / "1", "4:memory:/m\n3:cpu,cpuacct:/c\n", V1_MEMORY, V1.format(top="/"))
    write(root, "sys/fs/cgroup/memory/m", memory_limit="9223372036854771712")
    write(root, "sys/fs/cgroup/cpu,cpuacct/c", memory_limit="1000000")
    assert memory(root) == whole, "what version 1 says where there is no limit is more than there is"
    write(root, "sys/fs/cgroup/memory/m", memory_limit="2000000")
    assert memory(root) == 2000000


XEON = (
    "processor\t: {core}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)\n"
    "cpu MHz\t\t: {mhz}\nflags\t\t: {flags}\n"
)


def test_a_processor_is_known_by_its_name_and_its_instructions_and_not_by_its_clock(tmp_path: Path) -> None:
    file, found = tmp_path / "cpuinfo", []
    for mhz, flags in ((2000.0, "sse avx2"), (2700.5, "sse avx2"), (2000.0, "sse avx2 avx512f")):
        file.write_text("\n".join(XEON.format(core=core, mhz=mhz, flags=flags) for core in (0, 1)))
        found.append(processor(file))
    assert found[0] == found[1] == "vendor_id: GenuineIntel\nmodel name: Intel(R) Xeon(R)\nflags: sse avx2"
    assert found[2] not in found[:2]


def test_a_processor_of_another_make_is_known_by_its_parts(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd sve\nCPU part\t: 0xd40\n\nprocessor\t: 1\n"
    )
    assert processor(file) == "Features: fp asimd sve\nCPU part: 0xd40"
    assert processor(tmp_path / "none").strip()
