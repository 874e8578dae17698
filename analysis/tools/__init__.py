"""Commands for developers that make the assets and take the measurements; not in the wheel.

`python -m analysis.tools.stored_runs`, `pictures`, `page_targets` and `mutation`. They need
tests/requirements.txt.
"""
