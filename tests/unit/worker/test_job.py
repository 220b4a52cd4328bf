"""What is kept of finished outputs takes the room of these outputs, and no more."""

from __future__ import annotations

import torch

from omnimuse.worker.job import placed


def test_the_only_output_is_kept_as_it_is_and_several_have_one_tensor_from_the_first_on() -> None:
    made = [torch.full((3, 2, 2), float(index)) for index in range(3)]
    alone = placed(None, made[0], 0, 1)
    assert alone.shape == (1, 3, 2, 2) and alone.data_ptr() == made[0].data_ptr()
    together = placed(None, made[2], 2, 3)
    for index in (0, 1):
        assert placed(together, made[index], index, 3) is together
    assert torch.equal(together, torch.stack(made))
