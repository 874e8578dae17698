"""The models that a host offers: each is loaded once, in the background, and kept."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import d2cache
from analysis.page.bounds import is_local
from analysis.page.outline import outline
from d2cache import models
from d2cache.weights import Progress

LOG = logging.getLogger("d2cache.models")


class Engine:
    """The one thread that computes: a step, or a probe, at a time, whoever asks.

    One thread rather than a lock: the C library keeps what each thread has freed apart for it, and
    torch a team of workers for each, so that many threads would keep many times the memory.
    """

    def __init__(self) -> None:
        self._begin()
        if hasattr(os, "register_at_fork"):  # no thread follows a process into its fork
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    def __call__(self, work: Callable, *args) -> Any:
        """Does the work there, and returns or raises what it does."""
        return self.thread.submit(work, *args).result()


ENGINE = Engine()


class Loading(ValueError):
    """The model that was asked for is still being loaded; label: which one."""

    def __init__(self, text: str, label: str):
        super().__init__(text)
        self.label = label


class Models:
    """The models that a host offers, by the label that a visitor sees.

    The first is loaded when the page starts, each other one in the background when it is first
    wanted, so that no run waits for another visitor's model.

    borrowed: the GPU is another process's, call by call. The bundled model is then on this
    machine's CPU, and of the others only an `Outline` is here.
    """

    def __init__(self, offered: dict[str, str], borrowed: bool = False):
        self.offered = offered  # label -> what d2cache.load takes
        self.borrowed = borrowed
        self.loaded: dict[str, d2cache.Model] = {}
        self.state: dict[str, str] = {}  # label -> a sentence, while it loads and when it failed
        self.busy: set[str] = set()
        self.one_load = threading.Lock()
        self.news = threading.Condition()

    @property
    def first(self) -> str:
        return next(iter(self.offered))

    def far(self, label: str) -> bool:
        """Whether the model of this label computes in another process."""
        return self.borrowed and self.offered.get(label, "tiny") != "tiny"

    def source(self, label: str) -> str:
        """What `d2cache.load` takes for this label, in code that a visitor takes along.

        A folder's path is given away only where the page serves its own machine.
        """
        name = self.offered.get(label, label)
        return str(Path(name).resolve()) if is_local(os.environ) and name != label else label

    def get(self, label: str) -> d2cache.Model:
        """A loaded model; waits for the first one.

        Raises Loading while another one is being loaded, ValueError if it is not offered or failed.
        """
        self.start(label)
        if label == self.first:
            for _ in self.watch(label):
                pass
        with self.news:
            if label in self.loaded:
                return self.loaded[label]
            if label in self.busy:
                raise Loading(f"{self.state[label]} Press Run when it is ready.", label)
            raise ValueError(f"{self.state[label]}. Choose another model.")

    def start(self, label: str) -> None:
        """Starts to load a model in the background, unless it is loaded or loading."""
        if not isinstance(label, str) or label not in self.offered:
            raise ValueError(
                f"The model is {label!r:.80}; this page offers {', '.join(self.offered)}: "
                "choose one."
            )
        with self.news:
            if label in self.loaded or label in self.busy:
                return
            self.busy.add(label)
            self.state[label] = f"Loading {label}."
        threading.Thread(
            target=self._load, args=(label,), name=f"load {label}", daemon=True
        ).start()

    def watch(self, label: str):
        """Sentences about the loading of a model, one at each change, until it ends."""
        said = None
        while True:
            with self.news:
                while label in self.busy and self.state[label] == said:
                    self.news.wait()
                if label not in self.busy:
                    return
                said = self.state[label]
            yield said

    def like(self, config: d2cache.ModelConfig) -> d2cache.Model | None:
        """A loaded model of exactly this shape and name; waits for the first one."""
        for _ in self.watch(self.first):
            pass
        return next((m for m in self.loaded.values() if m.config == config), None)

    def _load(self, label: str) -> None:
        def progress(what: str, done: int, total: int) -> None:
            part = f"{what} {100 * done // total} % of {total / 1e9:.1f} GB"
            self._say(label, f"Loading {label}: {part}.")

        try:
            with self.one_load:
                if self.far(label):
                    model: d2cache.Model = outline(self.offered[label], label, progress)
                else:
                    model = self._load_here(self.offered[label], progress)
            self.loaded[label], said = model, f"{label} is loaded."
        except Exception as error:  # of whatever library: the page goes on with other models
            known = isinstance(error, ValueError)
            LOG.warning("loading %s failed: %s", label, error, exc_info=not known)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            reason = reason.replace(str(Path(self.offered[label])), label)  # no paths for visitors
            said = f"The model {label} cannot be loaded: {reason}"
        self._say(label, said, done=True)

    def _load_here(self, name: str, progress: Progress) -> d2cache.Model:
        device = "cpu" if self.borrowed else "auto"
        model = d2cache.load(name, device, progress=progress)
        for policy in ("none", "d2"):  # the first steps of a process are slow
            ENGINE(next, d2cache.generate(model, model.encode("Hello"), policy, gen_length=64))
        return model

    def _say(self, label: str, said: str, done: bool = False) -> None:
        with self.news:
            self.state[label] = said
            if done:
                self.busy.discard(label)
            self.news.notify_all()


def offered_models(listed: str | None) -> dict[str, str]:
    """Label -> name of the models in D2CACHE_MODELS, by commas; without it, what suits the device.

    A folder's label is its own name: a visitor sees no paths. ValueError for one that cannot be.
    """
    if not listed:
        names = ["tiny"]
        if models.pick_device().type == "cuda":
            names += ["GSAI-ML/LLaDA-8B-Instruct", "Dream-org/Dream-v0-Instruct-7B"]
    else:
        names = [name.strip() for name in listed.split(",") if name.strip()]
    offered = {}
    for name in names:
        label = models.label(name)
        if label in offered:
            raise ValueError(f"two models are called {label!r}; rename a folder or drop one")
        offered[label] = name
    if not offered:
        raise ValueError("it names no model; give tiny, hub ids or folders, by commas")
    return offered
