"""Pictures of results as files: nothing else imports matplotlib, whose global state stays."""

from __future__ import annotations

from typing import Literal

FigureKind = Literal["png", "svg", "pdf"]
