"""METHODS: every gradient transform by name. A plugin adds its own entry to this dict."""

from __future__ import annotations

from grokscale.entries import Method
from grokscale.methods import controls, egd, grokalign, grokfast, muon, neuralgrok, none, rivals, shampoo, soap

FAMILIES = (none, grokfast, egd, neuralgrok, controls, grokalign, muon, shampoo, soap, rivals)
METHODS: dict[str, Method] = {m.name: m for family in FAMILIES for m in family.METHODS}
