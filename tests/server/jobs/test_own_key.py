"""The server's own key: on the disk before anything is derived of it, the same after every restart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from omnimuse.core.errors import ConfigError
from omnimuse.server.jobs.files import Files, new_file_id
from omnimuse.server.own_key import KEY_BYTES, own_key
from tests.power import PowerCutError, PoweredFolder
from tests.server.jobs.test_files import spooled

STEPS = 2
"""Syncs that making a key takes: the file's, and its folder's."""


def test_a_key_is_the_same_after_a_restart_and_another_elsewhere(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    first = own_key(tmp_path / "a")
    assert own_key(tmp_path / "a") == first != own_key(tmp_path / "b")
    assert len(first) == KEY_BYTES
    assert (tmp_path / "a" / "links.key").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path / "a") == ["links.key"]


@pytest.mark.parametrize("names_survive", [True, False])
def test_a_key_that_was_given_out_survives_a_power_loss(tmp_path: Path, names_survive: bool) -> None:
    folder = PoweredFolder(tmp_path)
    key = own_key(tmp_path, folder.sync)
    assert folder.syncs == STEPS
    folder.restart(names_survive)
    assert own_key(tmp_path) == key


@pytest.mark.parametrize("names_survive", [True, False])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_power_that_goes_while_the_key_is_made_leaves_a_folder_that_serves(
    tmp_path: Path, step: int, names_survive: bool
) -> None:
    folder = PoweredFolder(tmp_path, cut_at=step)
    with pytest.raises(PowerCutError):
        own_key(tmp_path, folder.sync)
    folder.restart(names_survive)
    after = PoweredFolder(tmp_path)
    key = own_key(tmp_path, after.sync)
    after.restart(names_survive)
    assert own_key(tmp_path) == key


@pytest.mark.parametrize("names_survive", [True, False])
def test_what_is_kept_survives_a_power_loss_with_the_folders_that_it_is_in(tmp_path: Path, names_survive: bool) -> None:
    folder = PoweredFolder(tmp_path)
    files = Files(tmp_path / "new" / "data", sync=folder.sync)
    made = spooled(files)
    with (files.spool / made.name).open("rb") as file:
        folder.sync(file.fileno())  # as the worker does
    name = files.keep(made, new_file_id())
    folder.restart(names_survive)
    again = Files(tmp_path / "new" / "data")
    assert again.path(name).read_bytes() == b"a film"
    assert again.key == files.key


def test_a_key_that_is_damaged_or_cannot_be_read_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "links.key").write_bytes(b"short")
    with pytest.raises(ConfigError, match="remove it and start again"):
        own_key(tmp_path)
    (tmp_path / "links.key").unlink()
    (tmp_path / "links.key").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="mend the folder"):
        own_key(tmp_path)


def test_what_links_of_a_tenant_lead_to_is_counted_over_a_restart(tmp_path: Path) -> None:
    files = Files(tmp_path)
    for _ in range(2):
        files.keep(spooled(files), files.new_link_id("ann"))
    again = Files(tmp_path)
    assert again.linked("ann") == 2 * len(b"a film")
    assert again.linked("bob") == 0
