import pytest
import torch
from torch import nn

from hsidenoise.system.machine import autocast, find_device, find_precision, home, in_use, is_out_of_memory

CPU = torch.device("cpu")


def test_devices():
    assert find_device("cpu") == CPU
    assert find_device() == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, message in (("tpu9", "unknown device"), ("cuda:99", "no device"), ("meta", "no device 'meta'")):
        with pytest.raises(ValueError, match=message):
            find_device(name)


def test_precisions():
    assert find_precision("float32", CPU) == "float32"
    assert find_precision("bfloat16", CPU) == "bfloat16"
    amx = getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16", False)
    assert find_precision("auto", CPU) == ("bfloat16" if amx else "float32")
    assert find_precision("auto", torch.device("meta")) == "float32"


@pytest.mark.usefixtures("unchecked")
def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match="unknown precision 'half'; choose float32, bfloat16 or auto"):
        find_precision("half", CPU)


def test_autocast_is_for_bfloat16_only():
    layer, x = nn.Linear(3, 4), torch.ones(2, 3)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast(CPU, precision):
            assert layer(x).dtype == dtype


def test_a_network_is_given_back_as_it_was():
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3))
    network[0].eval()
    with in_use(network, CPU):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [True, False, True]
    assert home(network) == CPU
    assert home(nn.Identity()) is None


@pytest.mark.parametrize(
    ("text", "memory"),
    [
        ("could not create a primitive", True),
        ("could not create a memory object", True),
        ("could not execute a primitive", True),
        ("std::bad_alloc", True),
        # what oneDNN cannot do: smaller tiles would not help
        ("could not create a primitive descriptor for a convolution forward propagation primitive", False),
    ],
)
def test_what_onednn_says_without_memory(text, memory):
    assert is_out_of_memory(RuntimeError(text)) == memory


def test_errors_of_memory_are_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("Failed to allocate memory for requested buffer of size 99"))  # ONNX Runtime
    assert not is_out_of_memory(RuntimeError("size mismatch"))
