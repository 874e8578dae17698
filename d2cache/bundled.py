"""Where the files are that come with the package: its model, stored runs, and the page's own."""

from pathlib import Path

HERE = Path(__file__).resolve().parent
# An installed package holds them; in a clone they are beside it.
ASSETS = HERE / "assets" if (HERE / "assets").is_dir() else HERE.parent / "assets"

# The families of problems that the bundled model was trained on.
FAMILIES = ("word", "arithmetic", "code", "facts", "lists", "stories")
