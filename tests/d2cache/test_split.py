"""A model over several devices writes what it writes on one."""

import pytest
import torch
from checkpoints import write_checkpoint
from lab import DECODER_KNOBS, POLICIES, SMALL, random_prompt, run, small_model

import d2cache
from d2cache import graphs
from d2cache.models import pick_devices
from d2cache.split import RemoteBlock, spread


def split(model, shares, devices):
    """The same weights, spread."""
    other, places = spread(model.config, shares)
    state = {name: w.to(devices[places[name]]) for name, w in model.state_dict().items()}
    other.load_state_dict(state, assign=True)
    return other.requires_grad_(False).eval()


def test_layers_fill_the_devices_in_order():
    config = d2cache.model.CONFIGS["llada-8b"]
    for shares in ([1], [1, 1], [3, 1], [1, 2, 1], [10, 1]):
        model, places = spread(config, shares)
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        held = [sum(n for k, n in sizes.items() if places[k] == i) for i in range(len(shares))]
        layer = sum(p.numel() for p in model.blocks[0].parameters())
        for got, share in zip(held, shares, strict=True):
            assert abs(got - sum(held) * share / sum(shares)) <= layer
        assert all(places[k] == 0 for k in sizes if not k.startswith("blocks"))
        of = [places[f"blocks.{i}.out_proj.weight"] for i in range(config.layers)]
        assert of == sorted(of)
        for i, block in enumerate(model.blocks):
            assert {v for k, v in places.items() if k.startswith(f"blocks.{i}.")} == {of[i]}
            assert isinstance(block, RemoteBlock) == (of[i] > 0)


def test_a_first_device_too_small_for_a_layer_still_has_the_rest():
    model, places = spread(SMALL, [1, 1000])
    assert [type(block) for block in model.blocks] == [RemoteBlock] * SMALL.layers
    assert places["embed.weight"] == places["head.weight"] == 0


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_folder_loads_over_two_devices(tmp_path, family):
    folder = str(write_checkpoint(tmp_path / family, family))
    one, two = (d2cache.load(folder, device) for device in ("cpu", "cpu,cpu"))
    assert sum(isinstance(block, RemoteBlock) for block in two.blocks) not in (0, len(two.blocks))
    assert one.state_dict().keys() == two.state_dict().keys()
    for policy in ("none", "d2"):
        a, b = (run(m, random_prompt(9), policy, gen_length=16) for m in (one, two))
        assert all(torch.equal(x.logits, y.logits) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("devices", ["cpu,tpu", "cpu,", ",", "cuda:99", "cpu,cuda:99"])
def test_missing_devices_are_refused(devices):
    with pytest.raises(ValueError, match="device") as refused:
        pick_devices(devices)
    assert "\n" not in str(refused.value)


def test_graphs_leave_a_split_model_to_the_plain_loop():
    model, policy = small_model(), d2cache.make_policy("d2")
    assert graphs.supports(model, policy)
    assert not graphs.supports(split(model, [1, 1], ["cpu", "cpu"]), policy)


@pytest.mark.gpu
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p[0]}-{p[1]}")
@pytest.mark.parametrize("home", ["cuda", "cpu"])
def test_two_devices_write_what_one_writes(policy, home):
    """float64, half of the layers on the GPU or all but half; WINO asks for a shadow pass too."""
    model = small_model(dtype=torch.float64)
    decoder = d2cache.make_decoder("wino", **DECODER_KNOBS["wino"])
    both = []
    for m in (model.to(home), split(model, [1, 1], [home, "cpu" if home == "cuda" else "cuda"])):
        made = d2cache.make_policy(policy[0], **policy[1])
        settings = dict(gen_length=24, block_length=8, eager=True)
        both.append(run(m, random_prompt(9), made, decoder, **settings))
    for one, two in zip(*both, strict=True):
        assert torch.equal(one.tokens, two.tokens)
        torch.testing.assert_close(one.logits, two.logits, atol=1e-9, rtol=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_the_logits_of_one():
    model = small_model(dtype=torch.bfloat16)
    one, two = model.to("cuda:0"), split(model, [1, 1], ["cuda:0", "cuda:1"])
    a, b = (run(m, random_prompt(9), "d2", gen_length=24, eager=True) for m in (one, two))
    assert all(torch.equal(x.logits, y.logits) for x, y in zip(a, b, strict=True))
