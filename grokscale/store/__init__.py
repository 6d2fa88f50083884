"""The store: append-only Parquet under one root, and the truth about everything that ran.

`Store(root)` appends, reads and answers SQL. The tables and their columns are `SCHEMAS`; what a reader
skipped (a torn or a foreign file) is a `StoreWarning`.
"""

from grokscale.store.files import StoreWarning
from grokscale.store.schemas import SCHEMA_VERSION, SCHEMAS
from grokscale.store.tables import Store

__all__ = ["SCHEMAS", "SCHEMA_VERSION", "Store", "StoreWarning"]
