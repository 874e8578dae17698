"""Real layouts of both families, from a folder and from a hub; the list of known models."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import (
    DREAM_TOKENS,
    INDEX,
    golden,
    write_checkpoint,
    write_dream_tokenizer,
)
from hub import serve, visit
from huggingface_hub import constants
from lab import full_pass

import d2cache
from d2cache import models
from d2cache.__main__ import main
from d2cache.families import FAMILIES

ROOT = Path(__file__).parents[2]
ASKED = "What is 2 + 3?"


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path):
    """A checkpoint in its family's layout, in a folder named after the family."""
    return write_checkpoint(tmp_path / request.param, request.param)


def load(folder):
    return d2cache.load(str(folder), device="cpu")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_as_on_the_hub_gives_the_logits_of_the_public_code(tmp_path, family, shards):
    model = load(write_checkpoint(tmp_path / "m", family, shards))
    meta, tensors = golden(family)
    logits = full_pass(model, tensors["forward/mixed/tokens"])
    kept = torch.arange(meta["vocab"]) != meta["mask_id"]
    want = tensors["forward/mixed/logits"]
    torch.testing.assert_close(logits[..., kept], want[..., kept], rtol=1e-4, atol=1e-5)
    assert (model.config.mask_id, model.config.eos_id) == (511, 510)
    assert model.config.max_length == {"llada": 4096, "dream": 131072}[family]


def test_a_prompt_is_wrapped_as_the_checkpoint_wants(folder):
    model = load(folder)
    want = {
        "llada": "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nWhat is 2 + 3?"
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "dream": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "What is 2 + 3?<|im_end|>\n<|im_start|>assistant\n",
    }[folder.name]
    ids = model.encode(ASKED)
    assert model.tokenizer.decode(ids) == want
    whole = {"llada": "<|eot_id|>", "dream": "<|im_end|>"}[folder.name]
    assert model.tokenizer.convert_tokens_to_ids(whole) in ids.tolist(), (
        "one token, not several characters"
    )


def test_a_template_in_its_own_file_takes_precedence(folder):
    (folder / "chat_template.jinja").write_text("Q: {{ messages[0].content }}\nA:")
    model = load(folder)
    assert model.tokenizer.decode(model.encode(ASKED)) == f"Q: {ASKED}\nA:"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_model_without_template_gets_plain_text(tmp_path, family):
    model = load(write_checkpoint(tmp_path / "m", family, template=False))
    assert model.tokenizer.decode(model.encode(ASKED)) == ASKED


@pytest.mark.parametrize(
    "text", [ASKED, "  two  spaces\n\ttab", "naïve café, 数学 🔭", "a\u0301 is á by NFC", "1234567"]
)
def test_dreams_tokenizer_is_qwens(folder, text):
    """Byte level, digit by digit, normalized: like the class in Dream's repository."""
    model = load(folder)
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if folder.name == "dream":
        text = text.replace("a\u0301", "á")
        digits = [i for i in ids if any(c.isdigit() for c in model.decode([i]))]
        assert len(digits) == sum(c.isdigit() for c in text)
    assert model.decode(ids) == text


@pytest.mark.parametrize("special", DREAM_TOKENS)
def test_a_special_token_in_a_prompt_is_refused(tmp_path, special):
    model = load(write_checkpoint(tmp_path / "m", "dream"))
    with pytest.raises(ValueError, match="the prompt holds the special token"):
        model.encode(f"hello {special} you")


def test_an_answer_ends_at_the_end_of_text_and_shows_no_special_token(folder):
    model = load(folder)
    turn = {"llada": "<|eot_id|>", "dream": "<|im_end|>"}[folder.name]
    word = model.tokenizer(" five", add_special_tokens=False)["input_ids"]
    answer = [*word, model.tokenizer.convert_tokens_to_ids(turn), 511, 510, *word]
    assert model.decode(answer) == " five"


def test_the_filler_of_diffucoder_ends_an_answer(tmp_path):
    """Its config.json gives the end of text, but it fills answers with another token."""
    folder = write_checkpoint(tmp_path / "m", "dream")
    tokens = ["<|im_start|>", "<|im_end|>", "<|dlm_pad|>", "<|endoftext|>", "<|mask|>"]
    write_dream_tokenizer(folder, True, tokens)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"pad_token": "<|dlm_pad|>", "additional_special_tokens": [], "bos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model = load(folder)
    assert model.config.eos_id == model.tokenizer.convert_tokens_to_ids("<|dlm_pad|>") == 509
    word = model.tokenizer(" five", add_special_tokens=False)["input_ids"]
    assert model.decode([*word, 508, 509, *word]) == " five"


def test_ids_that_the_tokenizer_does_not_know_have_no_text(tmp_path):
    """Vocabularies are padded to a round number; a model may predict ids that have no text."""
    folder = write_checkpoint(tmp_path / "m", "dream")
    write_dream_tokenizer(folder, True, vocab=508)
    edit(folder / "config.json", mask_token_id=507, eos_token_id=506)
    model = load(folder)
    assert model.tokenizer.decode([511]) == "" and model.decode([40, 511]) == model.decode([40])


def edit(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def refused(folder, *says):
    with pytest.raises(ValueError) as error:
        load(folder)
    message = str(error.value)
    assert "\n" not in message and len(message) < 1000
    for part in says:
        assert part in message


def without_merges(folder):
    (folder / "merges.txt").unlink()
    return "has vocab.json but lacks merges.txt"


def broken_merges(folder):
    (folder / "merges.txt").write_text("#version: 0.2\nno such merge as this\n")
    return "vocab.json cannot be read"


def broken_vocab(folder):
    (folder / "vocab.json").write_text('{"a": "b"}')
    return "vocab.json cannot be read"


def broken_settings(folder):
    (folder / "tokenizer_config.json").write_text("[1]")
    return "vocab.json cannot be read"


def foreign(folder):
    edit(folder / "config.json", vocab_size=500, eos_token_id=1, mask_token_id=2)
    return "has ids up to 511 and mask 511; the model has ids up to 499 and mask 2"


def larger(folder):
    edit(folder / "tokenizer_config.json", mask_token=None)
    edit(folder / "config.json", vocab_size=511, eos_token_id=510, mask_token_id=1)
    return "has ids up to 511 and mask None; the model has ids up to 510"


def other_mask(folder):
    edit(folder / "config.json", mask_token_id=300)
    return "mask 511; the model has ids up to 511 and mask 300: use the model's own"


@pytest.mark.parametrize(
    "fault",
    [
        without_merges,
        broken_merges,
        broken_vocab,
        broken_settings,
        foreign,
        larger,
        other_mask,
    ],
)
def test_a_tokenizer_that_is_broken_or_of_another_model_is_refused(tmp_path, fault):
    folder = write_checkpoint(tmp_path / "m", "dream")
    refused(folder, fault(folder))


def test_a_template_that_fails_is_refused(folder):
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no users\nhere') }}")
    with pytest.raises(ValueError, match="chat template fails: no users$"):
        load(folder).encode(ASKED)


@pytest.mark.parametrize("attack", ["''.__class__.__mro__", "messages.__class__.__init__"])
def test_a_template_reaches_nothing_outside_its_sandbox(folder, attack):
    (folder / "chat_template.jinja").write_text(f"{{{{ {attack}.__globals__ }}}}")
    with pytest.raises(ValueError, match="chat template fails"):
        load(folder).encode(ASKED)


class Payload:
    """Unpickling this creates a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_no_code_and_no_pickle_of_a_checkpoint_is_touched(folder, tmp_path):
    """A hub repository with every kind of file made hostile: the model loads, nothing runs."""
    code = f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n"
    for name in (
        "configuration_dream.py",
        "modeling_dream.py",
        "tokenization_dream.py",
        "generate.py",
        "configuration_llada.py",
        "modeling_llada.py",
        "__init__.py",
        "setup.py",
        "conftest.py",
    ):
        (folder / name).write_text(code)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    edit(folder / "tokenizer_config.json", trust_remote_code=True)
    edit(folder / "config.json", trust_remote_code=True)
    assert len(load(folder).encode(ASKED)) > 5
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------ from a hub

# a process of its own: the hub's client reads address and cache when it is imported
VISIT = "import hub, json, sys; print(json.dumps(hub.visit(sys.argv[1:])))"


def visit_apart(cache, address, names):
    """`hub.visit` where the environment gives address and cache. Nothing may be printed."""
    env = os.environ | {"HF_HOME": str(cache), "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", VISIT, *names],
        cwd=ROOT,
        env=env | {"PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def offline(monkeypatch):
    """A function that gives this process a cache, as HF_HOME and HF_HUB_OFFLINE=1 would."""

    def use(cache):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    return use


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Repositories on a local hub, each loaded once: the results, the files sent, and the cache
    afterwards."""
    root, cache = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("cache")
    for name, family, shards in (("dream", "dream", 3), ("one-file", "llada", 1)):
        folder = write_checkpoint(root / "some" / name, family, shards)
        for extra in ("modeling.py", "pytorch_model.bin", "README.md", "other.safetensors"):
            (folder / extra).write_text("not asked for")
    pickled = write_checkpoint(root / "some" / "pickled", "llada", 1)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model-00001-of-00001.bin")
    other = write_checkpoint(root / "some" / "other-family", "llada", 1)
    edit(other / "config.json", model_type="llama")
    greedy = write_checkpoint(root / "some" / "greedy", "dream", 3)
    index = json.loads((greedy / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "*")
    (greedy / INDEX).write_text(json.dumps(index))
    names = ["some/dream", "some/one-file", "some/none", *(f"some/{n}" for n in REFUSED)]
    with serve(root) as (address, sent):
        got = visit_apart(cache, address, names)
    return got, sent, cache


REFUSED = {
    "pickled": "found only pytorch_model-00001-of-00001.bin, which could run code; convert it",
    "other-family": "has model_type 'llama'; this engine loads 'llada' and 'Dream'",
    "greedy": "points outside its folder for",
}
SMALL = {
    "dream": {
        "config.json",
        INDEX,
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "added_tokens.json",
    },
    "one-file": {"config.json", "tokenizer.json", "tokenizer_config.json"},
}
SHARDS = {
    "dream": {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)},
    "one-file": {"model.safetensors"},
}


@pytest.mark.parametrize("name", SMALL)
def test_only_the_needed_files_of_a_hub_repository_are_fetched_once_weights_last(hub, name):
    got, sent, _ = hub
    files = [f.removeprefix(f"some/{name}/") for f in sent if f.startswith(f"some/{name}/")]
    assert set(files) == SMALL[name] | SHARDS[name] and len(files) == len(set(files))
    assert set(files[-len(SHARDS[name]) :]) == SHARDS[name]
    visited = got[f"some/{name}"]
    assert visited["error"] == "" and visited["reads"][0] == f"some/{name}"
    assert (visited["before"], visited["after"]) == (False, True)


@pytest.mark.parametrize("name", SMALL)
def test_a_download_reports_its_bytes(hub, name):
    seen = hub[0][f"some/{name}"]["seen"]
    assert [what for what, _, _ in seen] == sorted(what for what, _, _ in seen)
    assert all(0 <= done <= total and total > 1000 for _, done, total in seen), "bytes, not files"
    for what in ("fetching", "reading"):
        done, total = [one[1:] for one in seen if one[0] == what][-1]
        assert done == total > 400_000


@pytest.mark.parametrize("name", REFUSED)
def test_a_repository_that_cannot_be_loaded_is_refused_before_its_weights_are_fetched(hub, name):
    got, sent, _ = hub
    visited = got[f"some/{name}"]
    assert REFUSED[name] in visited["error"] and "\n" not in visited["error"]
    assert not visited["after"]
    files = [file for file in sent if file.startswith(f"some/{name}/")]
    assert files and not [f for f in files if f.endswith((".bin", ".safetensors", ".py"))]


def test_a_repository_that_is_not_there_is_refused(hub):
    assert hub[0]["some/none"]["error"] == (
        "could not fetch 'some/none' from the hub: there is no such repository, or it is private; "
        "check the name and the network, or give a folder"
    )


@pytest.mark.parametrize("way", ["unreachable", "offline"])
def test_without_a_network_the_cache_serves(hub, way, offline, capfd):
    results, _, cache = hub
    names = ["some/dream", "some/one-file", "some/none"]
    if way == "offline":
        offline(cache)
        got = visit(names)
        assert capfd.readouterr() == ("", "")
    else:
        got = visit_apart(cache, "http://[::1]:9", names)
    for name in names[:2]:
        assert got[name]["before"] and got[name]["error"] == ""
        assert got[name]["reads"] == results[name]["reads"]
        assert {what for what, _, _ in got[name]["seen"]} == {"reading"}
    assert not got["some/none"]["after"] and "\n" not in got["some/none"]["error"]
    assert "could not fetch 'some/none' from the hub: " in got["some/none"]["error"]


def test_half_a_download_is_not_in_the_cache(hub, tmp_path, offline):
    cache = shutil.copytree(hub[2], tmp_path / "cache", symlinks=True)
    next(cache.glob("hub/models--some--dream/snapshots/*/*-00002-*")).unlink()
    offline(cache)
    got = visit(["some/dream"])["some/dream"]
    assert not got["before"] and "could not fetch 'some/dream' from the hub: " in got["error"]


def test_the_command_line_reports_a_missing_network_in_one_line(tmp_path, offline, capfd):
    offline(tmp_path)
    assert main(["run", ASKED, "--model", "some/model"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("d2cache: could not fetch 'some/model' from the hub: ")


# ------------------------------------------------------------------------------ what is known


def test_known_models_have_the_size_of_the_published_ones():
    entries = {e.name: e for e in models.known("cpu")}
    assert entries["tiny"].cached and entries["tiny"].fits
    assert entries["tiny"].parameters == sum(
        p.numel() for p in d2cache.load("tiny", device="cpu").parameters()
    )
    llada, dream = entries["GSAI-ML/LLaDA-8B-Instruct"], entries["Dream-org/Dream-v0-Instruct-7B"]
    assert llada.parameters == 8_015_581_184 and dream.parameters == 7_615_616_512
    assert (llada.family, dream.family) == ("llada", "dream")
    for e in entries.values():
        assert e.weights == 4 * e.parameters and e.dtype == "float32" and e.device == "cpu"
    # two of them, 32 or 28 layers, 4096 or 512 wide, 1024 positions, 4 bytes
    assert llada.kv == 2 * 32 * 4096 * 1024 * 4 and dream.kv == 2 * 28 * 512 * 1024 * 4
    assert {e.family for e in entries.values()} == set(FAMILIES)


def test_a_model_fits_when_weights_and_cache_do():
    entry = models.known("cpu")[1]
    needed = entry.weights + entry.kv
    for free, fits in ((needed, True), (needed - 1, False), (None, None)):
        assert models.Entry(**entry.__dict__ | {"free": free}).fits is fits


def test_the_list_names_every_known_model(capsys):
    assert main(["models", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for name in models.KNOWN:
        (line,) = [line for line in out.splitlines() if line.startswith(name + " ")]
        assert ("8.02 B" in line) == name.startswith("GSAI-ML/LLaDA")
    assert "float32" in out.splitlines()[0]


def test_the_list_as_json_is_one_object_per_line(capsys):
    assert main(["models", "--device", "cpu", "--json"]) == 0
    got = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["name"] for one in got] == list(models.KNOWN)
    assert set(got[0]) == {
        "name",
        "family",
        "parameters",
        "cached",
        "device",
        "dtype",
        "weights_gb",
        "kv_gb",
        "memory_gb",
        "free_gb",
        "fits",
    }
    assert got[0]["memory_gb"] == pytest.approx(got[0]["weights_gb"] + got[0]["kv_gb"])


def test_an_unknown_device_is_refused(capsys):
    assert main(["models", "--device", "tpu"]) == 2
    assert capsys.readouterr().err == "d2cache: unknown device 'tpu'; use auto, cpu or cuda\n"


@pytest.mark.parametrize(
    "name", ["", " ", None, 3, "nothing", "../up", "a/b/c", "-/", "x\0y", "é/a"]
)
def test_a_name_that_cannot_be_a_model_is_refused(name):
    with pytest.raises(ValueError, match="give 'tiny', a hub id"):
        models.check_name(name)


@pytest.mark.parametrize("name", list(models.KNOWN))
def test_known_names_could_be_models(name):
    assert models.check_name(name) == name
