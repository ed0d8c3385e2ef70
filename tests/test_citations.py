"""What comments cite can be opened by whoever reads them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CITED = re.compile(r'docs/method\.md,\s+"([^"]+)"')


def test_headings_of_the_method_that_code_cites_exist() -> None:
    headings = [
        line.lstrip("# ") for line in (ROOT / "docs/method.md").read_text().splitlines() if line.startswith("#")
    ]
    texts = {path: path.read_text() for path in sorted((ROOT / "l2g_ray").rglob("*.py"))}
    cited = {(path.name, heading) for path, text in texts.items() for heading in CITED.findall(text)}
    assert ("select.py", "select") in cited
    assert not [(name, one) for name, one in cited if not any(heading.startswith(one) for heading in headings)]
    assert not [path.name for path, text in texts.items() if re.search(r"\bspec \d", text)]
