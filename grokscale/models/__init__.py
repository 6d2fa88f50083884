"""MODELS: every architecture by name. A plugin adds its own entry to this dict."""

from __future__ import annotations

from grokscale.entries import ModelEntry
from grokscale.models import decoder, graph, lstm, mlp
from grokscale.models.base import Model, initial

MODELS: dict[str, ModelEntry] = {m.name: m for m in (*mlp.MODELS, *decoder.MODELS, *lstm.MODELS, *graph.MODELS)}

__all__ = ["MODELS", "Model", "initial"]
