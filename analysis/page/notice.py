"""The notices beside the controls, as HTML. Their texts may hold anything, so they are escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence


def notice(said: tuple[str, str]) -> str:
    """A sentence for the visitor, and its kind: info, right, wrong or error."""
    text, kind = said
    return f'<p class="page-notice page-{kind}" role="status">{html.escape(text)}</p>'


def changes_noticed(changes: Sequence[str]) -> str:
    """A sentence, and the names of the controls that are marked; "" and no names for nothing."""
    text, *names = changes
    marked = ", ".join(f'[id="{html.escape(name)}"]' for name in names)
    # stronger than the page's own rules for these blocks
    rule = "{ border-left: 3px solid #e69f00 !important }"
    style = f"<style>{marked} {rule}</style>" if marked else ""
    return style + (notice((text, "info")) if text else "")
