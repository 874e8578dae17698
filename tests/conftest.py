"""Imported before any test: the package goes first, since it sets how torch's threads wait."""

import d2cache  # noqa: F401
