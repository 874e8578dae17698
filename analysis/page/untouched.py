"""What Gradio does for each message and each visitor, without the part that changes nothing.

For a message, it makes each component again that the message leaves as it is, with the schema of
its values. And for each visitor it describes all components of the page again.
"""

from __future__ import annotations

import copy
from typing import Any

UNTOUCHED = {"__type__": "update"}  # Gradio's answer for a component that stays as it is


class Untouched:
    """Comes before `gradio.Blocks` among a page's bases."""

    def __init__(self, *args, **how):
        super().__init__(*args, **how)
        kind = type(self.default_config)
        self.default_config = type("Config", (DescribedOnce, kind), {})(self)

    async def postprocess_data(self, block_fn, predictions, state) -> list:
        """A handler's answer for each of its outputs; only those that its updates change are made
        again."""
        above: Any = super()
        outputs = block_fn.outputs
        if not isinstance(predictions, dict) or len(outputs) == 1:
            return await above.postprocess_data(block_fn, predictions, state)
        told = [predictions.get(one, UNTOUCHED) != UNTOUCHED for one in outputs]
        answer: list[Any] = [None if one.stateful else dict(UNTOUCHED) for one in outputs]
        if any(told):
            only = copy.copy(block_fn)
            only.outputs = [one for one, new in zip(outputs, told, strict=True) if new]
            given = [predictions[one] for one in only.outputs]
            made = await above.postprocess_data(only, given if len(given) > 1 else given[0], state)
            places = (at for at, new in enumerate(told) if new)
            for at, value in zip(places, made, strict=True):
                answer[at] = value
        return answer


class DescribedOnce:
    """Comes before `gradio.blocks.BlocksConfig`: a copy, which is for one visitor, has the
    descriptions of the page's components without making them again."""

    def __init__(self, page):
        super().__init__(page)
        self.described = {}
        self.changing = frozenset()  # ids of components that events read or change

    def __copy__(self):
        visitors = super().__copy__()
        ends = ([*fn.inputs, *fn.outputs] for fn in self.fns.values())
        self.changing = self.changing or frozenset(one._id for end in ends for one in end)
        visitors.config_for_block = self.of_visitor
        return visitors

    def of_visitor(self, at: int, rendered: list[int], block, renderable=None) -> dict:
        """The description of a component, which a visitor may have changed."""
        page: Any = self
        if renderable is not None or block is not page.blocks.get(at):
            return page.config_for_block(at, rendered, block, renderable)
        if at not in self.described:
            self.described[at] = page.config_for_block(at, rendered, block)
        one = self.described[at]
        if at not in self.changing:
            return one  # the same for all: nobody's session writes to it
        return one | {"props": dict(one["props"])}
