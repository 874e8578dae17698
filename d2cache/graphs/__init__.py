"""CUDA graphs: a step on a GPU without the host between its kernels.

The same functions as in the plain loop, called with row counts rounded up to a few sizes, are
captured once and replayed from then on. One graph plans the next step and sends six numbers to
the host; another, one per size, runs the layers, chooses tokens and lets the policy observe.
What a policy or a decoder remembers from step to step is found in its attributes and kept at fixed
addresses. Whatever cannot be captured (a policy that reads the device, say) runs eagerly.

Without this package the engine works, slower.
"""

from d2cache.graphs.support import supports
from d2cache.graphs.work import GraphWork

__all__ = ["GraphWork", "supports"]
