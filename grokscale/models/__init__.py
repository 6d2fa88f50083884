"""MODELS: every architecture by name. A plugin adds its own entry to this dict."""

from __future__ import annotations

from grokscale.entries import ModelEntry
from grokscale.models import decoder, graph, linear, lstm, mlp
from grokscale.models.base import Model, initial

FAMILIES = (mlp, linear, decoder, lstm, graph)
MODELS: dict[str, ModelEntry] = {m.name: m for family in FAMILIES for m in family.MODELS}

__all__ = ["MODELS", "Model", "initial"]
