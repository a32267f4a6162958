import time

import torch
from torch.utils.data import Dataset

from hsidenoise.training.loader import ResumableLoader


class SlowItems(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, number):
        time.sleep(0.01)
        return torch.tensor(number)


def test_the_loader_adds_up_the_time_that_batches_were_waited_for():
    loader = ResumableLoader(SlowItems(), batch_size=2)
    assert loader.seconds_waited == 0
    batches = iter(loader)
    assert next(batches).tolist() == [0, 1]
    first = loader.seconds_waited
    assert first >= 0.02
    time.sleep(0.05)  # of the step: nobody waits for data
    assert [batch.tolist() for batch in batches] == [[2, 3], [4, 5]]
    assert loader.seconds_waited >= 0.06
    whole = loader.seconds_waited
    assert len(list(loader)) == 3
    assert loader.seconds_waited >= whole + 0.06


def test_it_has_no_state_of_its_own():
    loader = ResumableLoader(SlowItems(), batch_size=2)
    next(iter(loader))
    assert loader.state_dict() == {}
    loader.load_state_dict({})
