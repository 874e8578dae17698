"""Runs into numbers and figures.

`metrics` makes DataFrames of a Trace, `figures` draws DataFrames, `report` joins both for the page,
and `probes` measures with exact passes of the model. `bench`, `study`, `loading` and `roofline` are
commands; `analysis.page` serves the page; `analysis.tools` is for developers.
"""

import d2cache  # noqa: F401  (before torch: it settles how OpenMP's threads wait)
