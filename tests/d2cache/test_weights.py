"""Checkpoint folders: what is written loads as it was, and a bad folder is refused in one line."""

import json
import os
import re
import struct

import pytest
import torch
from lab import SMALL, assert_same_confidence, confidences, random_prompt, run, small_model
from safetensors.torch import load_file, save_file

import d2cache
from analysis import bench
from d2cache import models, weights
from d2cache.families import FAMILIES
from d2cache.generate import open_canvas
from d2cache.model import CONFIGS
from d2cache.weights import FREQUENCY, read_frequency

INDEX = "model.safetensors.index.json"

# tensors of the second layer, by their role
NAMES = {
    "llada": {
        "q": "model.transformer.blocks.1.q_proj.weight",
        "k": "model.transformer.blocks.1.k_proj.weight",
        "v": "model.transformer.blocks.1.v_proj.weight",
        "out": "model.transformer.blocks.1.attn_out.weight",
        "norm": "model.transformer.blocks.1.attn_norm.weight",
        "gate": "model.transformer.blocks.1.ff_proj.weight",
        "up": "model.transformer.blocks.1.up_proj.weight",
        "down": "model.transformer.blocks.1.ff_out.weight",
    },
    "dream": {
        "q": "model.layers.1.self_attn.q_proj.weight",
        "k": "model.layers.1.self_attn.k_proj.weight",
        "v": "model.layers.1.self_attn.v_proj.weight",
        "out": "model.layers.1.self_attn.o_proj.weight",
        "norm": "model.layers.1.input_layernorm.weight",
        "gate": "model.layers.1.mlp.gate_proj.weight",
        "up": "model.layers.1.mlp.up_proj.weight",
        "down": "model.layers.1.mlp.down_proj.weight",
    },
}


def small(family: str, seed: int = 50):
    return small_model(seed, kv_heads=2, **FAMILIES[family].fields)


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path):
    """A small random sharded model, in a folder named after its family."""
    path = tmp_path / request.param
    weights.save(small(request.param), path, torch.float64, shard_bytes=40_000)
    return path


def named(folder, part: str) -> str:
    return NAMES[folder.name][part]


def as_one_file(folder):
    """The same weights as one model.safetensors, without an index."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
        path.unlink()
    (folder / INDEX).unlink()
    save_file(tensors, folder / "model.safetensors")
    return folder


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    content |= changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def refused(folder, *says):
    with pytest.raises(ValueError) as error:
        d2cache.load(str(folder), device="cpu", dtype=torch.float64)
    message = str(error.value)
    assert "\n" not in message and len(message) < 1000
    for part in says:
        assert part in message
    return message


@pytest.mark.parametrize("one_file", [False, True])
def test_a_saved_model_loads_as_it_was(folder, one_file):
    assert len(list(folder.glob("*.safetensors"))) > 2
    if one_file:
        as_one_file(folder)
    model, loaded = small(folder.name), d2cache.load(str(folder), "cpu", torch.float64)
    for (name, ours), (other, theirs) in zip(
        model.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(ours, theirs)
    assert loaded.config.__dict__ == model.config.__dict__ | {"name": folder.name}
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    same = [confidences(run(m, random_prompt(5), gen_length=4)) for m in (model, loaded)]
    assert_same_confidence(*same, within=1e-12)


def test_each_shard_stays_under_its_size(folder):
    sizes = [sum(t.nbytes for t in load_file(p).values()) for p in folder.glob("*.safetensors")]
    assert len(sizes) > 2 and max(sizes) <= 40_000
    listed = json.loads((folder / INDEX).read_text())
    assert listed["metadata"]["total_size"] == sum(sizes)


def test_names_and_keys_are_those_of_the_familys_checkpoints(folder):
    listed = json.loads((folder / INDEX).read_text())["weight_map"]
    state = small(folder.name).state_dict()
    whole, gates = (state[f"blocks.1.{n}.weight"] for n in ("qkv_proj", "gate_up_proj"))
    for part, want in (
        ("q", whole[:32]),
        ("k", whole[32:48]),
        ("v", whole[48:]),
        ("gate", gates[:48]),
        ("up", gates[48:]),
        ("out", state["blocks.1.out_proj.weight"]),
        ("down", state["blocks.1.down_proj.weight"]),
        ("norm", state["blocks.1.attn_norm.weight"]),
    ):
        name = named(folder, part)
        assert torch.equal(load_file(folder / listed[name])[name], want)
    config = json.loads((folder / "config.json").read_text())
    keys = {
        "llada": ("n_heads", "n_kv_heads"),
        "dream": ("num_attention_heads", "num_key_value_heads"),
    }[folder.name]
    assert [config[key] for key in keys] == [4, 2]
    assert config["model_type"] == {"llada": "llada", "dream": "Dream"}[folder.name]
    assert config["mask_token_id"] == 59 and config["vocab_size"] == 60


def test_weights_are_converted_to_the_requested_dtype(folder):
    assert d2cache.load(str(folder), device="cpu").dtype == torch.float32
    assert d2cache.load(str(folder), device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["banana", "cpu:x", "mps", "meta", ""])
def test_an_unknown_device_is_refused(folder, device):
    with pytest.raises(ValueError, match="unknown device .*; use auto, cpu or cuda") as error:
        d2cache.load(str(folder), device=device)
    assert "\n" not in str(error.value)


def test_a_missing_gpu_is_named(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device is cuda, but torch sees no GPU here"):
        d2cache.load(str(folder), device="cuda")


@pytest.mark.parametrize("name", ["/nowhere/at/all", "nothing", "./a/b", "a/b/c/d", "~/x", "x\0y"])
def test_a_folder_that_is_not_there_is_refused(name):
    refused(name, "no model folder at", "give 'tiny', a hub id such as")


# key of ModelConfig -> the family's key of config.json
KEYS = {
    family: {field: keys[0] for field, keys in table.keys.items()}
    for family, table in FAMILIES.items()
}
BAD_CONFIGS = {
    "missing": (None, "has no config.json"),
    "broken": ("{", "is not readable JSON"),
    "not text": (b"\xff\xfe\x00", "is not readable JSON"),
    "nested": ("[" * 100000, "is not readable JSON"),
    "a list": ("[1]", "holds a list; it must hold an object"),
    "other family": (
        dict(model_type="llama"),
        "has model_type 'llama'; this engine loads 'llada' and 'Dream'",
    ),
    "no family": (dict(model_type=...), "has model_type None"),
    "a list for a family": (dict(model_type=["llada"] * 100), "has model_type ['llada', "),
    "no width": (dict(width=...), "'; it must have the keys of '"),
    "no mask": (dict(mask_id=...), "lacks 'mask_token_id'"),
    "text": (dict(layers="3"), "layers is '3', not a whole number"),
    "float": (dict(heads=4.0), "heads is 4.0, not a whole number"),
    "switch": (dict(width=True), " is True, not a whole number"),
    "no base": (dict(rope_theta=None), "rope_theta is None, not a number"),
    "word for a number": (dict(rope_theta="fast"), "rope_theta is 'fast', not a number"),
    "too large a number": (dict(rope_theta=10**400), "config.json"),
    "not above zero": (
        dict(norm_eps=float("nan")),
        "norm_eps is nan; it must be a number above 0",
    ),
    "negative": (dict(layers=-1), "layers is -1; it must be"),
    "million layers": (dict(layers=10**6), "layers is 1000000; it must be"),
    "gigantic": (dict(width=10**30), "width is 1000"),
    "gigantic vocabulary": (dict(vocab=10**12), "vocab is 1000000000000; it must be"),
    "odd heads": (dict(heads=5, kv_heads=5), "does not split into 5 heads"),
    "mask outside": (dict(mask_id=99), "mask_id is 99"),
    "mask is the end": (dict(mask_id=58), "mask_id and eos_id are both 58"),
    "quantized": (
        dict(quantization_config={"quant_method": "awq", "bits": 4}),
        "says that the weights are quantized (awq); use a checkpoint that is not quantized",
    ),
    "quantized by MLX": (dict(quantization={"bits": 4}), "weights are quantized (quantization)"),
    "capped logits": (dict(final_logit_softcapping=30.0), "final_logit_softcapping 30.0; this"),
    "half rotated": (dict(partial_rotary_factor=0.5), "partial_rotary_factor 0.5; this engine"),
    "experts": (dict(num_experts=8), "num_experts 8; this engine supports only 0"),
    "other heads": (dict(head_dim=12), "head_dim 12; this engine supports only width / heads, 8"),
    "windows": (dict(layer_types=["sliding_attention"] * 3), "only 'full_attention'"),
    "scaled": (
        dict(rope_scaling={"type": "linear", "factor": 4.0}),
        "rope_scaling {'type': 'linear', 'factor': 4.0}; this engine supports only None",
    ),
    "scaled, newer writers": (
        dict(rope_parameters={"rope_type": "yarn", "rope_theta": 1e6}),
        "rope_parameters.rope_type 'yarn'; this engine supports only 'default'",
    ),
    "tied": (
        dict(weight_tying=True, tie_word_embeddings=True),
        "True; this engine supports only False",
    ),
    "other activation": (
        dict(activation_type="gelu", hidden_act="gelu"),
        "'gelu'; this engine supports only 'silu'",
    ),
}


@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_a_bad_config_is_refused(folder, kind):
    content, says = BAD_CONFIGS[kind]
    path = folder / "config.json"
    if content is None:
        path.unlink()
    elif isinstance(content, dict):
        keys = KEYS[folder.name]
        edit_json(path, **{keys.get(field, field): value for field, value in content.items()})
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(folder, says)


LLADA_ONLY = {
    "biases": (dict(include_bias=True), "include_bias True; this engine supports only False"),
    "biases of q, k, v": (dict(include_qkv_bias=True), "include_qkv_bias True; this engine"),
    "biases of norms": (dict(bias_for_layer_norm=True), "bias_for_layer_norm True; this engine"),
    "norms without a scale": (dict(layer_norm_with_affine=False), "layer_norm_with_affine False"),
    "groups of blocks": (dict(block_group_size=3), "block_group_size 3; this engine supports"),
    "clipped": (dict(clip_qkv=8.0), "clip_qkv 8.0; this engine supports only None"),
}
DREAM_ONLY = {
    "window": (dict(use_sliding_window=True), "use_sliding_window True; this engine supports"),
    "blocks": (dict(block_size=32), "block_size 32; this engine supports only None"),
}


@pytest.mark.parametrize(
    ("family", "kind"), [("llada", k) for k in LLADA_ONLY] + [("dream", k) for k in DREAM_ONLY]
)
def test_unsupported_mathematics_is_refused(tmp_path, family, kind):
    weights.save(small(family), tmp_path / family, torch.float64)
    changes, says = (LLADA_ONLY if family == "llada" else DREAM_ONLY)[kind]
    edit_json(tmp_path / family / "config.json", **changes)
    refused(tmp_path / family, says)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llada", dict(embedding_size=...)),
        ("llada", dict(n_kv_heads=...)),
        ("llada", dict(n_kv_heads=None)),
        ("dream", dict(num_key_value_heads=...)),
        ("dream", dict(eos_token_id=None)),
        ("dream", dict(rope_theta=..., rope_parameters={"rope_theta": 100.0})),
        ("llada", dict(rope_theta=..., rope_parameters={"rope_theta": 100.0})),
        ("llada", dict(rope_scaling={"rope_type": "default"})),
        ("dream", dict(rope_scaling={"type": "default"}, layer_types=["full_attention"] * 3)),
        ("llada", dict(bias_for_layer_norm=None, include_qkv_bias=None)),
        ("llada", dict(partial_rotary_factor=1.0, quantization_config=None, head_dim=8)),
        ("llada", dict(eos_token_id=[58, 57])),
        ("dream", dict(eos_token_id=[58])),
    ],
)
def test_keys_that_a_writer_leaves_out_have_the_familys_defaults(tmp_path, family, changes):
    model = small_model(51, **FAMILIES[family].fields)
    weights.save(model, tmp_path / "m", torch.float64)
    edit_json(tmp_path / "m" / "config.json", **changes)
    loaded = d2cache.load(str(tmp_path / "m"), "cpu")
    assert loaded.config.__dict__ == model.config.__dict__ | {"name": "m"}


@pytest.mark.parametrize(
    ("sizes", "keys"),
    [
        (dict(mlp=64), dict(mlp_hidden_size=None, mlp_ratio=2)),
        (dict(mlp=64), dict(mlp_hidden_size=..., mlp_ratio=2)),
        (dict(kv_heads=1), dict(n_kv_heads=None, multi_query_attention=True)),
    ],
)
def test_sizes_that_lladas_class_derives_are_derived(tmp_path, sizes, keys):
    model = small_model(51, **sizes)
    weights.save(model, tmp_path / "m", torch.float64)
    edit_json(tmp_path / "m" / "config.json", **keys)
    loaded = d2cache.load(tmp_path / "m", "cpu")
    assert loaded.config.__dict__ == model.config.__dict__ | {"name": "m"}


def shard_of(folder, name):
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][name]


def shard_of_k(folder):
    return shard_of(folder, named(folder, "k"))


def without(folder):
    shard = shard_of_k(folder)
    shard.unlink()
    return f"lacks the shard {shard.name}; fetch it again"


def truncated(folder):
    shard = shard_of_k(folder)
    shard.write_bytes(shard.read_bytes()[:-100])
    return f"{shard.name} is not readable"


def emptied(folder):
    shard = shard_of_k(folder)
    shard.write_bytes(b"")
    return f"{shard.name} is not readable"


def lying_header(folder):
    shard = shard_of_k(folder)
    data = shard.read_bytes()
    shard.write_bytes(struct.pack("<Q", 1 << 60) + data[8:])
    return f"{shard.name} is not readable"


def lying_tensor(shape, size, says):
    """The shard holds one tensor that claims this shape and this size in bytes."""

    def fault(folder):
        tensor = {"dtype": "F64", "shape": shape, "data_offsets": [0, size]}
        head = json.dumps({named(folder, "k"): tensor}).encode()
        shard_of_k(folder).write_bytes(struct.pack("<Q", len(head)) + head + bytes(8))
        return says

    return fault


def other_tensors(folder):
    shard = shard_of_k(folder)
    save_file({"a": torch.ones(1)}, shard)
    return f"{shard.name} does not contain"


def a_folder(folder):
    shard = shard_of_k(folder)
    shard.unlink()
    shard.mkdir()
    return f"{shard.name} is not readable"


def changed(part, edit, says="in {folder} has shape"):
    def fault(folder):
        name = named(folder, part)
        shard = shard_of(folder, name)
        tensors = load_file(shard)
        tensors[name] = edit(tensors[name]).contiguous()
        save_file(tensors, shard)
        return f"{name} {says.format(folder=folder)}"

    return fault


def listed(edit, says):
    def fault(folder):
        content = json.loads((folder / INDEX).read_text())
        edit(content, named(folder, "k"))
        (folder / INDEX).write_text(json.dumps(content))
        return says.format(k=named(folder, "k"))

    return fault


def points(where):
    return listed(
        lambda content, k: content["weight_map"].update({k: where}),
        f"points outside its folder for {{k}}: {where!r}",
    )


def linked_out(folder):
    """The shard is a link to a valid file outside the folder."""
    shard = shard_of_k(folder)
    shard.rename(folder.parent / "elsewhere.safetensors")
    shard.symlink_to(folder.parent / "elsewhere.safetensors")
    return f"{shard.name} is a link out of its folder; put the file itself there"


def broken_index(folder):
    (folder / INDEX).write_text("{")
    return "is not readable JSON"


def no_weights(folder):
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    return "needs *.safetensors weights; found none"


FAULTS = {
    "shard missing": without,
    "shard truncated": truncated,
    "shard empty": emptied,
    "shard a folder": a_folder,
    "header size lies": lying_header,
    "tensor size lies": lying_tensor([9, 9], 8, "is not readable"),
    "tensor past the end": lying_tensor([16, 32], 4096, "is not readable"),
    "tensor size overflows": lying_tensor([1 << 62, 1 << 62], 8, "is not readable"),
    "shard of other tensors": other_tensors,
    "norm too long": changed("norm", lambda t: torch.cat((t, t))),
    "matrix turned": changed("down", lambda t: t.T),
    "one row fewer": changed("up", lambda t: t[1:]),
    "part too wide": changed("v", lambda t: torch.cat((t, t), 1)),
    "part flat": changed("k", lambda t: t.flatten()),
    "part a number": changed("k", lambda t: t[0, 0]),
    "quantized": changed("k", lambda t: t.to(torch.int8), "in {folder} has type I8"),
    "quantized to eight bits of float": changed(
        "q", lambda t: t.to(torch.float8_e4m3fn), "in {folder} has type F8_E4M3"
    ),
    "index broken": broken_index,
    "index without map": listed(lambda c, k: c.pop("weight_map"), "has no weight_map"),
    "map a list": listed(lambda c, k: c.update(weight_map=[]), "has no weight_map"),
    "tensor not listed": listed(lambda c, k: c["weight_map"].pop(k), "does not list {k}"),
    "shard a number": points(3),
    "shard above the folder": points("../outside.safetensors"),
    "shard far away": points("/tmp/outside.safetensors"),
    "shard in a folder": points("sub/x.safetensors"),
    "shard any file": points("*.safetensors"),
    "shard of another kind": points("pytorch_model.bin"),
    "shard the folder": points("."),
    "shard no name": points(""),
    "shard with a zero": points("a\0b.safetensors"),
    "shard a link out": linked_out,
    "no weights": no_weights,
}


@pytest.mark.parametrize("kind", FAULTS)
def test_bad_weights_are_refused(folder, kind):
    if "shard above" in kind:  # the file is there and valid
        outside = load_file(shard_of_k(folder))
        save_file(outside, folder.parent / "outside.safetensors")
    says = FAULTS[kind](folder)
    refused(folder, says)


@pytest.mark.parametrize("folder", ["llada"], indirect=True)
@pytest.mark.parametrize("name", ["model.safetensors", INDEX])
def test_a_folder_for_a_file_is_refused(folder, name):
    no_weights(folder)
    (folder / name).mkdir()
    refused(folder, "needs *.safetensors weights; found none")


def test_one_file_that_is_a_link_out_is_refused(folder):
    as_one_file(folder)
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")
    refused(folder, "model.safetensors is a link out of its folder")


def test_a_link_inside_a_hubs_cache_is_followed(folder, tmp_path):
    """The hub's cache keeps snapshots/COMMIT/FILE as a link to blobs/HASH."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for path in folder.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(os.path.join("..", "..", "blobs", path.name))
    assert d2cache.load(str(snapshot), device="cpu").config.family == folder.name


def test_a_model_larger_than_the_memory_is_refused_before_its_weights_are_opened(folder):
    sizes = dict(layers=80, width=1 << 17, heads=8, kv_heads=8, mlp=1 << 20, vocab=1 << 20)
    keys = KEYS[folder.name]
    edit_json(folder / "config.json", **{keys[k]: v for k, v in sizes.items()})
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"never read")
    says = refused(
        folder, "GB for its weights, and cpu has ", "free some memory, or choose a smaller"
    )
    assert float(re.search(r"needs ([\d.]+) GB", says)[1]) > 1e5


def test_free_memory_is_what_the_system_reports():
    free = weights.free_memory(torch.device("cpu"))
    assert 0 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("one_file", [False, True])
def test_progress_goes_from_nothing_to_all_bytes(folder, one_file):
    if one_file:
        as_one_file(folder)
    seen = []
    model = d2cache.load(str(folder), "cpu", torch.float32, progress=lambda *a: seen.append(a))
    total = sum(p.nbytes for p in model.parameters())
    assert {what for what, _, _ in seen} == {"reading"} and {t for _, _, t in seen} == {total}
    done = [d for _, d, _ in seen]
    assert done == sorted(done) and done[-1] == total and len(done) == len(model.state_dict())


def renamed(folder, rule):
    """One file whose tensors have other names: rule(name) -> name, None to leave it out, or several
    names, whose tensors hold one number."""
    as_one_file(folder)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        other = rule(name)
        if isinstance(other, list):
            tensors |= {one: torch.ones(1) for one in other}
        elif other is not None:
            tensors[other] = tensor
    save_file(tensors, folder / "model.safetensors")


def parts_of(*ends):
    """Each weight of a product replaced by tensors whose names end like this."""
    return lambda name: [name.removesuffix("weight") + e for e in ends] if "proj" in name else name


def joined(*parts, into):
    """The first of these projections under another name, the others left out."""

    def rule(name):
        found = [part for part in parts if part in name]
        if found and "ff_proj" not in found and found[0] != parts[0]:
            return None
        return name.replace(found[0], into) if found else name

    return rule


HEADS = ("lm_head.weight", "model.transformer.ff_out.weight")
LAYOUTS = {
    "GPTQ": (parts_of("qweight", "qzeros", "scales", "g_idx"), "weights quantized by GPTQ ("),
    "AWQ": (parts_of("qweight", "qzeros", "scales"), "weights quantized by GPTQ or AWQ ("),
    "bitsandbytes": (parts_of("weight", "weight.absmax"), "weights quantized by bitsandbytes ("),
    "bitsandbytes, 8 bits": (parts_of("weight", "SCB"), "weights quantized by bitsandbytes ("),
    "MLX": (parts_of("weight", "scales", "biases"), "weights quantized by MLX ("),
    "8-bit floats": (parts_of("weight", "weight_scale_inv"), "quantized in 8-bit floats ("),
    "adapter": (
        lambda name: "base_model.model." + name.replace("weight", "lora_A.weight"),
        "holds a LoRA adapter, not a model; merge it into its base model",
    ),
    "model with its adapter": (
        lambda name: name.replace("q_proj", "q_proj.base_layer"),
        "holds a LoRA adapter, not a model; merge it into its base model",
    ),
    "prefix": (lambda name: "module." + name, "names its tensors in another way: module.model."),
    "no prefix": (lambda name: name.removeprefix("model."), "instead of model."),
    "q, k and v in one": (
        joined("q_proj", "k_proj", "v_proj", into="att_proj"),
        "joins q, k and v in one tensor (model.",
    ),
    "gate and up in one": (
        joined("up_proj", "gate_proj", into="gate_up_proj"),
        "joins gate and up in one tensor (model.",
    ),
    "tied head": (
        lambda name: (
            None if name in ("lm_head.weight", "model.transformer.ff_out.weight") else name
        ),
        "its head seems to be tied to the embedding; store a copy of model.",
    ),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_checkpoint_of_another_layout_is_told_what_it_looks_like(folder, kind):
    rule, says = LAYOUTS[kind]
    renamed(folder, rule)
    refused(folder, str(folder), says)


def test_tensors_of_the_other_family_are_told(folder):
    other = {"llada": "dream", "dream": "llada"}[folder.name]
    weights.save(small(other), folder, torch.float64)
    weights.save(small(folder.name), folder.parent / "own", torch.float64)
    (folder.parent / "own" / "config.json").replace(folder / "config.json")
    kinds = {"llada": "llada", "dream": "Dream"}
    refused(folder, f"named as in {kinds[other]}", f"its config.json says {kinds[folder.name]}")


@pytest.mark.parametrize("layers", [2, 4])
def test_a_config_of_another_number_of_layers_is_refused(folder, layers):
    edit_json(folder / "config.json", **{KEYS[folder.name]["layers"]: layers})
    refused(folder, f"holds 3 layers, and its config.json says {layers}; use the config.json that")


def added(folder, name):
    tensors = load_file(shard_of_k(folder))
    save_file(tensors | {name: torch.ones(1)}, shard_of_k(folder))


@pytest.mark.parametrize("name", ["model.norm.bias", "model.transformer.wpe.weight", "x"])
def test_a_tensor_that_would_be_passed_over_is_refused(folder, name):
    added(folder, name)
    refused(folder, f"holds {name}, which ", "the answers would be wrong without it")


def test_a_tensor_that_follows_from_the_config_is_passed_over(folder):
    added(folder, "model.layers.1.self_attn.rotary_emb.inv_freq")
    assert d2cache.load(folder, "cpu").config.layers == 3


def keep_only(*names):
    """One file of weights under the first name, and empty files under the others."""

    def change(folder):
        as_one_file(folder)
        (folder / "model.safetensors").rename(folder / names[0])
        for name in names[1:]:
            (folder / name).write_text("{}")

    return change


def without_index(folder):
    (folder / INDEX).unlink()


FILES = {
    "shards without an index": (without_index, f"and no {INDEX}, which lists the shards; fetch"),
    "another name": (
        keep_only("weights.safetensors"),
        "found only weights.safetensors; if it is the whole model, rename it to model.safetensors",
    ),
    "two names": (keep_only("a.safetensors", "b.safetensors"), "found a.safetensors, b.safetens"),
    "adapter": (keep_only("adapter_model.safetensors"), "found a LoRA adapter, not a model; merge"),
    "GGUF": (keep_only("model-Q4_K_M.gguf"), "found a GGUF file, the format of llama.cpp; use the"),
    "numpy": (keep_only("model.npz"), "found only model.npz, the format of another library"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_of_another_layout_are_told(folder, kind):
    change, says = FILES[kind]
    change(folder)
    refused(folder, "needs *.safetensors weights; found ", says)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("adapter_config.json", "has no config.json; it holds a LoRA adapter, not a model; merge"),
        ("model-Q8_0.gguf", "has no config.json; it holds a GGUF file, the format of llama.cpp"),
    ],
)
def test_a_folder_without_a_config_is_told_what_it_holds(folder, file, says):
    (folder / "config.json").unlink()
    (folder / file).write_text("{}")
    refused(folder, says)


def test_the_room_for_a_known_shape_can_be_checked_before_it_is_made(monkeypatch):
    place, needed = [torch.device("cpu")], models.parameters(CONFIGS["llada-8b"]) * 2
    monkeypatch.setattr(weights, "free_memory", lambda device: needed)
    models.check_fits(CONFIGS["llada-8b"], place, torch.bfloat16)
    monkeypatch.setattr(weights, "free_memory", lambda device: needed - 1)
    with pytest.raises(ValueError, match="^llada-8b needs 16.0 GB for its weights, and cpu has 16"):
        models.check_fits(CONFIGS["llada-8b"], place, torch.bfloat16)


def test_a_benchmark_of_a_shape_without_room_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(weights, "free_memory", lambda device: 10**9)
    assert bench.main(["--shape", "llada-8b", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("bench: llada-8b needs 32.1 GB") and said.count("\n") == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_memory_that_runs_out_while_a_model_is_read_is_one_line(folder, monkeypatch, error):
    def raise_it(*_, **__):
        raise error

    monkeypatch.setattr(models, "read_weights", raise_it)
    refused(folder, f"out of memory: {folder.name} does not fit; free some, or choose a smaller")


class Payload:
    """Unpickling this creates a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickled_weights_are_refused_and_never_opened(folder, tmp_path, name):
    import pickle

    no_weights(folder)
    (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    refused(folder, f"only {name}, which could run code; convert it")
    assert not (tmp_path / "executed").exists()


def test_code_that_a_folder_brings_is_not_run(folder, tmp_path):
    code = f"import os; os.mkdir({str(tmp_path / 'executed')!r})\nclass T: pass\nclass M: pass\n"
    for name in ("modeling_llada.py", "tokenization_x.py", "configuration_llada.py"):
        (folder / name).write_text(code)
    edit_json(
        folder / "config.json", auto_map={"AutoModel": "modeling_llada.M"}, trust_remote_code=True
    )
    write_tokenizer(folder, auto_map={"AutoTokenizer": ["tokenization_x.T", None]})
    d2cache.load(str(folder), device="cpu")
    assert not (tmp_path / "executed").exists()


def write_tokenizer(folder, **config):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}": i for i in range(58)} | {"<end>": 58, "<mask>": 59}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<end>", "<mask>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<end>", "mask_token": "<mask>"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_text_goes_through_the_folders_own_chat_template(folder):
    template = "{% for m in messages %}w7 {{ m['content'] }} w8{% endfor %}"
    write_tokenizer(folder, chat_template=template)
    model = d2cache.load(str(folder), device="cpu")
    assert model.encode("w1 w2").tolist() == [7, 1, 2, 8]
    assert model.encode("w1 w2").dtype == torch.int64
    assert model.decode([3, 59, 4, 58, 5]) == "w3 w4"
    assert model.decode(torch.tensor([58, 1])) == ""
    write_tokenizer(folder)
    assert d2cache.load(str(folder), device="cpu").encode("w1 w2").tolist() == [1, 2]


def with_first_token(folder):
    """A tokenizer that puts w9 in front, as many put the beginning of text."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="w9 $A", special_tokens=[("w9", 9)]
    )
    tokenizer.add_tokens(["<think>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def test_a_base_model_gets_the_ids_of_the_tokenizer_itself(folder):
    write_tokenizer(folder)
    with_first_token(folder)
    weights.save(small_model(50, vocab=61, **FAMILIES[folder.name].fields), folder, torch.float64)
    model = d2cache.load(folder, "cpu")
    assert model.encode("w1 w2").tolist() == [9, 1, 2] == model.tokenizer("w1 w2")["input_ids"]
    assert [ids.tolist() for ids in model.encode(["w1", "w2 w3"])] == [[9, 1], [9, 2, 3]]
    assert model.encode("w1 <think> w2").tolist() == [9, 1, 60, 2], "an added word is text"
    with pytest.raises(ValueError, match="this checkpoint has no chat template; give the prompt"):
        model.encode([{"role": "user", "content": "w1"}])
    template = "{% for m in messages %}w9 {{ m['content'] }} {% endfor %}w8"
    (folder / "chat_template.jinja").write_text(template)
    model = d2cache.load(folder, "cpu")
    assert model.encode("w1").tolist() == [9, 1, 8], "a template writes its own first token"


CHAT = [{"role": "system", "content": "w3"}, {"role": "user", "content": "w1 w2"}]


def test_a_chat_goes_through_the_template_message_by_message(folder):
    template = (
        "{% for m in messages %}{{ 'w7' if m['role'] == 'system' else 'w8' }} {{ m['content'] }} "
        "{% endfor %}{% if add_generation_prompt %}w9{% endif %}"
    )
    write_tokenizer(folder, chat_template=template)
    model = d2cache.load(folder, "cpu")
    assert model.encode(CHAT).tolist() == [7, 3, 8, 1, 2, 9]
    assert model.encode(CHAT[1:]).tolist() == model.encode("w1 w2").tolist() == [8, 1, 2, 9]
    assert [ids.tolist() for ids in model.encode([CHAT, CHAT[1:]])] == [
        [7, 3, 8, 1, 2, 9],
        [8, 1, 2, 9],
    ]
    assert len(run(model, model.encode(["w1", "w1 w2"]), gen_length=3)) == 3
    ids = model.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)
    canvas = open_canvas(model, ids, 2)
    assert canvas.tokens[0, :6].tolist() == [7, 3, 8, 1, 2, 9], "a mapping, from transformers 5 on"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "the prompt is None; it must be a text, or a list of messages"),
        ([], r"the prompt is \[\]; it must be a text"),
        ([5], "the prompt is 5; it must be a text"),
        (["w1", None], "the prompt is None; it must be a text"),
        (CHAT[0], "the prompt is {'role': 'system', .*; it must be a text, or a list of messages"),
        ([{"role": "user"}], "a message of the chat is {'role': 'user'}; it must be a dict with"),
        ([{"role": "user", "content": ["w1"]}], "a message of the chat is .*it must be a dict"),
        ([*CHAT, "w1"], "a message of the chat is 'w1'; it must be a dict with the texts 'role'"),
        ([{"role": "user", "content": "w1 <mask>"}], "the prompt holds the special token '<mask>'"),
        ([{"role": "<end>", "content": "w1"}], "the prompt holds the special token '<end>'"),
        (CHAT, "chat template leaves out the system message; put it in front of the user's text"),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path, given, says):
    weights.save(small("llada"), tmp_path / "m", torch.float64)
    write_tokenizer(tmp_path / "m", chat_template="w7 {{ messages[-1]['content'] }} w8")
    with pytest.raises(ValueError, match=says) as error:
        d2cache.load(tmp_path / "m", "cpu").encode(given)
    assert "\n" not in str(error.value)


def test_the_mask_by_an_ordinary_word_is_refused(tmp_path):
    """In a vocabulary of words [MASK] may be one of them."""
    weights.save(small("llada"), tmp_path / "m", torch.float64)
    write_tokenizer(tmp_path / "m", mask_token=None)
    edit_json(tmp_path / "m" / "tokenizer.json", added_tokens=[])
    with pytest.raises(ValueError, match="the prompt holds the text of the mask token"):
        d2cache.load(tmp_path / "m", "cpu").encode("w1 <mask>")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, "float32"])
def test_a_dtype_that_no_layer_computes_in_is_refused_at_the_call(dtype):
    with pytest.raises(ValueError, match="it must be a floating type: torch.float32, torch.float"):
        d2cache.load("tiny", "cpu", dtype)


def test_a_model_may_be_named_by_a_path(folder):
    assert d2cache.load(folder, "cpu").config.name == folder.name
    assert models.label(folder) == folder.name and models.size(folder) > 1000
    assert models.find(folder) == folder


def test_without_a_tokenizer_text_is_refused_and_ids_still_decode(folder):
    model = d2cache.load(str(folder), device="cpu")
    with pytest.raises(ValueError, match=r"this model has no tokenizer; put tokenizer\.json"):
        model.encode("hello")
    assert len(run(model, [1, 2], gen_length=3)) == 3


@pytest.mark.parametrize("content", ["{", "[]", "", '{"model": {"type": "BPE"}}', "null"])
def test_a_broken_tokenizer_is_refused(folder, content):
    (folder / "tokenizer.json").write_text(content)
    refused(folder, "tokenizer.json cannot be read")


def test_the_bundled_model_loads_and_decodes():
    model = d2cache.load(device="cpu")
    assert model.config.name == "tiny"
    ids = model.encode("What is 2 + 3?")
    assert ids.ndim == 1 and len(ids) > 3
    steps = run(model, ids, "d2", gen_length=8)
    assert isinstance(model.decode(steps[-1].after.tokens[0, len(ids) :]), str)


def test_token_frequencies_come_with_the_bundled_model():
    """The most frequent tokens are punctuation and short words; every text has one end."""
    model = d2cache.load("tiny", device="cpu")
    share = model.frequency
    assert share.shape == (1024,) and abs(float(share.double().sum()) - 1) < 1e-5
    common = {model.tokenizer.decode([int(i)]) for i in share.topk(5).indices}
    assert {".", " the", " is"} <= common
    assert 0 < share[model.config.eos_id] < share.max() and share[model.config.mask_id] == 0


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"other": torch.ones(60)}, "lacks the tensor 'frequency'"),
        ({"frequency": torch.ones(7)}, r"has shape \(7,\)"),
        ({"frequency": torch.ones(60, dtype=torch.int64)}, "type torch.int64"),
        ({"frequency": torch.full((60,), torch.nan)}, "numbers of 0 or more"),
        ({"frequency": -torch.ones(60)}, "numbers of 0 or more"),
    ],
)
def test_wrong_token_frequencies_are_refused(tmp_path, tensors, says):
    assert read_frequency(tmp_path, SMALL) is None
    save_file(tensors, tmp_path / FREQUENCY)
    with pytest.raises(ValueError, match=says):
        read_frequency(tmp_path, SMALL)


def test_token_frequencies_are_read_in_float32(tmp_path):
    share = torch.rand(60, dtype=torch.float64)
    save_file({"frequency": share}, tmp_path / FREQUENCY)
    assert torch.equal(read_frequency(tmp_path, SMALL), share.float())
