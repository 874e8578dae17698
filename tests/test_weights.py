"""Checkpoint folders: what is written loads as it was, and a bad folder is refused in one line."""

import json
import os
import struct

import pytest
import torch
from lab import assert_same_confidence, confidences, random_prompt, run, small_model
from safetensors.torch import load_file, save_file

import d2cache
from d2cache import weights

INDEX = "model.safetensors.index.json"
BLOCK = "model.transformer.blocks.1."


@pytest.fixture
def folder(tmp_path):
    """A small random model, sharded."""
    weights.save(small_model(50, kv_heads=2), tmp_path / "m", torch.float64, shard_bytes=40_000)
    return tmp_path / "m"


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
    model, loaded = small_model(50, kv_heads=2), d2cache.load(str(folder), "cpu", torch.float64)
    for (name, ours), (other, theirs) in zip(
        model.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(ours, theirs)
    assert loaded.config.__dict__ == model.config.__dict__ | {"name": "m"}
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    same = [confidences(run(m, random_prompt(5), gen_length=4)) for m in (model, loaded)]
    assert_same_confidence(*same, within=1e-12)


def test_each_shard_stays_under_its_size(folder):
    sizes = [sum(t.nbytes for t in load_file(p).values()) for p in folder.glob("*.safetensors")]
    assert len(sizes) > 2 and max(sizes) <= 40_000
    listed = json.loads((folder / INDEX).read_text())
    assert listed["metadata"]["total_size"] == sum(sizes)


def test_names_are_those_of_llada_checkpoints(folder):
    listed = json.loads((folder / INDEX).read_text())["weight_map"]
    for part in ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"):
        assert f"{BLOCK}{part}.weight" in listed
    state = small_model(50, kv_heads=2).state_dict()
    whole, gates = (state[f"blocks.1.{n}.weight"] for n in ("qkv_proj", "gate_up_proj"))
    for part, want in (
        ("q_proj", whole[:32]), ("k_proj", whole[32:48]), ("v_proj", whole[48:]),
        ("ff_proj", gates[:48]), ("up_proj", gates[48:]),
    ):  # fmt: skip
        name = f"{BLOCK}{part}.weight"
        assert torch.equal(load_file(folder / listed[name])[name], want)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llada" and config["n_kv_heads"] == 2
    assert config["mask_token_id"] == 59 and config["embedding_size"] == 60


def test_weights_are_converted_to_the_type_that_is_asked_for(folder):
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


def test_a_hub_id_that_cannot_be_fetched_is_refused(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        assert all(".bin" not in p and ".py" not in p for p in kwargs["allow_patterns"])
        raise OSError("no network\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    refused("some/model", "could not fetch 'some/model' from the hub: no network")


def test_a_hub_id_is_read_from_where_it_was_fetched(folder, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **kw: str(folder))
    assert d2cache.load("some/model", device="cpu").config.width == 32


CONFIGS = {
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
    "biases": (
        dict(include_bias=True),
        "has include_bias True; this engine computes with False alone",
    ),
    "no width": (dict(d_model=...), "lacks 'd_model'; it must have the keys of 'llada'"),
    "no mask": (dict(mask_token_id=...), "lacks 'mask_token_id'"),
    "text": (dict(n_layers="3"), "n_layers is '3', not a whole number"),
    "float": (dict(n_heads=4.0), "n_heads is 4.0, not a whole number"),
    "switch": (dict(d_model=True), "d_model is True, not a whole number"),
    "null": (dict(rope_theta=None), "rope_theta is None, not a number"),
    "word for a number": (dict(rope_theta="fast"), "rope_theta is 'fast', not a number"),
    "too large a number": (dict(rope_theta=10**400), "config.json"),
    "not above zero": (
        dict(rms_norm_eps=float("nan")),
        "norm_eps is nan; it must be a number above 0",
    ),
    "negative": (dict(n_layers=-1), "layers is -1; it must be"),
    "million layers": (dict(n_layers=10**6), "layers is 1000000; it must be"),
    "gigantic": (dict(d_model=10**30), "width is 1000"),
    "odd heads": (dict(n_heads=5, n_kv_heads=5), "does not split into 5 heads"),
    "mask outside": (dict(mask_token_id=99), "mask_id is 99"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_bad_config_is_refused(folder, kind):
    content, says = CONFIGS[kind]
    path = folder / "config.json"
    if content is None:
        path.unlink()
    elif isinstance(content, dict):
        edit_json(path, **content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(folder, says)


@pytest.mark.parametrize("key", ["embedding_size", "n_kv_heads"])
def test_keys_that_llada_leaves_out_have_its_defaults(tmp_path, key):
    weights.save(small_model(51), tmp_path / "m", torch.float64)
    edit_json(tmp_path / "m" / "config.json", **{key: ...})
    assert d2cache.load(str(tmp_path / "m"), "cpu").config.kv_heads == 4


def shard_of(folder, name):
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][name]


def without(folder):
    shard = shard_of(folder, BLOCK + "k_proj.weight")
    shard.unlink()
    return f"lacks the shard {shard.name}; fetch it again"


def truncated(folder):
    shard = shard_of(folder, BLOCK + "k_proj.weight")
    shard.write_bytes(shard.read_bytes()[:-100])
    return f"{shard.name} cannot give"


def emptied(folder):
    shard = shard_of(folder, BLOCK + "k_proj.weight")
    shard.write_bytes(b"")
    return f"{shard.name} cannot give"


def lying_header(folder):
    shard = shard_of(folder, BLOCK + "k_proj.weight")
    data = shard.read_bytes()
    shard.write_bytes(struct.pack("<Q", 1 << 60) + data[8:])
    return f"{shard.name} cannot give"


def lying_size(folder):
    shard = shard_of(folder, BLOCK + "k_proj.weight")
    head = json.dumps(
        {BLOCK + "k_proj.weight": {"dtype": "F64", "shape": [9, 9], "data_offsets": [0, 8]}}
    ).encode()
    shard.write_bytes(struct.pack("<Q", len(head)) + head + bytes(8))
    return f"{shard.name} cannot give"


def other_tensors(folder):
    shard = shard_of(folder, BLOCK + "k_proj.weight")
    save_file({"a": torch.ones(1)}, shard)
    return f"{shard.name} cannot give"


def changed(name, edit):
    def fault(folder):
        shard = shard_of(folder, BLOCK + name)
        tensors = load_file(shard)
        tensors[BLOCK + name] = edit(tensors[BLOCK + name]).contiguous()
        save_file(tensors, shard)
        return "blocks.1."

    return fault


def listed(edit, says):
    def fault(folder):
        content = json.loads((folder / INDEX).read_text())
        edit(content)
        (folder / INDEX).write_text(json.dumps(content))
        return says

    return fault


def points(where):
    return listed(
        lambda c: c["weight_map"].update({BLOCK + "k_proj.weight": where}),
        f"for {BLOCK}k_proj.weight",
    )


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
    "header size lies": lying_header,
    "tensor size lies": lying_size,
    "shard of other tensors": other_tensors,
    "norm too long": changed("attn_norm.weight", lambda t: torch.cat((t, t))),
    "matrix turned": changed("ff_out.weight", lambda t: t.T),
    "one row fewer": changed("up_proj.weight", lambda t: t[1:]),
    "part too wide": changed("v_proj.weight", lambda t: torch.cat((t, t), 1)),
    "part flat": changed("k_proj.weight", lambda t: t.flatten()),
    "part a number": changed("k_proj.weight", lambda t: t[0, 0]),
    "index broken": broken_index,
    "index without map": listed(lambda c: c.pop("weight_map"), "has no weight_map"),
    "map a list": listed(lambda c: c.update(weight_map=[]), "has no weight_map"),
    "tensor not listed": listed(
        lambda c: c["weight_map"].pop(BLOCK + "k_proj.weight"), "does not list " + BLOCK
    ),
    "shard a number": points(3),
    "shard above the folder": points("../outside.safetensors"),
    "shard far away": points("/tmp/outside.safetensors"),
    "shard in a folder": points("sub/x.safetensors"),
    "no weights": no_weights,
}


@pytest.mark.parametrize("kind", FAULTS)
def test_bad_weights_are_refused(folder, kind):
    if "shard above" in kind:  # it is there and would do
        outside = load_file(shard_of(folder, BLOCK + "k_proj.weight"))
        save_file(outside, folder.parent / "outside.safetensors")
    says = FAULTS[kind](folder)
    refused(folder, says)


@pytest.mark.parametrize("where", ["..", ".", "", "a\0b"])
def test_a_shard_that_is_no_file_name_is_refused(folder, where):
    points(where)(folder)
    refused(folder)


class Payload:
    """Unpickling this leaves a file behind."""

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
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling_llada.M"})
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


def test_without_a_tokenizer_text_is_refused_and_ids_still_decode(folder):
    model = d2cache.load(str(folder), device="cpu")
    with pytest.raises(ValueError, match=r"this model has no tokenizer; put tokenizer\.json"):
        model.encode("hello")
    assert len(run(model, [1, 2], gen_length=3)) == 3


@pytest.mark.parametrize("content", ["{", "[]", "", '{"model": {"type": "BPE"}}', "null"])
def test_a_broken_tokenizer_is_refused(folder, content):
    (folder / "tokenizer.json").write_text(content)
    refused(folder, "tokenizer.json cannot be read")


def test_the_model_in_the_box_loads_and_decodes():
    model = d2cache.load(device="cpu")
    assert model.config.name == "tiny"
    ids = model.encode("What is 2 + 3?")
    assert ids.ndim == 1 and len(ids) > 3
    steps = run(model, ids, "d2", gen_length=8)
    assert isinstance(model.decode(steps[-1].after.tokens[0, len(ids) :]), str)
