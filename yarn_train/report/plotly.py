"""plotly's script, as it goes into a page: the one place that looks into the plotly package.

The library itself is never imported, which takes longer than a report: only the script that it brings is read.
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .figures.base import Figure

SCRIPT = "package_data/plotly.min.js"


@functools.cache
def packed_script() -> str:
    """plotly.min.js, deflated, in base64: 1.9 MB instead of 4.8; empty where plotly is not installed."""
    spec = importlib.util.find_spec("plotly")
    places = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for place in places if (file := Path(place) / SCRIPT).is_file()]
    return base64.b64encode(zlib.compress(files[0].read_bytes(), 6)).decode() if files else ""


def for_script(figures: Mapping[str, Figure | Any]) -> str:
    """JSON that can stand inside a script element: a text such as ``</script>`` does not end it."""
    text = json.dumps(figures, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
