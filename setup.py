"""What pyproject.toml cannot say: the README as a package index shows it, where its relative links lead nowhere."""

import re
from pathlib import Path

from setuptools import setup

RELATIVE = r"\((?!https?://|#)([^)\s]+)\)"


def make_description(readme: str) -> str:
    """Return the README without pictures of the repository, and with the paths of its pages in place of links."""
    text = re.sub(rf"^!\[[^\]]*\]{RELATIVE}\n+", "", readme, flags=re.MULTILINE)
    return re.sub(rf"(?<!!)\[([^\]]+)\]{RELATIVE}", r"\1 (`\2`)", text)


setup(
    long_description=make_description((Path(__file__).parent / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
