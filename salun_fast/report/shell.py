"""The templates: ``base.html`` is the shell and the style that every page extends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from salun_fast._extras import need

FOLDER = Path(__file__).parent


def fill(template: str, **values: Any) -> str:
    """The page that a template of this folder makes of ``values``; a missing one is an error."""
    jinja2 = need("jinja2", "the report")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    html: str = environment.get_template(template).render(**values)
    return html
