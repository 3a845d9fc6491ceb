import sys
import types

import pytest
import torch

from xpt.models.attention import CrossAttention, SelfAttention, attention_function, attention_kernel


def plain(q_BNHE, k_BSHE, v_BSHE):
    scores = torch.einsum("bnhe,bshe->bhns", q_BNHE, k_BSHE) / q_BNHE.shape[-1] ** 0.5
    return torch.einsum("bhns,bshe->bnhe", scores.softmax(-1), v_BSHE)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 17), (33, 7)])
def test_sdpa_is_softmax_attention_in_values_and_gradients(head_dim: int, queries: int, keys: int):
    torch.manual_seed(0)
    q = torch.randn(2, queries, 3, head_dim, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, keys, 3, head_dim, dtype=torch.float64, requires_grad=True) for _ in "kv")
    out, wanted = attention_function("sdpa")(q, k, v), plain(q, k, v)
    torch.testing.assert_close(out, wanted)
    weight = torch.randn_like(out)
    got = torch.autograd.grad((out * weight).sum(), (q, k, v))
    torch.testing.assert_close(got, torch.autograd.grad((wanted * weight).sum(), (q, k, v)))


def test_self_attention_is_timms_with_the_same_state():
    from timm.layers.attention import Attention

    torch.manual_seed(0)
    theirs = Attention(24, num_heads=3, qkv_bias=True)
    ours = SelfAttention(24, 3, "sdpa")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 24)
    torch.testing.assert_close(ours(ours.qkv(x)), theirs(x))


def test_cross_attention_on_itself_is_self_attention():
    torch.manual_seed(0)
    self_attention, cross = SelfAttention(24, 3, "sdpa"), CrossAttention(24, 24, 3, "sdpa")
    with torch.no_grad():
        cross.q.weight.copy_(self_attention.qkv.weight[:24])
        cross.q.bias.copy_(self_attention.qkv.bias[:24])
        cross.kv.weight.copy_(self_attention.qkv.weight[24:])
        cross.kv.bias.copy_(self_attention.qkv.bias[24:])
        cross.proj.load_state_dict(self_attention.proj.state_dict())
    x = torch.randn(2, 9, 24)
    torch.testing.assert_close(cross(cross.q(x), x), self_attention(self_attention.qkv(x)))


def test_flash_attention_that_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch):
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ValueError, match=r"flash-attn cannot be imported.*pip install -e .*flash.*--model.attention sdpa"
    ):
        attention_function("flash_attn")


@pytest.mark.parametrize("version", [2, 4])
def test_flash_attention_gets_its_own_layout(monkeypatch: pytest.MonkeyPatch, version: int):
    """flash-attn takes and gives [batch, tokens, heads, head width]; a stand-in that checks it."""
    calls = []

    def flash_attn_func(q, k, v):
        calls.append(q.shape)
        return plain(q, k, v) if version == 2 else (plain(q, k, v), None)

    package, cute = types.ModuleType("flash_attn"), types.ModuleType("flash_attn.cute")
    vars(package if version == 2 else cute)["flash_attn_func"] = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    torch.manual_seed(0)
    flash, sdpa = SelfAttention(24, 3, "flash_attn"), SelfAttention(24, 3, "sdpa")
    flash.load_state_dict(sdpa.state_dict())
    x = torch.randn(2, 9, 24)
    torch.testing.assert_close(flash(flash.qkv(x)), sdpa(sdpa.qkv(x)))
    assert calls == [(2, 9, 3, 8)]


@pytest.mark.parametrize("head_width", [32, 64, 128])
def test_the_kernel_that_runs_is_named(head_width: int):
    name = attention_kernel("sdpa", head_width, torch.float32, torch.device("cpu"))
    assert name == "sdpa: flash_attention_for_cpu"
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        name = attention_kernel("sdpa", head_width, torch.float32, torch.device("cpu"))
    assert name == "sdpa: unfused"
