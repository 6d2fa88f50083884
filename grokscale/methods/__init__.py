"""METHODS: every gradient transform by name. A plugin adds its own entry to this dict."""

from __future__ import annotations

from grokscale.entries import Method
from grokscale.methods import egd, grokfast, neuralgrok, none

METHODS: dict[str, Method] = {m.name: m for m in (*none.METHODS, *grokfast.METHODS, *egd.METHODS, *neuralgrok.METHODS)}
