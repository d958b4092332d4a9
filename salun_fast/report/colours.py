"""The house's colours on a light background, as in base.html."""

from __future__ import annotations

PAGE = "#fbfbfa"
INK = "#1d2327"
SOFT = "#667079"
LINE = "#e3e6e8"
ACCENT = "#b83b4e"
