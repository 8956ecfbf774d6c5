"""Check YAML documents by the schemas of kubernetes-validate and SkyPilot; runs where those are installed.

Reads a JSON list of [kind, document] from stdin, kind being kubernetes or sky; prints a JSON list of what is wrong with
each, null for nothing.
"""

from __future__ import annotations

import json
import sys
from typing import Any

KUBERNETES = "1.34"


def check_kubernetes(document: dict[str, Any]) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def check_sky(document: dict[str, Any]) -> None:
    import sky
    from sky.utils import common_utils, schemas

    schema = schemas.get_resources_schema()
    for resources in document["resources"].get("any_of", []):
        common_utils.validate_schema(resources, schema, "resources: ")
    # Only SkyPilot's server refuses unknown fields here, as its plugins may add some.
    recovery = schema["properties"]["job_recovery"]["anyOf"][1]["properties"]
    if unknown := set(document["resources"]["job_recovery"]) - set(recovery):
        raise ValueError(f"job_recovery does not know {unknown}")
    sky.Task.from_yaml_config(document)


def main() -> None:
    found: list[str | None] = []
    for kind, document in json.load(sys.stdin):
        try:
            {"kubernetes": check_kubernetes, "sky": check_sky}[kind](document)
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
        else:
            found.append(None)
    print(json.dumps(found))


main()
