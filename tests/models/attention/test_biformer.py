"""The BiFormer block against a plain one written out here, and against the names of the released one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hsidenoise.models.attention.biformer import BiFormerBlock, StochasticDepth
from hsidenoise.models.attention.bra import BiLevelRoutingAttention

REGIONS = {"n_win": None, "region_size": 4, "topk": 2}


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def plain(block, x):
    """The block by section 3.3 of the paper and its released options, one line per operation."""
    norms = [lambda t, n=n: F.layer_norm(t, t.shape[-1:], n.weight, n.bias, 1e-6) for n in (block.norm1, block.norm2)]
    if block.pos_embed is not None:
        weight = block.pos_embed.weight
        x = x + F.conv2d(x, weight, block.pos_embed.bias, padding=weight.shape[2] // 2, groups=x.shape[1])
    x = x.permute(0, 2, 3, 1).contiguous()

    def perceptron(t):
        t = F.linear(t, block.mlp[0].weight, block.mlp[0].bias)
        if not isinstance(block.mlp[1], nn.Identity):
            inner = block.mlp[1].dwconv
            t = F.conv2d(t.permute(0, 3, 1, 2), inner.weight, inner.bias, padding=1, groups=t.shape[-1])
            t = t.permute(0, 2, 3, 1)
        t = t * 0.5 * (1 + torch.erf(t / 2**0.5))
        return F.linear(t, block.mlp[3].weight, block.mlp[3].bias)

    for norm, branch, gamma in zip(norms, (block.attn, perceptron), (block.gamma1, block.gamma2), strict=True):
        factor = 1.0 if gamma is None else gamma
        x = x + factor * branch(norm(x)) if block.pre_norm else norm(x + factor * branch(x))
    return x.permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"before_attn_dwconv": 0},
        {"before_attn_dwconv": 5},
        {"mlp_ratio": 1.5, "mlp_dwconv": True},
        {"pre_norm": False},
        {"layer_scale_init_value": 0.3},
        {"layer_scale_init_value": 0.3, "pre_norm": False},
        {"side_dwconv": 0, "qk_dim": 6, "param_attention": "qkv"},
        {"n_win": 3, "region_size": None, "topk": 5, "auto_pad": True},
        {"drop_path": 0.5},
    ],
)
def test_equals_the_plain_block(options):
    torch.manual_seed(0)
    block = BiFormerBlock(12, num_heads=3, **{**REGIONS, **options}).eval()
    for parameter in block.parameters():  # biases and norms, too, away from where they start
        nn.init.normal_(parameter, std=0.3)
    x = image(2, 12, 10, 15)
    before = x.clone()
    torch.testing.assert_close(block(x), plain(block, x), rtol=1e-4, atol=1e-5)
    assert torch.equal(x, before)


RELEASED = {
    "pos_embed.weight": (64, 1, 3, 3),
    "pos_embed.bias": (64,),
    "norm1.weight": (64,),
    "norm1.bias": (64,),
    "attn.qkv.qkv.weight": (192, 64),
    "attn.qkv.qkv.bias": (192,),
    "attn.wo.weight": (64, 64),
    "attn.wo.bias": (64,),
    "attn.lepe.weight": (64, 1, 5, 5),
    "attn.lepe.bias": (64,),
    "norm2.weight": (64,),
    "norm2.bias": (64,),
    "mlp.0.weight": (192, 64),
    "mlp.0.bias": (192,),
    "mlp.3.weight": (64, 192),
    "mlp.3.bias": (64,),
}


def test_names_are_those_of_the_released_block():
    """Configured as the first stage of the published tiny network."""
    block = BiFormerBlock(64, num_heads=2, n_win=7, topk=1)
    assert {name: tuple(weight.shape) for name, weight in block.state_dict().items()} == RELEASED


def test_names_of_the_options_are_the_released_ones():
    options = {"mlp_dwconv": True, "layer_scale_init_value": 1e-4, "before_attn_dwconv": 0, "side_dwconv": 0}
    block = BiFormerBlock(64, 2, param_routing=True, diff_routing=True, soft_routing=True, **options)
    more = {"mlp.1.dwconv.weight", "mlp.1.dwconv.bias", "attn.router.emb.weight", "attn.router.emb.bias"}
    less = {name for name in RELEASED if "pos_embed" in name or "lepe" in name}
    assert set(block.state_dict()) == set(RELEASED) - less | more | {"gamma1", "gamma2"}
    assert torch.equal(block.gamma1, torch.full((64,), 1e-4))


def test_the_defaults_are_those_of_the_published_networks():
    block = BiFormerBlock(64)
    attention = block.attn
    assert isinstance(attention, BiLevelRoutingAttention)
    assert (attention.num_heads, attention.n_win, attention.topk) == (8, 7, 4)
    assert block.mlp[0].out_features == 3 * 64
    assert block(torch.randn(1, 64, 14, 21)).shape == (1, 64, 14, 21)


class Copies(TorchDispatchMode):
    """Counts what makes a second copy of the same numbers."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("clone", "copy_", "_to_copy", "contiguous"):
            self.made.append(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"pre_norm": False}, {"mlp_dwconv": True, "layer_scale_init_value": 1.0}])
def test_channels_last_is_kept_without_a_copy(options):
    block = BiFormerBlock(12, num_heads=3, **REGIONS, **options).eval()
    x = image(2, 12, 10, 15).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert block(x).is_contiguous(memory_format=torch.channels_last)
        block.attn = nn.Identity()  # sorts its pixels by region, which is its own affair
        with Copies() as copies:
            block(x)
        assert copies.made == []
        x = x.contiguous()
        with Copies() as copies:
            block(x)
        assert len(copies.made) == 1


@pytest.mark.parametrize("options", [{}, {"layer_scale_init_value": 0.1, "mlp_dwconv": True, "drop_path": 0.1}])
def test_gradient_reaches_every_weight(options):
    torch.manual_seed(0)
    block = BiFormerBlock(12, num_heads=3, **REGIONS, **options)
    x = image(4, 12, 10, 15).requires_grad_()
    block(x).square().sum().backward()
    for name, weight in [*block.named_parameters(), ("x", x)]:
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_bfloat16_is_near_float32():
    torch.manual_seed(0)
    block = BiFormerBlock(12, num_heads=3, **REGIONS).eval()
    x = image(2, 12, 10, 15)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = block(x)
    assert (half - block(x)).abs().max() < 0.05 * block(x).std()


def test_stochastic_depth_leaves_out_whole_images_in_training_only():
    torch.manual_seed(0)
    depth = StochasticDepth(0.25)
    branch = torch.ones(4000, 2, 1, 3)
    out = depth(branch)
    assert torch.equal(out, out[:, :1, :, :1].expand_as(out))
    left_out = (out[:, 0, 0, 0] == 0).float().mean().item()
    assert left_out == pytest.approx(0.25, abs=0.03)
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)  # what is kept makes up for it
    assert depth.eval()(branch) is branch


def test_drop_path_is_on_both_branches():
    """Left out of both, an image only meets the positional encoding."""
    torch.manual_seed(0)
    block = BiFormerBlock(12, num_heads=3, drop_path=0.999, **REGIONS)
    x = image(2, 12, 10, 15)
    torch.testing.assert_close(block(x), x + block.pos_embed(x))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dim": 0}, "dim=0"),
        ({"num_heads": 5}, "num_heads=5"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0"),
        ({"mlp_ratio": -1.0}, "mlp_ratio=-1.0"),
        ({"before_attn_dwconv": 4}, "before_attn_dwconv=4"),
        ({"before_attn_dwconv": -3}, "before_attn_dwconv=-3"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"drop_path": -0.1}, "drop_path=-0.1"),
        ({"side_dwconv": 2}, "side_dwconv"),
        ({"topk": 50}, "topk=50"),
        ({"topk": -2}, "topk=-2"),
        ({"region_size": 8}, "n_win"),
        ({"param_attention": "q"}, "param_attention"),
    ],
)
def test_a_wrong_argument_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        BiFormerBlock(**{"dim": 32, **wrong})


def test_an_image_that_the_regions_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiples of n_win=7"):
        BiFormerBlock(16)(torch.randn(1, 16, 14, 20))
